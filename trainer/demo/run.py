"""The demonstration: label the eastern hemisphere with a teacher that was fitted on the western hemisphere.

It uses the public steps of maskmill: the ONNX file of the teacher is imported as a bundle, thirty eastern tiles
calibrate it, and the eighty other tiles are labeled into stores and measured. No tile is used for both::

    figures = run_demo(Path("demo-output"), console=rich.console.Console())
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...engine.calibration.calibrate import calibrate
from ...engine.calibration.calibration import Calibration
from ...engine.calibration.scores.observe import true_scores
from ...engine.inputs.labels import LabelFolder
from ...engine.inputs.sources import open_source
from ...engine.labeling.label_run import label
from ...engine.labeling.selection import Selection
from ...engine.model.bundle import Bundle
from ...engine.model.taxonomy import Taxonomy
from ...engine.predictors.semantic import SemanticPredictor
from ...engine.report.display import print_calibration
from ...engine.report.evaluate import Quality, evaluate_store
from ...engine.runtimes.onnx_runtime import OnnxSession
from ...engine.store.label_store import LabelStore
from . import earth

if TYPE_CHECKING:
    from rich.console import Console

ALPHA = "0.10"
CONFIDENCE = 0.9
NUM_CALIBRATION = 30
PICTURE = "earth.jpg"
_MADE = ("teacher.onnx", "taxonomy.toml", "calibration.json", "bundle", "calibration", "scored", "labels", PICTURE)
"""Files and folders of a run, which the next run replaces."""


def run_demo(output: Path, *, console: Console) -> dict[str, Any]:
    """Run the demonstration into ``output / "earth"``; returns its figures.

    ``argmax``, ``threshold`` and ``conformal`` hold ``accuracy_kept``, ``miou_kept`` and ``kept`` of the scored tiles;
    ``coverage`` and ``coverage_shifted`` are the shares of pixels whose prediction set contains the true class, on the
    photo and on a drawn relief of the same tiles; ``seconds`` is the total time, ``picture`` the path of the picture.

    Raises :class:`MissingPackageError` without the packages of the ``demo`` extra.
    """
    start = time.perf_counter()
    folder = output / "earth"
    _clear(folder)
    picture, zones = earth.load_picture(), earth.load_zones()
    tiles = earth.grid(earth.EAST)
    order = np.random.default_rng(0).permutation(len(tiles))
    calibration_tiles = [tiles[index] for index in order[:NUM_CALIBRATION]]
    scored_tiles = [tiles[index] for index in order[NUM_CALIBRATION:]]
    earth.write_tiles(folder / "calibration", picture, zones, calibration_tiles)
    earth.write_tiles(folder / "scored", picture, zones, scored_tiles)
    console.print(
        f"Earth: {len(tiles)} eastern tiles of {earth.TILE} px, {len(calibration_tiles)} to calibrate and "
        f"{len(scored_tiles)} to label, in {folder}"
    )

    console.print("Fitting the teacher on the western tiles")
    bundle = _adopt(folder, picture, zones)
    taxonomy = Taxonomy.load(folder / "taxonomy.toml", bundle)
    session = OnnxSession(bundle, provider="cpu")
    predictor = SemanticPredictor(bundle, session)
    console.print(f"Labeling with {session!r}")

    calibration = calibrate(
        predictor,
        open_source(str(folder / "calibration" / "images")),
        LabelFolder(folder / "calibration" / "labels"),
        taxonomy,
        alpha=ALPHA,
        group="class",
        rule="agree",
    )
    calibration.save(folder / "calibration.json")
    print_calibration(calibration, folder / "calibration.json")
    selections = {
        "argmax": Selection.argmax(),
        "threshold": Selection.threshold(CONFIDENCE),
        "conformal": Selection.conformal(calibration),
    }
    source = open_source(str(folder / "scored" / "images"))
    truth = LabelFolder(folder / "scored" / "labels")
    quality: dict[str, Quality] = {}
    for name, selection in selections.items():
        store = folder / "labels" / name
        label(predictor, source, store, taxonomy, selection)
        quality[name] = evaluate_store(LabelStore.open(store), truth, taxonomy)
    _print_table(quality, console)

    figures: dict[str, Any] = {
        name: {"accuracy_kept": labels.accuracy_kept, "miou_kept": labels.miou_kept, "kept": labels.kept}
        for name, labels in quality.items()
    }
    figures["coverage"] = _coverage(predictor, picture, zones, scored_tiles, taxonomy, calibration)
    relief = earth.load_picture("shadedrelief.jpg")
    figures["coverage_shifted"] = _coverage(predictor, relief, zones, scored_tiles, taxonomy, calibration)
    console.print(
        f"The prediction sets contain the true class on {figures['coverage']:.0%} of the pixels (target "
        f"{1 - float(ALPHA):.0%}). On a drawn relief of the same tiles they contain it on "
        f"{figures['coverage_shifted']:.0%}: thresholds are valid for images like those of the calibration, so measure "
        "coverage on your own images."
    )
    figures["picture"] = str(_draw(folder, picture, zones, calibration_tiles, scored_tiles, figures))
    figures["seconds"] = time.perf_counter() - start
    console.print(f"Picture: {figures['picture']} ({figures['seconds']:.0f} s in total)")
    return figures


def _clear(folder: Path) -> None:
    """Remove the results of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _MADE:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def _adopt(folder: Path, picture: NDArray[np.uint8], zones: NDArray[np.uint8]) -> Bundle:
    """Fit the teacher and import its ONNX file, as `maskmill import` does."""
    import onnx

    from ...export.adopt.semantic import bundle_from_onnx

    onnx.save(earth.fit_teacher(picture, zones), folder / "teacher.onnx")
    (folder / "taxonomy.toml").write_text(earth.taxonomy_text(), encoding="utf-8")
    return bundle_from_onnx(folder / "teacher.onnx", folder / "bundle", classes=earth.CLASSES, scale=1 / 255)


