"""A small corpus: photos of colored blocks, whose class is the strongest channel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskmill.engine.model.png import encode_png
from maskmill.engine.store.label_store import InputRow, LabelRow, LabelStore, content_id
from maskmill.trainer.data.corpus import classes_taxonomy

from ..models import COLORS, color_image

TAXONOMY = classes_taxonomy(COLORS)
SIZE = (40, 48)


def blocks(seed: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """A class map (H, W) of 8 px blocks."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, len(COLORS), (-(-size[0] // 8), -(-size[1] // 8)), dtype=np.uint8)
    return np.kron(cells, np.ones((8, 8), np.uint8))[: size[0], : size[1]]


def write_labeled(folder: Path, seeds: range, size: tuple[int, int] = SIZE) -> Path:
    """``images/N.png`` and ``labels/N.png`` for each seed."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        label = blocks(seed, size)
        Image.fromarray(color_image(label, strength=200)).save(folder / "images" / f"{seed}.png")
        Image.fromarray(label).save(folder / "labels" / f"{seed}.png")
    return folder


def make_store(
    folder: Path, photos: Path, seeds: range, *, weight: int = 255, label: Any = None, run: Any = None
) -> LabelStore:
    """A store of the photos ``images/N.png``; labels are the true ones unless ``label`` (seed → map) says otherwise."""
    store = LabelStore.create(folder, {"classes": TAXONOMY.to_json(), **(run or {})})
    add_labels(store, photos, seeds, weight=weight, label=label)
    return store


def add_labels(store: LabelStore, photos: Path, seeds: range, *, weight: int = 255, label: Any = None) -> None:
    """Add the labels of the photos ``images/N.png`` to a store; see :func:`make_store`."""
    labels, inputs = [], []
    for seed in seeds:
        path = photos / "images" / f"{seed}.png"
        data = path.read_bytes()
        values = blocks(seed) if label is None else label(seed)
        labels.append(
            LabelRow(
                id=content_id(data),
                width=values.shape[1],
                height=values.shape[0],
                label=encode_png(values),
                weight=encode_png(np.where(values == 255, np.uint8(0), np.uint8(weight))),
                counts=np.bincount(values.ravel(), minlength=256)[: len(COLORS)],
                kept=float((values != 255).mean()),
                confidence=0.9,
            )
        )
        status = path.stat()
        inputs.append(
            InputRow(
                uri=str(path),
                size=status.st_size,
                stamp=str(status.st_mtime_ns),
                id=labels[-1].id,
                error=None,
                message=None,
            )
        )
    store.commit(labels, inputs)
