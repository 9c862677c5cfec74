"""Documents, docstrings, help texts and messages are plain engineering English: "per", "if" and "when"."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from .conftest import ROOT

UNITS = (
    "pixel|image|class|process|device|thread|call|core|second|row|file|batch|step|map|photo|processor|machine|shard|"
    "channel|tile|scale|tensor|line|prompt|mask|run|epoch|axis|millisecond|minute|hour"
)
COUNTED = (
    "bytes?|images?|one|two|process(?:es)?|threads?|pixels?|calls?|rows?|times|seconds|numbers?|maps?|masks?|points?|"
    "copies|one copy|peaks?|scores?|values?|weights?|index|name|id|file|box(?:es)?|class(?:es)?|labels?|score"
)
PATTERNS = {
    'write "per", not "a"': re.compile(rf"\b(?:{COUNTED}) an? (?:{UNITS})\b(?! of)", re.IGNORECASE),
    'write "if" or "when", not "where"': re.compile(
        r"\b(?:None|empty|nothing|refused?|raises?|raised|error|only|False|True|except|but|even|zero|0|-1) where "
        r"(?!the\b.{0,20}\blies\b)|"
        r"\bwhere (?:there (?:is|are)|it (?:is|has|does|can)|they|not|None|asked|given|possible)\b",
    ),
    "write the verb that engineers use": re.compile(
        r"\b(?:vouch(?:es|ed)? for|vouched|made-up|by a hair|with open eyes|goes on (?:from|where|as)|comes? down"
        r"|is told|says aloud|mends?\b|mended)",
        re.IGNORECASE,
    ),
    "say what it does": re.compile(
        r"\b[Tt]ells? (?:if|whether)\b|\b(?:files?|images?|rejects?|names?) (?:that are )?passed over\b"
        r"|\btaken for dead\b|\bNothing happens (?:if|while|with)\b|\bmade fast for\b|\bon its way (?:in)?to\b"
    ),
    "spell it the American way": re.compile(
        r"\b\w*(?:labell(?:ed|ing|er)|artefact|licence|neighbour|behaviour|colour|centre[ds]?\b|normalis|optimis|initialis"
        r"|minimis|summaris|recognis|organis|quantis|serialis|synchronis)\w*",
        re.IGNORECASE,
    ),
}
DOCUMENT_PATTERNS = {
    "write a zero before the decimal point": re.compile(r"(?<![\w./\\\])])\.(?=\d)"),
    "write the words that engineers use": re.compile(
        r"\b(?:by|of) the clock\b|\bsigns? of life\b|\btaken for dead\b|\bst(?:oo|an)ds? still\b"
        r"|\bbeside (?:a load|other work)\b|\botherwise than\b|\bpassed over\b|\bper cent\b|\bfor ever\b|\bthe own\b"
        r"|\bbehind a hash\b|\bwithout a word\b|\b(?:has|have) not (?:the|an?)\b|\bnever emitted\b",
        re.IGNORECASE,
    ),
    'write "is not a", not "is no"': re.compile(
        r"\b(?:is|are) no (?:label maps?|images?(?!-)|TIFF|random sample|tensor)\b"
    ),
}
"""Patterns of documents alone, such as words that have another meaning in code."""
START = re.compile(r"\s*(?:What|Where|Whether|How many|How much|Which)\b")
DOCUMENTS = [
    path
    for path in sorted(ROOT.rglob("*.md"))
    if not any(part.startswith(".") or part in ("results", "site") for part in path.relative_to(ROOT).parts)
]
MODULES = sorted(
    [path for name in ("engine", "export", "kernels", "trainer", "benchmarks") for path in (ROOT / name).rglob("*.py")]
    + list(ROOT.glob("*.py"))
)
NO_NOUN = re.compile(
    "_*(?:kept|found|given|asked|shown|said|done|chosen|taken|seen|wanted|known|ones?|others|whole|those)_*"
)
"""Participles and pronouns, which do not say what a variable holds."""
SOURCES = sorted((ROOT / "kernels" / "cuda").glob("*.cu*"))


def texts_of(path: Path) -> list[tuple[int, str, bool]]:
    """(line, text, whether it is a docstring) of every text a reader may meet in a file."""
    if path.suffix == ".md":
        prose = re.sub(r"```.*?```", lambda block: "\n" * block[0].count("\n"), path.read_text(), flags=re.DOTALL)
        return [(number, line, False) for number, line in enumerate(prose.splitlines(), 1)]
    if path.suffix != ".py":
        return [(number, line, False) for number, line in enumerate(path.read_text().splitlines(), 1) if "//" in line]
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    texts = []
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for child in body if isinstance(body, list) else ():
            value = child.value if isinstance(child, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                texts.append((child.lineno, " ".join(value.value.split()), True))
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            texts.append((node.lineno, " ".join("".join(map(str, parts)).split()), False))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            texts.append((node.lineno, " ".join(node.value.split()), False))
    comments = [
        (number, line.split("#", 1)[1], False) for number, line in enumerate(source.splitlines(), 1) if "# " in line
    ]
    return texts + comments


@pytest.mark.parametrize("path", DOCUMENTS + MODULES + SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_texts_are_plain_english(path: Path) -> None:
    faults = []
    patterns = PATTERNS | DOCUMENT_PATTERNS if path.suffix == ".md" else PATTERNS
    for line, text, docstring in texts_of(path):
        if docstring and START.match(text):
            faults.append(f"{path.name}:{line}: start with a verb or a noun: {text[:80]}")
        faults += [
            f"{path.name}:{line}: {advice}: …{text[max(0, match.start() - 30) : match.end() + 30]}…"
            for advice, pattern in patterns.items()
            for match in [pattern.search(text)]
            if match
        ]
    assert not faults, "\n".join(dict.fromkeys(faults))


def local_names_of(function: ast.FunctionDef | ast.AsyncFunctionDef, *, is_private: bool) -> list[tuple[int, str]]:
    """Return (line, name) of the variables that a function binds, and of its parameters if it is private."""
    names = []
    if is_private:
        names = [(entry.lineno, entry.arg) for entry in ast.walk(function.args) if isinstance(entry, ast.arg)]
    nodes: list[ast.AST] = [*function.body]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append((node.lineno, node.name))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.append((node.lineno, node.id))
        elif isinstance(node, ast.ExceptHandler) and node.name:
            names.append((node.lineno, node.name))
        # a function has names of its own, and a comprehension is short
        short = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.comprehension)
        if not isinstance(node, short):
            nodes += ast.iter_child_nodes(node)
    return names


def unclear_names(source: str) -> list[tuple[int, str]]:
    """Return (line, name) of the participles and pronouns that functions of more than five lines bind."""
    names = []

    def visit(node: ast.AST, *, is_nested: bool) -> None:
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            if body and (body[-1].end_lineno or 0) - body[0].lineno >= 5:
                is_private = is_nested or (node.name.startswith("_") and not node.name.startswith("__"))
                names.extend(local_names_of(node, is_private=is_private))
        for child in ast.iter_child_nodes(node):
            visit(child, is_nested=is_nested or is_function)

    visit(ast.parse(source), is_nested=False)
    return sorted({(line, name) for line, name in names if NO_NOUN.fullmatch(name)})


def test_local_variables_are_nouns() -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{line}: say what {name} holds, with a noun"
        for path in MODULES
        if path.relative_to(ROOT).parts[0] != "benchmarks"
        for line, name in unclear_names(path.read_text(encoding="utf-8"))
    ]
    assert not faults, "\n".join(faults)


def test_a_participle_is_a_variable_in_short_functions_alone() -> None:
    lines = [
        "def count(given):",
        "    kept = 0",
        *["    kept += 1"] * 4,
        "    return [one for one in range(kept)]",
    ]
    assert unclear_names("\n".join(lines)) == [(2, "kept"), *((line, "kept") for line in range(3, 7))]
    assert unclear_names("\n".join(lines).replace("count", "_count"))[0] == (1, "given")
    assert unclear_names("\n".join(lines[:3] + lines[-1:])) == []