def _coverage(
    predictor: SemanticPredictor,
    picture: NDArray[np.uint8],
    zones: NDArray[np.uint8],
    tiles: Sequence[earth.Tile],
    taxonomy: Taxonomy,
    calibration: Calibration,
) -> float:
    """Return the share of labeled pixels whose prediction set contains the true class."""
    num_covered = total = 0
    for tile in tiles:
        truth = taxonomy.encode(zones[tile.window], tile.name)
        has_label = truth != taxonomy.ignore_index
        score_map = predictor.predict(np.ascontiguousarray(picture[tile.window]))
        scores = true_scores(score_map, truth, taxonomy)[has_label]
        num_covered += int((scores <= calibration.thresholds[truth[has_label]]).sum())
        total += len(scores)
    return num_covered / total


def _print_table(quality: dict[str, Quality], console: Console) -> None:
    from rich.table import Table

    titles = {
        "argmax": "raw argmax",
        "threshold": f"confidence ≥ {CONFIDENCE}",
        "conformal": f"conformal (alpha {ALPHA}, agree)",
    }
    table = Table(title=f"Labels of {quality['argmax'].num_images} tiles against the truth")
    table.add_column("labels")
    for column in ("accuracy of kept", "mIoU of kept", "kept"):
        table.add_column(column, justify="right")
    for name, labels in quality.items():
        table.add_row(titles[name], f"{labels.accuracy_kept:.3f}", f"{labels.miou_kept:.3f}", f"{labels.kept:.3f}")
    console.print(table)


def _draw(
    folder: Path,
    picture: NDArray[np.uint8],
    zones: NDArray[np.uint8],
    calibration_tiles: Sequence[earth.Tile],
    scored_tiles: Sequence[earth.Tile],
    figures: dict[str, Any],
) -> Path:
    from .picture import draw_earth

    raw, conformal = (_world(folder, name, scored_tiles) for name in ("argmax", "conformal"))
    accuracy, share = figures["conformal"]["accuracy_kept"], figures["conformal"]["kept"]
    panels = [
        ("Photo (NASA Blue Marble)", None),
        ("Truth (land-sea mask and Koeppen climate zones)", earth.target_map(zones)),
        (f"Raw labels of a small teacher: {figures['argmax']['accuracy_kept']:.1%} right", raw),
        (f"Conformal labels: {accuracy:.1%} right, {share:.0%} of the pixels", conformal),
    ]
    target = folder / PICTURE
    draw_earth(picture, panels, calibration_tiles).save(target, quality=88)
    return target


def _world(folder: Path, name: str, tiles: Sequence[earth.Tile]) -> NDArray[np.uint8]:
    """Assemble the labels of a store into a world map, 255 elsewhere."""
    store = LabelStore.open(folder / "labels" / name)
    uris = {Path(row.uri).stem: row.uri for row in store.inputs()}
    world = np.full((earth.HEIGHT, earth.WIDTH), 255, np.uint8)
    for tile in tiles:
        world[tile.window], _ = store.read(uris[tile.name])
    return world
