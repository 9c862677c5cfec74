"""Jobs with promptable models: masks of classes, and segments without classes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskmill.engine.cluster.job import Job
from maskmill.engine.inputs.sources import Source, open_source
from maskmill.engine.labeling.label_run import label, segment
from maskmill.engine.labeling.selection import Selection
from maskmill.engine.predictors.open import PromptedOptions, open_everything, open_prompted
from maskmill.engine.store.label_store import LabelStore

from ...models import cam_bundle, color_image, sam_bundle

KINDS = ("prompted", "segment")


def write_scenes(folder: Path, num: int) -> Source:
    """Photos of two colored rectangles on gray."""
    folder.mkdir()
    for index in range(num):
        pixels = np.full((32, 48, 3), 90, np.uint8)
        pixels[4:20, 4 + index % 8 : 20] = color_image(np.zeros((1, 1), np.int64))
        pixels[12:28, 26:42] = color_image(np.ones((1, 1), np.int64))
        pixels[0, index] = 7
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return open_source(str(folder))


def prompted_job(kind: str, folder: Path, source: Source, store: Path) -> Job:
    """Job that labels with prompts from a classifier, or that segments everything."""
    sam = (folder / "sam") if (folder / "sam").exists() else sam_bundle(folder).path
    if kind == "segment":
        opening: Any = partial(open_everything, PromptedOptions(sam=sam, prompt=("side=8", "min_score=0.6")))
        return Job(opening=opening, selection=None, source=source, store=str(store))
    cam = (folder / "cam") if (folder / "cam").exists() else cam_bundle(folder).path
    prompts = PromptedOptions(cam=cam, sam=sam, prompt=("min_distance=3", "mode=peaks"))
    return Job(opening=partial(open_prompted, prompts), selection=Selection.argmax(), source=source, store=str(store))


def assert_as_local(job: Job, folder: Path) -> None:
    """Compare the job's store, byte for byte, with that of an ordinary run."""
    if job.selection is None:
        segment(job.opening(), job.source, folder / "alone", workers=1)
    else:
        predictor, classes = job.opening()
        label(predictor, job.source, folder / "alone", classes, job.selection, workers=1)
    stores = [LabelStore.open(path) for path in (job.store, folder / "alone")]
    assert stores[0].run == stores[1].run
    rows = [
        {row.id: {**vars(row), "counts": list(row.counts)} for row in store.iter_rows(extras=True)} for store in stores
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) > 0
    uris = [sorted((row.uri, row.id, row.condition) for row in store.inputs()) for store in stores]
    assert uris[0] == uris[1]
