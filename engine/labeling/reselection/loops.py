"""Compiled loops over the pixels of kept scores: one thread, Python's lock released."""

from __future__ import annotations

import numpy as np

from ....kernels.cpu.compiled import compiled

# Indices of maskmill.kernels.types.Rule.
ARGMAX, FOREGROUND, SINGLE, AGREE = range(4)


@compiled()
def decide(top, code, more, levels, selection, targets, label, confidence, counts):
    """Fill label and confidence (N,) of every pixel, add to ``counts`` (ignore + 1,), and return the kept confidence.

    Args:
        top: scored classes of the highest scores.
        code: codes of their nonconformity scores.
        more: numbers of further classes; these classes, best first; codes of their scores.
        levels: scores of the cells; cell of each class's own boundary.
        selection: largest code that each class's threshold accepts; index of the rule; background, -1 if there is none.
        targets: label of each scored class, the ignore index for one that is never emitted; ignore index last.
        label: labels.
        confidence: scores of the top classes.
        counts: pixels of each label.
    """
    num_more, more_class, more_code = more
    values, cells = levels
    limits, rule, background = selection
    ignore = targets[-1]
    first, total = 0, 0.0
    for i in range(top.size):
        k, c = top[i], code[i]
        confidence[i] = np.float32(1) - values[c - (c > cells[k])]
        holds_top = c <= limits[k]
        end = first + num_more[i]
        pixel_label = targets[k] if holds_top else ignore
        if end > first and rule != ARGMAX:
            size, last = (1, np.int64(k)) if holds_top else (0, np.int64(-1))
            winner, has_background = np.int64(-1), holds_top and k == background
            if holds_top and k != background:
                winner = np.int64(k)
            for j in range(first, end):
                rival = more_class[j]
                if more_code[j] <= limits[rival]:
                    size, last = size + 1, np.int64(rival)
                    if rival == background:
                        has_background = True
                    elif winner < 0:
                        winner = np.int64(rival)
            if rule == FOREGROUND:
                fallback = background if has_background else np.int64(-1)
                winner = winner if winner >= 0 else fallback
                pixel_label = targets[winner] if winner >= 0 else ignore
            elif rule == SINGLE:
                pixel_label = targets[last] if size == 1 else ignore
            else:
                pixel_label = targets[k] if size == 1 and holds_top else ignore
        first = end
        label[i] = pixel_label
        counts[pixel_label] += 1
        if pixel_label != ignore:
            total += confidence[i]
    return total


@compiled()
def weigh_inputs(confidence, shares, has_shares, values, ratio, scale, offset, share, dispersion):
    """Fill share and dispersion (N,) of every pixel; ``ratio * scale - offset`` is the dispersion at a share of 0."""
    for i in range(ratio.size):
        part = np.float32(1) - values[shares[i]] if has_shares else confidence[i]
        other_share = np.float32(1) - part
        spread = np.float32(ratio[i]) * scale - offset
        share[i] = part
        dispersion[i] = (spread if spread > 0 else np.float32(0)) * other_share * other_share
