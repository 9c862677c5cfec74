"""Write the measured figures of a GPU session into docs/kernels-gpu.md.

    python benchmarks/gpu_report.py DIR/summary.json

Keeps the summary of ``gpu_session.py`` as a dated file in benchmarks/results and replaces the page's section of
measured figures. Without an argument it writes the section anew from the latest session in benchmarks/results, or says
that nothing was measured. Trial runs with small shapes are refused.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "kernels-gpu.md"
RESULTS = ROOT / "benchmarks" / "results"
MARK = re.compile(r"(<!-- measured -->\n).*?(<!-- end of measured -->)", re.DOTALL)
NOT_MEASURED = "Not measured yet: no GPU was available.\n"

FIGURES = (
    ("path", "images_per_s", "images/s from JPEG files to label maps"),
    ("path", "share_of_model_alone", "of the model alone, the same path"),
    ("path", "idle_share", "share of that time in which the device was idle"),
    ("label", "images_per_s", "images/s of a label run into a store"),
    ("label", "ratio", "of the model alone, the label run (target 0.95)"),
    ("train", "ratio", "time of a training step over that of plain PyTorch"),
)
"""Figures of the page: step, key and what the number is."""


def latest_session() -> tuple[str, dict[str, Any]] | None:
    """Return name and content of the latest session in benchmarks/results; None if there is none."""
    files = sorted(RESULTS.glob("*-gpu-session.json"))
    return (files[-1].name, json.loads(files[-1].read_text())) if files else None


def section(session: tuple[str, dict[str, Any]] | None) -> str:
    """Format a session as Markdown."""
    if session is None:
        return NOT_MEASURED
    name, summary = session
    machine, steps = summary["machine"], summary["steps"]
    gpu = f"{machine['gpu']} (compute capability {machine['capability']})"
    lines = [f"Measured on {gpu} by `benchmarks/gpu_session.py`; all figures are in benchmarks/results/{name}.", ""]
    states = {
        step: next((f"{key}: {result[key]}" for key in ("failed", "skipped") if key in result), "")
        for step, result in steps.items()
    }
    lines += [f"* `{step}` {state}." for step, state in states.items() if state]
    shapes = steps.get("compare", {}).get("shapes")
    if shapes:
        lines.append(f"* Every kernel equals the specification on at least {min(shapes.values())} random shapes.")
    lines += [
        f"* {steps[step][key]} {meaning}." for step, key, meaning in FIGURES if steps.get(step, {}).get(key) is not None
    ]
    rows = steps.get("kernels", {}).get("kernels", [])
    if rows:
        copied = steps["kernels"]["copy_gb_per_s"]
        lines += ["", f"A copy on the device moves {copied} GB/s.", ""]
        lines += ["| kernel | case | µs | share of copy bandwidth |", "|---|---|---|---|"]
        lines += [f"| `{row['kernel']}` | {row['case']} | {row['us']} | {row['share_of_copy']} |" for row in rows]
    peers = {key: value for key, value in steps.get("libraries", {}).items() if isinstance(value, dict)}
    if peers:
        lines += ["", "| against | µs | its µs | ratio |", "|---|---|---|---|"]
        lines += [f"| {key} | {row['ours_us']} | {row['theirs_us']} | {row['ratio']} |" for key, row in peers.items()]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("summary", type=Path, nargs="?", help="summary.json of a session")
    options = parser.parse_args(arguments)
    if options.summary is not None:
        summary = json.loads(options.summary.read_text())
        if summary["small"]:
            raise SystemExit(f"{options.summary} is a trial run with small shapes; run gpu_session.py without --small")
        target = RESULTS / f"{datetime.date.today().isoformat()}-gpu-session.json"
        target.write_text(json.dumps(summary, indent=1) + "\n")
    text = section(latest_session())
    PAGE.write_text(MARK.sub(lambda match: match[1] + text + match[2], PAGE.read_text()))
    print(text)


if __name__ == "__main__":
    main()
