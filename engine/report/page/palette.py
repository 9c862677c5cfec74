"""Colors of classes that people with any color vision can tell apart.

The first seven are those of Okabe and Ito (2008). The others were chosen one after the other: each is the color with
the largest distance in OKLab to all earlier ones, seen with normal vision and with simulated protanopia, deuteranopia
and tritanopia (Machado et al. 2009). The first sixteen are as distinct as Okabe and Ito's; no palette stays distinct
for many more classes, so the page names the class under the pointer as well.
"""

from __future__ import annotations

_COLORS = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#f0e442", "#772211", "#66ffff", "#114477",
    "#99ccaa", "#006666", "#994400", "#bbeeaa", "#22ddee", "#3399ee", "#77bb77", "#cccc66", "#5544aa", "#557755",
    "#663344", "#994488", "#5577dd", "#996688",
)  # fmt: skip
_BACKGROUND = "#9aa0a6"


def class_palette(num_classes: int, background: int | None = None) -> list[str]:
    """Return a color per class as ``#rrggbb``; the background class is gray. Colors repeat after 24 classes."""
    colors, position = [], 0
    for index in range(num_classes):
        if index == background:
            colors.append(_BACKGROUND)
        else:
            colors.append(_COLORS[position % len(_COLORS)])
            position += 1
    return colors
