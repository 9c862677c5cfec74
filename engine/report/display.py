"""Output of the commands: a progress bar on a terminal, plain lines in a log, JSON lines for programs, and tables."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from ...checks import name_list
from ..calibration.calibration import Calibration
from ..calibration.candidates import Candidate, Choice
from ..calibration.description import scenes_note
from ..calibration.objects import ObjectThresholds
from ..inputs.summary import SourceSummary
from ..labeling.progress import Progress as RunProgress
from ..model.taxonomy import Taxonomy
from ..reading.geotiff import split_window
from ..store.label_store import InputRow, LabelStore
from .contents import describe_store
from .evaluate import Quality
from .terminal import PlainConsole, figures_table, say

LOG_SECONDS = 10.0
"""Seconds between lines in a log."""


@contextmanager
def counter(what: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on a terminal, nothing elsewhere; yields the function that updates it with (done, total)."""
    console = PlainConsole(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda done, total: None
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def run_display(*, as_json: bool) -> Iterator[Callable[[RunProgress], None]]:
    """Yield an observer of a labeling run: a bar on a terminal, lines elsewhere."""
    console = PlainConsole(stderr=True)
    if console.is_terminal and not as_json:
        columns = (
            TextColumn("labeling"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("labeling", total=None, note="")
            yield lambda run: bar.update(task, completed=run.inputs, total=run.planned, note=_note(run))
        return
    last = [time.monotonic()]

    def line(run: RunProgress) -> None:
        if time.monotonic() - last[0] < LOG_SECONDS:
            return
        last[0] = time.monotonic()
        if as_json:
            event = {
                "event": "progress",
                "inputs": run.inputs,
                "planned": run.planned,
                "images": run.images,
                "rejects": sum(run.rejects.values()),
                "images_per_second": run.rate,
                "kept": run.kept_share,
                "seconds": run.seconds,
            }
            print(json.dumps(event), flush=True)
        else:
            say(f"labeled {run.inputs} of {run.planned}, {_note(run)}")

    yield line


def _note(run: RunProgress) -> str:
    rejects = sum(run.rejects.values())
    return f"{run.rate:.1f} images/s, kept {run.kept_share:.1%}, {rejects} rejected"


def print_summary(run: RunProgress, taxonomy: Taxonomy, store: Path, *, empty_shard: str | None = None) -> None:
    """Print the summary of a labeling run; ``empty_shard`` is its shard if that contains no input."""
    console = PlainConsole()
    rejects = sum(run.rejects.values())
    say(
        f"{store}: {run.images} images labeled in {run.seconds:.1f} s ({run.rate:.1f} images/s), "
        f"{run.duplicates} duplicates, {rejects} rejected"
    )
    if run.inputs == 0 and not run.drifted and not run.interrupted:
        if empty_shard is None:
            verb = "holds or has rejected" if run.earlier_rejects else "holds"
            say(f"nothing to do: the store {verb} every input already")
        else:
            say(f"nothing to do: no input of the source belongs to shard {empty_shard}")
        _print_rejects(run.earlier_rejects, "rejected by an earlier run as", store)
        return
    if run.images:
        table = figures_table("class", "pixels kept", "share of kept")
        total = max(int(run.kept.sum()), 1)
        for name, count in zip(taxonomy.targets, run.kept.tolist(), strict=True):
            table.add_row(name, f"{count:,}", f"{count / total:.1%}")
        console.print(table)
        say(
            f"kept {run.kept_share:.1%} of {run.pixels:,} pixels of these {run.images:,} images; "
            f"labels {_bytes(run.label_bytes)}, weights {_bytes(run.weight_bytes)}"
        )
        num_stored = LabelStore.open(store, warn=False).counts()["images"]
        if num_stored > run.images:
            say(f"all figures are of this run; the store holds {num_stored:,} images: `maskmill show {store}`")
        busy_seconds = sum(stage.busy for stage in run.stages) or 1.0
        parts = [f"{stage.name} {stage.busy / busy_seconds:.0%}" for stage in run.stages]
        if parts:
            say(f"time: {', '.join(parts)}; the bottleneck is {run.bottleneck}")
    say(run.summary().line())
    _print_rejects(run.rejects, "rejected as", store)
    _print_rejects(run.earlier_rejects, "rejected by an earlier run as", store)
    for warning in dict.fromkeys(run.warnings):
        say(f"warning: {warning}")
    if run.interrupted and not run.drifted:
        remaining_inputs = f"{run.planned - run.inputs:,} inputs are left"
        say(f"interrupted: finished images are stored, {remaining_inputs}; run the same command to resume")


def _print_rejects(rejects: Mapping[str, int], text: str, store: Path) -> None:
    for kind, count in sorted(rejects.items()):
        files = _files_of_windows(LabelStore.open(store), kind)
        of_files = f", windows of {len(files)} file{'s' * (len(files) > 1)}" if files else ""
        say(f"{text} {kind}: {count}{of_files} (see `maskmill show {store}`; --retry-rejects tries them again)")


def _files_of_windows(store: LabelStore, kind: str) -> set[str]:
    """Return the files whose windows were rejected as ``kind``."""
    parts = (split_window(row.uri) for row in store.rejects() if row.error == kind)
    return {part[0] for part in parts if part is not None}


def reject_lines(rejects: Iterable[InputRow]) -> Iterator[str]:
    """Yield a line for each reject; windows of one file that were rejected for one reason share a line."""
    groups: dict[tuple[str, str | None, str], list[str]] = {}
    for row in rejects:
        part, message = split_window(row.uri), row.message or ""
        name = row.uri if part is None else part[0]
        groups.setdefault((name, row.error, message.replace(row.uri, name)), []).append(row.uri)
    for (name, kind, message), uris in groups.items():
        number = f" ({len(uris)} windows)" if len(uris) > 1 and split_window(uris[0]) else ""
        yield f"{uris[0] if len(uris) == 1 else name}{number}: {kind}: {message}"


def print_estimate(run: RunProgress, total: int, *, as_json: bool) -> None:
    """Print the estimate of a dry run for the whole source."""
    scale = total / max(run.inputs, 1)
    hours = run.seconds * scale / 3600
    gigabytes = (run.label_bytes + run.weight_bytes) * scale / 1e9
    if as_json:
        figures = {
            "inputs": total,
            "sampled": run.inputs,
            "images_per_second": run.rate,
            "hours": hours,
            "gigabytes": gigabytes,
            "kept": run.kept_share,
            "rejects": sum(run.rejects.values()),
        }
        print(json.dumps(figures, indent=2))
        return
    say(
        f"{total:,} inputs; from {run.inputs} of them: {run.rate:.1f} images/s, {hours:.2f} hours and "
        f"{gigabytes:.2f} GB for the whole source; kept {run.kept_share:.1%}, {sum(run.rejects.values())} rejected"
    )


def print_calibration(calibration: Calibration, path: Path) -> None:
    """Print thresholds, held-out coverage and label quality of every class."""
    console, report = PlainConsole(), calibration.report
    table = figures_table("class", "img", "thresh", "cover", "95 %", "set", "kept", "acc", "IoU", "raw")
    for row in report["classes"]:
        if row["pixels"] == 0:
            continue
        threshold = f"{float(row['threshold']):.3g}" if "threshold" in row else "by cell"
        mark = "*" if row["threshold_from"] in ("foreground", "pooled") and calibration.group == "class" else ""
        cells = _held_out_cells(row["held_out"])
        table.add_row(row["class"], str(row["images"]), threshold + mark, *cells, _share(row["argmax"]["iou"]))
    labels, argmax = report["labels"] or {"miou_kept": None}, report["argmax"]
    cells = _held_out_cells(report["overall"])
    cells[-1] = _share(labels["miou_kept"])
    images, pooled = str(report["num_images"]), f"{calibration.pooled:.3g}"
    table.add_row("all", images, pooled, *cells, _share(argmax["miou"]), style="bold")
    console.print(table)
    exception = f", without the {1 - argmax['kept']:.1%} whose top class is dropped" if argmax["kept"] < 1 else ""
    say(
        f"{path}: alpha {calibration.alpha}, group {calibration.group}, unit {calibration.unit}, rule "
        f"{calibration.rule}; mean coverage per image {_share(report['image_mean_coverage'])}, accuracy of the top "
        f"class of every pixel {_share(argmax['accuracy'])}{exception}"
    )
    if (rates := report.get("false_labels")) is not None:
        say(
            f"share of wrong labels per held-out image: mean {_with_interval(rates, 'risk')}, "
            f"{_share(rates['risk_of_labeled_images'])} over images with at least 1 % labeled; "
            f"{rates['empty_images']:.1%} of the images have less; kept {rates['kept']:.1%} of an image on average"
        )
    if (misses := report.get("guaranteed_miss_rates")) is not None:
        rows = zip(report["classes"], misses, strict=True)
        above = [f"{row['class']} {rate:.2f}" for row, rate in rows if rate and rate > float(calibration.level) + 1e-9]
        if above:
            say(f"smallest miss rates that the images support, above alpha: {name_list(above)}")
    say(f"promise: {report['promise']}")
    if "source" in report:
        say(SourceSummary.from_json(report["source"]).line())
    if (note := scenes_note(calibration.counts)) is not None:
        say(f"note: {note}")
    if calibration.group == "class" and any(
        row["threshold_from"] in ("foreground", "pooled") and row["pixels"] for row in report["classes"]
    ):
        say(f"* seen in fewer than {report['min_images']} images: shares a threshold (--min-images N changes that)")
    for warning in report["warnings"]:
        say(f"warning: {warning}")


def print_object_thresholds(thresholds: ObjectThresholds, path: Path) -> None:
    """Print the threshold of every class of objects, and what was measured with it."""
    for name, limit in thresholds.thresholds.items():
        counts = thresholds.measured.get(name)
        if counts is None:
            say(f"{name}: never found, none kept")
            continue
        value = "score x quality" if thresholds.by == "both" else thresholds.by
        text = f"none kept, {thresholds.reason(name)}" if limit is None else f"{value} {limit:.3f} and more"
        unseen = ""
        if limit is not None and counts.get("held_out_kept") == 0:
            unseen = "; with thresholds from half of the images, no right object is kept"
        elif limit is not None and "held_out_wrong" in counts:
            unseen = (
                f"; on the other half of the images {counts['held_out_wrong']:.3f} ± {counts['held_out_spread']:.3f}"
            )
        say(
            f"{name}: {text}; {counts['kept']:.0f} of {counts['objects']:.0f} objects on {counts['images']:.0f} images "
            f"kept, {counts['wrong']:.0f} of them wrong{unseen}"
        )
    if not thresholds.keeps_any:
        say(f"warning: {path} keeps no object: label more images, or choose a larger --alpha")
        return
    say(f"{path}: at most {thresholds.alpha} of the objects wrong, on average over images in which a class is found")


def print_choice(choice: Choice, path: Path | None, mapping: str = "") -> None:
    """Print the selections that no other one beats, the recommendation, and how to use it.

    ``mapping`` holds the options of the class mapping, such as ``--taxonomy FILE``, which labeling takes as well.
    """
    table = figures_table("selection", "kept", "accuracy", "95 %", "mIoU", mark=True)
    best = choice.recommended
    for point in choice.leading:
        table.add_row(
            "→" if point is best else "",
            str(point.candidate),
            f"{point.kept:.3f}",
            f"{point.accuracy:.3f}",
            _range(point.accuracy_interval),
            f"{point.miou:.3f}",
            style="bold" if point is best else None,
        )
    PlainConsole().print(table)
    say(f"→ for the goal {choice.goal}: {best.candidate}; label with {_label_options(best.candidate, path, mapping)}")
    for note in choice.notes:
        say(f"note: {note}")
    if choice.source is not None:
        say(choice.source.line())
    for warning in choice.warnings:
        say(f"warning: {warning}")


def _label_options(candidate: Candidate, path: Path | None, mapping: str) -> str:
    also = mapping and f" {mapping}"
    if candidate.method == "argmax":
        return f"`maskmill label{also}`, without a selection"
    if candidate.method == "threshold":
        return f"--select threshold --threshold {candidate.confidence:g}{also}"
    if path is not None:
        return f"--select conformal --calibration {shlex.quote(str(path))}{also}"
    return (
        "the calibration of `maskmill calibrate "
        f"--alpha {candidate.alpha} --group {candidate.group} --unit {candidate.unit} --rule {candidate.rule} "
        f"--fallback {candidate.fallback} --unseen {candidate.unseen} --on-small-n max{also}`{also and ' and'}{also}"
    )


def _with_interval(raw: dict[str, Any], key: str) -> str:
    """Format a figure with its 95 % interval over images, if there is one."""
    bounds = raw.get(f"{key}_interval")
    return _share(raw[key]) + (f" ({bounds[0]:.3f}–{bounds[1]:.3f})" if bounds else "")


def _print_coverage(coverage: dict[str, Any]) -> None:
    table = figures_table("class", "images", "coverage", "95 %")
    for row in coverage["rows"]:
        missed = row["interval"] is not None and row["interval"][1] < coverage["target"]
        share = Text(f"{row['coverage']:.3f}!", "red") if missed else f"{row['coverage']:.3f}"
        table.add_row(row["class"], str(row["images"]), share, _range(row["interval"]))
    PlainConsole().print(table)
    say(
        f"coverage of the calibration's prediction sets: {coverage['target']:g} is the target, ! marks a class below "
        f"it by more than the interval; mean coverage per image {_share(coverage['image_mean'])}"
    )


def _held_out_cells(held_out: dict[str, Any] | None) -> list[str | Text]:
    if held_out is None:
        return ["-"] * 6
    coverage = f"{held_out['coverage']:.3f}"
    return [
        Text(f"{coverage}!", "red") if held_out["missed"] else coverage,
        _range(held_out["interval"]),
        f"{held_out['mean_set_size']:.1f}",
        f"{held_out['kept']:.2f}",
        _share(held_out["accuracy_kept"]),
        _share(held_out.get("iou_kept")),
    ]


def print_quality(quality: Quality) -> None:
    """Print label quality per class and overall."""
    console, raw = PlainConsole(), quality.to_json()
    table = figures_table("class", "pixels", "kept", "IoU of kept", "IoU of all")
    for row in raw["classes"]:
        if row["pixels"]:
            table.add_row(
                row["class"], f"{row['pixels']:,}", *(_share(row[key]) for key in ("kept", "iou_kept", "iou_all"))
            )
    console.print(table)
    say(
        f"{raw['num_images']} images: mIoU of kept pixels {_with_interval(raw, 'miou_kept')}, accuracy of kept "
        f"{_with_interval(raw, 'accuracy_kept')}, kept {_with_interval(raw, 'kept')}, mIoU of all "
        f"{_share(raw['miou_all'])}, accuracy of all {_with_interval(raw, 'accuracy_all')}"
    )
    if quality.coverage is not None:
        _print_coverage(quality.coverage)
    if quality.source is not None:
        say(quality.source.line())
        if doubt := quality.source.doubt(raw["accuracy_kept"]):
            say(f"warning: {doubt}")
    for note in quality.notes:
        say(f"note: {note}")


def print_store(store: LabelStore) -> None:
    """Print the contents of a store and how it was made."""
    summary, names = store.summary(), ", ".join(map(str, store.folders))
    rejects = ", ".join(f"{count} {kind}" for kind, count in summary["rejects"].items()) or "none"
    say(
        f"{names}: {summary['images']:,} images of {summary['inputs']:,} inputs, {_bytes(summary['bytes'])}, "
        f"rejects: {rejects}"
    )
    for line in describe_store(store):
        say(f"  {line}")
    for line in reject_lines(store.rejects()):
        say(f"  rejected {line}")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _range(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.2f}–{interval[1]:.2f}"


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("unreachable")
