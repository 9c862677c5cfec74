"""Compare a log of trt_fake.py with true bindings of TensorRT, whose module is named, and print what differs."""

import importlib
import json
import re
import sys
from pathlib import Path

trt = importlib.import_module(sys.argv[2])

CLOSING = {"]": "[", ")": "(", ">": "<", "}": "{"}


def split(text):
    """Comma-separated parts, commas inside brackets left alone."""
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        if character in CLOSING.values():
            depth += 1
        elif character in CLOSING:
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    return [part.strip() for part in (*parts, text[start:]) if part.strip()]


def signatures(owner, member):
    """(names, number without a default, what is given back) of each overload, from pybind11's docstring."""
    found = []
    for line in (getattr(owner, member).__doc__ or "").splitlines():
        match = re.match(rf"(?:\d+\. )?{member}\((.*)\) -> (.*)$", line.strip())
        if match and not match[1].startswith("*args"):
            parts = split(match[1])
            names = [re.split(r"[:=]", part)[0].strip() for part in parts]
            found.append((names, sum("=" not in part.replace("->", "") for part in parts), match[2]))
    return found


def gives(declared, kind):
    """Return True if a stand-in's result of type ``kind`` is what the real method declares."""
    if kind is None:
        return True  # methods return None for a failure, whatever they declare
    short = declared.rpartition(".")[2].rpartition("::")[2]
    return declared.startswith(kind) or short in (kind, f"I{kind}")


def fault(entry):
    owner = getattr(trt, entry["owner"], None)
    if owner is None:
        return "no such class"
    if not hasattr(owner, entry["member"]):
        return "no such member"
    member = getattr(owner, entry["member"])
    if entry["kind"] == "constant":
        return None
    if entry["kind"] in ("read", "write"):
        if not isinstance(member, property):
            return "not a property"
        return "read-only" if entry["kind"] == "write" and member.fset is None else None
    known = signatures(owner, entry["member"])
    if not known:
        # a class that only the library makes: our code never calls its __init__
        return None if entry["member"] == "__init__" else "no signature found"
    if entry["kind"] == "override":
        return None if any(names[1:] == entry["parameters"] for names, _, _ in known) else f"declared as {known}"
    for names, needed, declared in known:
        given = ["self", *range(entry["args"]), *entry["options"]]
        named = set(entry["options"]) <= set(names[1 + entry["args"] :])
        if named and needed <= len(given) <= len(names) and gives(declared, entry["returns"]):
            return None
    return f"declared as {known}"


for logged in json.loads(Path(sys.argv[1]).read_text()):
    if (problem := fault(logged)) is not None:
        print(f"{logged}: {problem}")
