"""Draw the pictures of scale.md from the results of ``benchmarks/million.py``.

    python docs/draw_scale.py benchmarks/results/2026-11-28-run-sizes.jsonl benchmarks/results/2026-11-28-million.jsonl

It prints the numbers that the page quotes.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

PICTURES = Path(__file__).resolve().parent / "pictures"
INK, ACCENT = "#7a7a7a", "#1b9e77"
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 240, 60, 44, 24

Points = Sequence[tuple[float, float]]


def main() -> None:
    """Draw both pictures."""
    draw_sizes(read_lines(sys.argv[1]))
    draw_million(read_lines(sys.argv[2]))


def read_lines(path: str) -> list[dict[str, float]]:
    """Read the lines of a result."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def draw_sizes(lines: list[dict[str, float]]) -> None:
    """Draw processor time per image over the size of a run."""
    sizes = sorted({line["images"] for line in lines})
    costs = [statistics.median(line["cpu_us_per_image"] for line in lines if line["images"] == size) for size in sizes]
    print("microseconds per image:", dict(zip(sizes, (round(cost) for cost in costs), strict=True)))
    points = list(zip(sizes, costs, strict=True))
    draw(
        "cost-per-image.svg", [(points, ACCENT)], "images of the run", "µs of processor time per image",
        [(size, f"{size:,.0f}") for size in sizes], axis_values(max(costs)), math.log10,
    )  # fmt: skip


def draw_million(lines: list[dict[str, float]]) -> None:
    """Draw memory and microseconds per committed row over the images of a run."""
    memory = [(line["images"], line["rss_mb"]) for line in lines if "rss_mb" in line]
    commits = [(line["stored"], line["seconds"]) for line in lines if "commit" in line]
    print("memory:", memory[1], memory[len(memory) // 2], memory[-1])
    print("seconds per commit:", [(stored, round(seconds, 2)) for stored, seconds in commits])
    ticks = [(value, f"{value:,.0f}") for value in axis_values(max(number for number, _ in memory))]
    draw("million-memory.svg", [(memory, ACCENT)], "images labeled", "memory, MB", ticks,
         axis_values(max(value for _, value in memory)))  # fmt: skip
    draw("million-commits.svg", [(commits, ACCENT)], "rows stored before the commit", "seconds per commit", ticks,
         axis_values(max(value for _, value in commits)))  # fmt: skip


def axis_values(largest: float) -> list[float]:
    """Return round values from 0 to above ``largest``."""
    step = 10 ** math.floor(math.log10(largest / 2))
    step *= next(factor for factor in (1, 2, 5, 10) if largest / (step * factor) <= 5)
    return [step * number for number in range(math.ceil(largest / step) + 1)]


def draw(
    name: str,
    series: Sequence[tuple[Points, str]],
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
    for points, color in series:
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
