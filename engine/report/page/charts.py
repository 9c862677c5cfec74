"""SVG charts of the report, drawn by small functions; colors come from the page's style sheet, so both themes work.

Strips stretch to the width of a table cell: their strokes keep their width (``vector-effect``), and a dot is a line
without length and with round ends. Charts have a fixed shape and axes of their own. Every text is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

_WIDTH, _HEIGHT = 420, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 12, 38
_BASE = _HEIGHT - _BOTTOM


def share_strip(share: float, kind: str, *, thin: bool = False) -> Markup:
    """Draw a share in [0, 1] as a bar; ``kind`` is its class in the style sheet. A larger share is cut off at 1."""
    width = 100 * min(max(share, 0.0), 1.0)
    bars = [_tag("rect", kind="track", width=100, height=10), _tag("rect", kind=kind, width=width, height=10)]
    return _strip("strip thin" if thin else "strip", 10, bars)


def interval_strip(
    value: float, interval: Sequence[float] | None, target: float | None, low: float, *, missed: bool
) -> Markup:
    """Draw a share with its interval on an axis from ``low`` to 1, and the target as a vertical line."""

    def place(share: float) -> float:
        return 100 * (min(max(share, low), 1.0) - low) / (1 - low)

    parts = [_tag("line", kind="axis", x1=0, x2=100, y1=9, y2=9)]
    if target is not None:
        parts.append(_tag("line", kind="target", x1=place(target), x2=place(target), y1=0, y2=18))
    if interval is not None:
        parts.append(_tag("line", kind="interval", x1=place(interval[0]), x2=place(interval[1]), y1=9, y2=9))
    parts.append(_tag("path", kind="dot", d=f"M{_number(place(value))} 9h0.001"))
    return _strip("strip tall missed" if missed else "strip tall", 18, parts)


def histogram(values: Sequence[float] | NDArray[np.float64], labels: Sequence[str], x_title: str, title: str) -> Markup:
    """Draw one bar per count, or per share if none exceeds 1, with a label below each."""
    top = max([float(value) for value in values], default=0.0) or 1.0
    ticks = [f"{top * share:,.0f}" if top > 1 else f"{100 * top * share:.0f} %" for share in (0, 0.5, 1)]
    width = (_WIDTH - _LEFT - _RIGHT) / max(len(values), 1)
    parts = [_y_axis((0.0, 0.5, 1.0), ticks)]
    for index, (value, label) in enumerate(zip(values, labels, strict=True)):
        x, height = _LEFT + index * width, (_BASE - _TOP) * float(value) / top
        parts.append(
            _tag("rect", kind="bar", x=x + 0.08 * width, y=_BASE - height, width=0.84 * width, height=height, rx=1.5)
        )
        parts.append(_text(x + 0.5 * width, _BASE + 16, label, "middle"))
    return _chart(parts, title, x_title)


def curve(
    points: Sequence[tuple[float, float]],
    marks: Sequence[tuple[float, float, str]],
    *,
    x_title: str,
    y_title: str,
    title: str,
) -> Markup:
    """Draw a line through (x, y) with x in [0, 1], and named marks; the y axis begins at 0."""
    top = max([y for _, y in points] + [y for _, y, _ in marks] + [1e-3]) * 1.1
    parts = [
        _y_axis((0.0, 0.5, 1.0), [f"{100 * top * share:.2g} %" for share in (0, 0.5, 1)]),
        *_x_ticks((0, 0.25, 0.5, 0.75, 1), ("0 %", "25 %", "50 %", "75 %", "100 %")),
        _text(_LEFT + 6, _TOP + 12, y_title, "start"),
    ]
    path = " ".join(f"{'L' if index else 'M'}{_x(x):.1f} {_y(y / top):.1f}" for index, (x, y) in enumerate(points))
    parts.append(_tag("path", kind="line", d=path))
    for x, y, name in marks:
        is_right = x > 0.6
        place = _x(x) + (-10 if is_right else 10), _y(y / top) - (10 if is_right else -4)
        parts.append(_tag("circle", kind="mark", cx=_x(x), cy=_y(y / top), r=5.5))
        parts.append(_text(*place, name, "end" if is_right else "start", "strong"))
    return _chart(parts, title, x_title)


def mirrored(
    above: NDArray[np.float64],
    below: NDArray[np.float64],
    edges: NDArray[np.float64],
    names: tuple[str, str],
    x_title: str,
    title: str,
) -> Markup:
    """Draw two distributions over the same bins, one upward and one downward, each normalized by its total."""
    middle, width = (_BASE + _TOP) / 2, (_WIDTH - _LEFT - _RIGHT) / len(above)
    shares = [values / max(float(values.sum()), 1e-9) for values in (above, below)]
    unit = ((_BASE - _TOP) / 2 - 2) / max(float(np.max(shares)), 1e-9)
    parts = [_tag("line", kind="axis", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=middle, y2=middle)]
    for side, kind in enumerate(("bar", "bar second")):
        for index, share in enumerate(shares[side]):
            height = unit * float(share)
            y = middle + 1 if side else middle - height - 1
            x = _LEFT + (index + 0.06) * width
            parts.append(_tag("rect", kind=kind, x=x, y=y, width=0.88 * width, height=height, rx=1))
    span = float(edges[-1] - edges[0])
    parts += [
        _text(_WIDTH - _RIGHT, _TOP + 12, names[0], "end", "strong"),
        _text(_WIDTH - _RIGHT, _BASE - 4, names[1], "end", "strong"),
        *_x_ticks((0, 0.5, 1), [f"{edges[0] + span * share:.2f}" for share in (0, 0.5, 1)]),
    ]
    return _chart(parts, title, x_title)


def plane(counts: NDArray[np.int64], *, y_top: float, title: str) -> Markup:
    """Draw PCOS' plane from counts (2, columns, rows) of the reliable cluster and the other one, on a log scale.

    A cell has the color of the cluster with more of its pixels.
    """
    _, columns, rows = counts.shape
    width, height = (_WIDTH - _LEFT - _RIGHT) / columns, (_BASE - _TOP) / rows
    total = counts.sum(axis=0)
    level = np.log1p(total) / max(float(np.log1p(total).max()), 1e-9)
    parts = [
        _y_axis((0.0, 1.0), ["0", f"{y_top:.2g}"]),
        *_x_ticks((0, 0.5, 1), ("0", "0.5", "1")),
        _text(_LEFT + 6, _BASE - 8, "↑ dispersion of the other classes", "start"),
    ]
    for column, row in np.argwhere(total > 0).tolist():
        kind = "cell" if counts[0, column, row] >= counts[1, column, row] else "cell second"
        x, y = _LEFT + column * width, _BASE - (row + 1) * height
        opacity = 0.12 + 0.88 * float(level[column, row])
        parts.append(_tag("rect", kind=kind, x=x, y=y, width=width, height=height, fill_opacity=opacity))
    return _chart(parts, title, "confidence (share of the top class)")


def matrix(values: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str], title: str) -> Markup:
    """Draw shares (rows, columns) as squares, darker for more, each with its text in percent from 1 % on."""
    cell, margin = 30, 8 + 7.2 * max(len(name) for name in rows)
    top = 14 + 5.8 * max(len(name) for name in columns)
    width, height = margin + cell * len(columns) + 34, top + cell * len(rows) + 4
    parts = [_text(margin - 6, top + cell * (index + 0.5) + 4, name, "end") for index, name in enumerate(rows)]
    for index, name in enumerate(columns):
        x, y = margin + cell * (index + 0.5) + 4, top - 6
        parts.append(_tag("text", name, x=x, y=y, transform=f"rotate(-62 {_number(x)} {_number(y)})"))
    for row, column in np.ndindex(*values.shape):
        share = float(values[row, column])
        x, y = margin + column * cell, top + row * cell
        kind = "cell" if rows[row] == columns[column] else "cell wrong"
        opacity = 0.05 + 0.95 * share**0.6
        parts.append(
            _tag("rect", kind=kind, x=x + 1, y=y + 1, width=cell - 2, height=cell - 2, rx=2, fill_opacity=opacity)
        )
        if share >= 0.01:
            text = f"{100 * share:.0f}"
            parts.append(_text(x + cell / 2, y + cell / 2 + 4, text, "middle", "inside" if share > 0.4 else "strong"))
    size = {"viewBox": f"0 0 {width:.0f} {height:.0f}", "width": f"{width:.0f}", "height": f"{height:.0f}"}
    return _tag("svg", *parts, kind="chart matrix", role="img", aria_label=title, **size)


def _x(share: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * share


def _y(share: float) -> float:
    return _BASE - (_BASE - _TOP) * share


def _x_ticks(shares: Sequence[float], names: Sequence[str]) -> list[Markup]:
    anchors = ["start" if share == 0 else "end" if share == 1 else "middle" for share in shares]
    return [
        _text(_x(share), _BASE + 16, name, anchor) for share, name, anchor in zip(shares, names, anchors, strict=True)
    ]


def _y_axis(shares: Sequence[float], names: Sequence[str]) -> Markup:
    parts = []
    for share, name in zip(shares, names, strict=True):
        parts.append(_tag("line", kind="grid", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=_y(share), y2=_y(share)))
        parts.append(_text(_LEFT - 6, _y(share) + 4, name, "end"))
    return Markup("").join(parts)


def _strip(kind: str, height: int, parts: Iterable[Markup]) -> Markup:
    box = {"viewBox": f"0 0 100 {height}", "preserveAspectRatio": "none"}
    return _tag("svg", *parts, kind=kind, aria_hidden="true", **box)


def _chart(parts: Sequence[Markup], title: str, x_title: str) -> Markup:
    below = _text(_LEFT + (_WIDTH - _LEFT - _RIGHT) / 2, _HEIGHT - 4, x_title, "middle")
    box = {"viewBox": f"0 0 {_WIDTH} {_HEIGHT}"}
    return _tag("svg", *parts, below, kind="chart", role="img", aria_label=title, **box)


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> Markup:
    return _tag("text", text, kind=kind, x=x, y=y, text_anchor=anchor)


def _tag(name: str, *content: str, kind: str = "", **attributes: str | float) -> Markup:
    """Write an element of the class ``kind``; content and attributes are escaped; ``_`` in a name becomes ``-``."""
    written_attributes = {"class": kind, **attributes} if kind else attributes
    pairs = [
        f' {key.replace("_", "-")}="{escape(value if isinstance(value, str) else _number(value))}"'
        for key, value in written_attributes.items()
    ]
    return Markup(f"<{name}{''.join(pairs)}>{''.join(escape(part) for part in content)}</{name}>")


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
