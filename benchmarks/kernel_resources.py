"""List the resources of the CUDA kernels and the time that their memory traffic alone would take. Needs no device.

    python benchmarks/kernel_resources.py [--write] [--json]

Registers, shared memory and spills are reported by NVRTC's assembler, the largest over all architectures; bytes per
pixel are counted from the arrays that a launch reads and writes, each once; times are these bytes over the memory
bandwidth. ``--write`` replaces the table in docs/kernels-gpu.md.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from maskmill.kernels.gpu.device import INSTANTIATIONS
from maskmill.kernels.gpu.resources import ARCHITECTURES, compiled_resources

PAGE = Path(__file__).resolve().parents[1] / "docs" / "kernels-gpu.md"
MARK = re.compile(r"(<!-- table -->\n).*?(<!-- end of table -->)", re.DOTALL)

H100, T4 = 3.35e12, 320e9
"""Memory bandwidth in bytes per second, from the data sheets (H100 SXM)."""

IMAGE = 512 * 512
SCORES = 10**8
PHOTO, INPUT = (768, 1024), (384, 512)
BINS = 65536


@dataclass(frozen=True)
class Launch:
    """One kernel on one shape."""

    source: str
    kernel: str
    unit: str
    """Name of the unit: pixel, score, position, row."""
    units: int
    read: float
    """Bytes read per unit."""
    written: float
    """Bytes written per unit."""
    shape: str


def decode(kernel: str, channels: int, source: int, element: int, outputs: int, note: str) -> Launch:
    """Describe a launch of class_stats to 512 x 512."""
    read = channels * source * source * element / IMAGE
    shape = f"{channels} classes of {source}² to 512², {note}"
    return Launch("class_stats", kernel, "pixel", IMAGE, read, outputs, shape)


def image(source: str, kernel: str, read: float, written: float, note: str, maps: int = 1) -> Launch:
    """Describe a launch over maps of 512 x 512."""
    shape = f"{maps} maps of 512²" if maps > 1 else "512²"
    return Launch(source, kernel, "pixel", maps * IMAGE, read, written, f"{shape}, {note}" if note else shape)


LAUNCHES = (
    decode("class_stats<fp16, SOFTMAX, STRIDED, SUMS, 4, 2>", 150, 128, 2, 9, "CHW; label, share, dispersion"),
    decode("class_stats<fp16, SOFTMAX, GROUPED, SUMS, 4, 2>", 150, 128, 2, 9, "CHW; label, share, dispersion"),
    decode("class_stats<fp16, SOFTMAX, VECTOR, SUMS, 4, 2>", 152, 128, 2, 9, "HWC; label, share, dispersion"),
    decode("class_stats<fp16, SOFTMAX, STRIDED, SECONDS, 4, 2>", 150, 128, 2, 10, "CHW; the same and second"),
    decode("class_stats<fp16, SOFTMAX, STRIDED, TOP, 4, 2>", 150, 128, 2, 1, "CHW; label"),
    decode("class_stats<float, SOFTMAX, STRIDED, SUMS, 4, 2>", 21, 128, 4, 5, "CHW; label, confidence"),
    decode("class_stats<float, SIGMOID, STRIDED, TOP, 4, 2>", 21, 128, 4, 5, "CHW; label, confidence"),
    decode("class_stats<float, NONE, STRIDED, TOP, 4, 2>", 21, 128, 4, 5, "CHW; label, confidence"),
    decode("class_stats<float, SOFTMAX, STRIDED, SUMS, 1, 1>", 21, 512, 4, 5, "CHW; label, confidence"),
    Launch("scores", "score_counts<true>", "score", SCORES, 4, 0, "10⁸ scores, pooled, first pass"),
    Launch("scores", "score_counts<false>", "score", SCORES, 4, 0, "10⁸ scores, pooled, second pass"),
    Launch("scores", "largest_weight", "score", SCORES, 8, 0, "10⁸ weights"),
    Launch("scores", "weighted_score_counts", "score", SCORES, 12, 0, "10⁸ scores, pooled; the counts stay in cache"),
    Launch("scores", "add_fixed_point", "bin", BINS, 16, 8, "one row"),
    Launch("scores", "select_prefix<uint64>", "row", 151, 8 * BINS, 16, "151 rows"),
    Launch("scores", "kth_score<uint64>", "row", 151, 8 * BINS, 4, "151 rows"),
    Launch(
        "scores",
        "position_quantiles",
        "position",
        IMAGE,
        8 * 4 * 732,
        4,
        "732 scores per position of 512², read 8 times",
    ),
    image("pcos", "pcos_gram<4>", 8, 0, ""),
    image("pcos", "pcos_clusters<4>", 8, 0, ""),
    image("pcos", "pcos_weights<4>", 8, 5, "without clusters"),
    image("peaks", "map_extremes", 4, 0, "", maps=20),
    image("peaks", "zero_padded_maximum", 4, 4, "", maps=20),
    image("peaks", "peak_candidates", 4, 1 / 8, "min_distance 10", maps=20),
    image("peaks", "settle_peaks", 1 / 8, 0, "min_distance 10", maps=20),
    image("confusion", "confusion_counts<true>", 2, 0, "8-bit maps of up to 90 classes"),
    image("confusion", "confusion_counts<false>", 2, 0, "8-bit maps of more classes; the counts stay in cache"),
    image("binned", "binned_counts", 10, 0, "8-bit truth, 8-bit top class; the counts stay in cache"),
    image("cover", "perturbation_cover<4>", 1, 1, "with a reliable mask"),
    image("quantize", "quantize_weights<4>", 6, 1, "with reliable mask and label"),
    Launch(
        "pixels",
        "resize_columns",
        "pixel",
        INPUT[0] * INPUT[1],
        3 * PHOTO[0] * PHOTO[1] / (INPUT[0] * INPUT[1]),
        12 * PHOTO[0] / INPUT[0],
        "768 x 1024 to 384 x 512",
    ),
    Launch(
        "pixels",
        "resize_rows_normalize",
        "pixel",
        INPUT[0] * INPUT[1],
        12 * PHOTO[0] / INPUT[0],
        12,
        "768 x 1024 to 384 x 512",
    ),
)


def measure() -> list[dict[str, Any]]:
    """Return one entry per launch: its resources over all architectures and the times of its traffic."""
    listed = {
        source: tuple(launch.kernel for launch in LAUNCHES if launch.source == source) for source in INSTANTIATIONS
    }
    compiled = {
        source: [compiled_resources(source, architecture, names) for architecture in ARCHITECTURES]
        for source, names in listed.items()
    }
    entries = []
    for launch in LAUNCHES:
        reports = [report[launch.kernel] for report in compiled[launch.source]]
        moved = launch.read + launch.written
        entries.append(
            {
                "kernel": launch.kernel,
                "shape": launch.shape,
                "unit": launch.unit,
                "registers": [min(r.registers for r in reports), max(r.registers for r in reports)],
                "shared_bytes": max(r.shared for r in reports),
                "spilled_bytes": max(r.spilled for r in reports),
                "bytes_per_unit": moved,
                "h100_us": moved * launch.units / H100 * 1e6,
                "t4_us": moved * launch.units / T4 * 1e6,
            }
        )
    kernels = [kernel for reports in compiled.values() for report in reports for kernel in report.values()]
    summary = {
        "kernels": len(LAUNCHES),
        "most_registers": max(kernel.registers for kernel in kernels),
        "most_shared_bytes": max(kernel.shared for kernel in kernels),
        "spilled_bytes": sum(kernel.spilled for kernel in kernels),
    }
    return [*entries, summary]


def bytes_text(count: float) -> str:
    return f"{count:,.0f}" if count >= 100 else f"{count:.3g}"


def table(entries: list[dict[str, Any]]) -> str:
    """Format the entries as Markdown."""
    *rows, summary = entries
    architectures = ", ".join(map(str, ARCHITECTURES))
    lines = [
        (
            f"Compiled by NVRTC {version('nvidia-cuda-nvrtc')} for compute capabilities {architectures}. Over these "
            f"{summary['kernels']} kernels and all architectures: {summary['spilled_bytes']} bytes spilled, at most "
            f"{summary['most_registers']} registers per thread and {summary['most_shared_bytes']:,} bytes of shared "
            "memory per block. Times are computed, not measured."
        ),
        "",
        "| kernel | shape | registers | shared, bytes | spilled | bytes moved | H100, µs | T4, µs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        least, most = row["registers"]
        registers = str(most) if least == most else f"{least}-{most}"
        lines.append(
            f"| `{row['kernel']}` | {row['shape']} | {registers} | {row['shared_bytes']:,} | {row['spilled_bytes']} "
            f"| {bytes_text(row['bytes_per_unit'])} per {row['unit']} | {row['h100_us']:,.1f} | {row['t4_us']:,.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="replace the table in docs/kernels-gpu.md")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    entries = measure()
    if options.write:
        text = table(entries)
        PAGE.write_text(MARK.sub(lambda match: match[1] + text + match[2], PAGE.read_text()))
    print(json.dumps(entries, indent=1) if options.json else table(entries))


if __name__ == "__main__":
    main()
