"""Draw the pictures of concepts.md from the tiles, the teacher and the labels that ``maskmill demo`` left.

    python docs/draw_concepts.py demo-output/earth

It prints the numbers that the page quotes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskmill import kernels
from maskmill.engine.calibration.calibration import Calibration
from maskmill.engine.calibration.scores.observe import true_scores
from maskmill.engine.inputs.images import decode_image
from maskmill.engine.labeling.selection import Selection, select
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.report.overlay import colorize
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.trainer.demo import earth

PICTURES = Path(__file__).resolve().parent / "pictures"
ALPHA = 0.1
NUM_SPLITS = 500
INK, ACCENT, MUTED = "#7a7a7a", "#1b9e77", "#d95f02"
SET_COLORS = np.array([(40, 40, 40), (27, 158, 119), (217, 95, 2), (230, 171, 2)], np.uint8)
"""Colors of prediction sets with 0, 1, 2, and more classes."""


def main() -> None:
    """Draw all pictures."""
    folder = Path(sys.argv[1])
    PICTURES.mkdir(exist_ok=True)
    bundle = Bundle.load(folder / "bundle")
    taxonomy = Taxonomy.load(folder / "taxonomy.toml", bundle)
    predictor = SemanticPredictor(bundle, OnnxSession(bundle, provider="cpu"))
    draw_sets(folder, predictor, taxonomy, Calibration.load(folder / "calibration.json"))
    photos = [scores_of(folder / name, predictor, taxonomy) for name in ("calibration", "scored")]
    scores = [*photos[0], *photos[1]]
    draw_splits(scores)
    relief, zones = earth.load_picture("shadedrelief.jpg"), earth.load_zones()
    tiles = earth.grid(earth.EAST)
    order = np.random.default_rng(0).permutation(len(tiles))[len(photos[0]) :]
    earth.write_tiles(folder / "relief", relief, zones, [tiles[index] for index in order])
    draw_shift(photos[0], photos[1], scores_of(folder / "relief", predictor, taxonomy))


def scores_of(folder: Path, predictor: SemanticPredictor, taxonomy: Taxonomy) -> list[NDArray[np.float32]]:
    """Nonconformity scores of the true classes of every tile, sorted."""
    tiles = []
    for path in sorted((folder / "images").iterdir()):
        image = decode_image(path.read_bytes())
        with Image.open(folder / "labels" / f"{path.stem}.png") as label:
            truth = taxonomy.encode(np.asarray(label), path.name)
        scores = true_scores(predictor.predict(image), truth, taxonomy)
        tiles.append(np.sort(scores[truth != taxonomy.ignore_index]))
    return [tile for tile in tiles if tile.size]


def coverage(tiles: Sequence[NDArray[np.float32]], threshold: float) -> NDArray[np.float64]:
    """Share of each tile's pixels whose prediction set holds the true class."""
    return np.array([np.searchsorted(tile, threshold, side="right") / tile.size for tile in tiles])


def controlled(tiles: Sequence[NDArray[np.float32]], alpha: float) -> float:
    """The smallest threshold at which conformal risk control accepts the missed share of pixels."""
    candidates = np.quantile(np.concatenate(tiles), np.linspace(0, 1, 2001))
    for threshold in candidates:
        misses = 1 - coverage(tiles, float(threshold))
        if (misses.sum() + 1) / (len(tiles) + 1) <= alpha:
            return float(threshold)
    return 1.0


def draw_sets(folder: Path, predictor: SemanticPredictor, taxonomy: Taxonomy, calibration: Calibration) -> None:
    """Photo, raw labels, size of the prediction set and kept labels of the tile where selection drops a third."""
    best: tuple[float, list[NDArray[np.uint8]]] = (1.0, [])
    for path in sorted((folder / "scored/images").iterdir()):
        image = decode_image(path.read_bytes())
        score_map = predictor.predict(image)
        raw = select(score_map, taxonomy, Selection.argmax())
        kept = select(score_map, taxonomy, Selection.conformal(calibration))
        stats = kernels.class_stats(
            score_map.scores, image.shape[:2], layout=score_map.layout, activation=score_map.activation,
            groups=taxonomy.groups, num_targets=taxonomy.num_scored, thresholds=calibration.thresholds,
            ignore=taxonomy.ignore_index, outputs=("label", "set_size"),
        )  # fmt: skip
        distance = abs(float((kept.label != taxonomy.ignore_index).mean()) - 0.65) + 10 * (
            len(np.unique(raw.label)) < 4
        )
        if distance < best[0]:
            painted = [colorize(labels.label, len(taxonomy.targets), ignored=(60, 60, 60)) for labels in (raw, kept)]
            best = distance, [image, painted[0], SET_COLORS[np.minimum(stats.set_size, 3)], painted[1]]
    side = 240
    sheet = np.full((side, 4 * side + 36, 4), 0, np.uint8)
    for number, tile in enumerate(best[1]):
        small = np.asarray(Image.fromarray(np.asarray(tile, np.uint8)).resize((side, side), Image.Resampling.NEAREST))
        sheet[:, number * (side + 12) : number * (side + 12) + side] = np.dstack([small, np.full((side, side), 255)])
    Image.fromarray(sheet).quantize(128).save(PICTURES / "sets.png", optimize=True)


