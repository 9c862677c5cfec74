r"""Draw the pictures of scale.md from the results of ``benchmarks/million.py`` and ``benchmarks/run_sizes.py``.

    cd benchmarks/results
    python ../../docs/draw_scale.py 2026-11-28-run-sizes.jsonl 2026-11-28-run-sizes-photos.jsonl \
        2026-11-28-run-sizes-photos-100000.jsonl 2026-11-28-million-local.jsonl 2026-11-28-million-array.jsonl

It prints the numbers that the page quotes.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PICTURES = Path(__file__).resolve().parent / "pictures"
INK, COLORS = "#7a7a7a", ("#1b9e77", "#d95f02", "#7570b3")
FEWEST_ROWS = 2048
"""Rows of the smallest commits that are drawn."""
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 240, 60, 44, 24

Points = Sequence[tuple[float, float]]
Lines = list[dict[str, float]]


def main() -> None:
    """Draw the pictures."""
    sizes, photos, later, local, array = map(read_lines, sys.argv[1:6])
    draw_sizes({"no time in the model": sizes, "deeplabv3-257": photos, "deeplabv3-257, second series": later})
    draw_million({"local": local, "array": array})


def read_lines(path: str) -> Lines:
    """Read the lines of a result."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def draw_sizes(runs: Mapping[str, Lines]) -> None:
    """Draw processor time per image over the size of a run, as a share of that of the largest."""
    series: dict[str, Points] = {}
    for name, lines in runs.items():
        costs = {
            size: statistics.median(line["cpu_us_per_image"] for line in lines if line.get("images") == size)
            for size in sorted({line["images"] for line in lines if line.get("images", 0) >= 1000})
        }
        print(name, "microseconds per image:", {size: round(cost) for size, cost in costs.items()})
        series[name] = [(size, 100 * cost / costs[max(costs)]) for size, cost in costs.items()]
    sizes = sorted({size for points in series.values() for size, _ in points})
    draw(
        "cost-per-image.svg", series, "images of the run", "processor time per image, % of that of the largest run",
        [(size, f"{size:,.0f}") for size in sizes], axis_values(120), math.log10,
    )  # fmt: skip


def draw_million(runs: Mapping[str, Lines]) -> None:
    """Draw memory and microseconds of a commit per row over the images of a run."""
    memory = {name: [(line["images"], line["rss_mb"]) for line in lines if "rss_mb" in line]
              for name, lines in runs.items()}  # fmt: skip
    # the first commits of a run are small, and would hide the others
    commits = {name: [(line["stored"], 1e6 * line["seconds"] / line["commit"]) for line in lines
                      if line.get("commit", 0) >= FEWEST_ROWS] for name, lines in runs.items()}  # fmt: skip
    for name, points in memory.items():
        print(name, "memory:", [next((point for point in points if point[0] >= images), None)
                                for images in (0, 1e5, 5e5, 9e5)])  # fmt: skip
        print(name, "microseconds per row:", [(stored, round(cost, 1)) for stored, cost in commits[name]])
    ticks = [(value, f"{value:,.0f}") for value in axis_values(1_000_000)]
    draw("million-memory.svg", memory, "images labeled", "memory, MB", ticks, heights(memory))
    draw("million-commits.svg", commits, "rows stored before the commit", "microseconds of a commit per row", ticks,
         heights(commits))  # fmt: skip


def heights(series: Mapping[str, Points]) -> list[float]:
    """Return the values of the vertical axis."""
    return axis_values(max(value for points in series.values() for _, value in points))


def axis_values(largest: float) -> list[float]:
    """Return round values from 0 to above ``largest``."""
    step = 10 ** math.floor(math.log10(largest / 2))
    step *= next(factor for factor in (1, 2, 5, 10) if largest / (step * factor) <= 5)
    return [step * number for number in range(math.ceil(largest / step) + 1)]


def draw(
    name: str,
    series: Mapping[str, Points],
    x_title: str,
    y_title: str,
    x_ticks: Sequence[tuple[float, str]],
    y_ticks: Sequence[float],
    scale: Callable[[float], float] = float,
) -> None:
    """Draw lines with points; reads on light and dark pages."""
    low, high = scale(x_ticks[0][0]), scale(x_ticks[-1][0])

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (scale(x) - low) / (high - low) * (WIDTH - LEFT - 40),
            HEIGHT - BOTTOM - y / y_ticks[-1] * (HEIGHT - BOTTOM - TOP),
        )

    parts = [f'<text x="{LEFT}" y="14">{y_title}</text>',
             f'<text x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{x_title}</text>']  # fmt: skip
    for value in y_ticks:
        y = place(x_ticks[0][0], value)[1]
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 20}" y1="{y:.1f}" y2="{y:.1f}" stroke="{INK}" opacity="0.25"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 5:.1f}" text-anchor="end">{value:g}</text>')
    for value, text in x_ticks:
        parts.append(
            f'<text x="{place(value, 0)[0]:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{text}</text>'
        )
    for number, (title, points) in enumerate(series.items()):
        color = COLORS[number]
        parts.append(f'<text x="{WIDTH - 20}" y="{14 + 18 * number}" text-anchor="end" fill="{color}">{title}</text>')
        places = [place(*point) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in places]
    body = "\n".join(parts)
    style = f'font-family="system-ui, sans-serif" font-size="14" fill="{INK}"'
    (PICTURES / name).write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {style}>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    main()