def draw_splits(tiles: list[NDArray[np.float32]]) -> None:
    """Histogram of the mean coverage of new tiles over random calibrations of 30 tiles."""
    rng = np.random.default_rng(0)
    means = []
    for _ in range(NUM_SPLITS):
        order = rng.permutation(len(tiles))
        threshold = controlled([tiles[index] for index in order[:30]], ALPHA)
        means.append(coverage([tiles[index] for index in order[30:]], threshold).mean())
    counts, edges = np.histogram(means, bins=24, range=(0.76, 1.0))
    low, high = np.quantile(means, (0.05, 0.95))
    print(f"coverage of new tiles: mean {np.mean(means):.3f}, 5 to 95 % of the calibrations {low:.3f} to {high:.3f}")
    width, height, left, bottom = 640, 240, 20, 40
    step, top = (width - 2 * left) / len(counts), max(counts)
    bars = [
        f'<rect x="{left + index * step + 1:.1f}" y="{height - bottom - 170 * count / top:.1f}" '
        f'width="{step - 2:.1f}" height="{170 * count / top:.1f}" fill="{ACCENT}"/>'
        for index, count in enumerate(counts)
    ]
    target = left + (1 - ALPHA - edges[0]) / (edges[-1] - edges[0]) * (width - 2 * left)
    marks = [
        f'<text x="{left + (value - edges[0]) / (edges[-1] - edges[0]) * (width - 2 * left):.1f}" y="{height - 20}" '
        f'text-anchor="middle">{value:.0%}</text>'
        for value in (0.8, 0.85, 0.9, 0.95, 1.0)
    ]
    dashes = f'stroke="{MUTED}" stroke-width="2" stroke-dasharray="5 4"'
    lines = [
        f'<line x1="{target:.1f}" x2="{target:.1f}" y1="20" y2="{height - bottom}" {dashes}/>',
        f'<text x="{target - 6:.1f}" y="18" text-anchor="end" fill="{MUTED}">promised on average</text>',
        f'<text x="{width / 2}" y="{height - 4}" text-anchor="middle">mean coverage of 80 new tiles</text>',
    ]
    write_svg("splits.svg", width, height, [*bars, *marks, *lines])


def draw_shift(
    calibration: list[NDArray[np.float32]], photos: list[NDArray[np.float32]], relief: list[NDArray[np.float32]]
) -> None:
    """Bars of coverage on photos and on a drawn relief."""
    threshold = controlled(calibration, ALPHA)
    shares = (coverage(photos, threshold).mean(), coverage(relief, threshold).mean())
    print(f"coverage on photos {shares[0]:.3f}, on the relief {shares[1]:.3f}")
    width, height = 640, 120
    parts = []
    names = ("photos like the calibration images", "a drawn relief of the same places")
    for row, (name, share) in enumerate(zip(names, shares, strict=True)):
        y = 18 + 48 * row
        color = (ACCENT, MUTED)[row]
        parts += [
            f'<text x="20" y="{y}">{name}</text>',
            f'<rect x="20" y="{y + 6}" width="520" height="18" fill="{INK}" opacity="0.2"/>',
            f'<rect x="20" y="{y + 6}" width="{520 * share:.1f}" height="18" fill="{color}"/>',
            f'<text x="550" y="{y + 20}" fill="{color}">{share:.0%}</text>',
        ]
    parts.append(f'<line x1="{20 + 520 * (1 - ALPHA)}" x2="{20 + 520 * (1 - ALPHA)}" y1="20" y2="94" stroke="{INK}" '
                 'stroke-dasharray="5 4"/>')  # fmt: skip
    write_svg("shift.svg", width, height, parts)


def write_svg(name: str, width: int, height: int, parts: Sequence[str]) -> None:
    """Write a picture that reads on light and dark pages."""
    style = f'font-family="system-ui, sans-serif" font-size="14" fill="{INK}"'
    body = "\n".join(parts)
    (PICTURES / name).write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {style}>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    main()
