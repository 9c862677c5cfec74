"""Measure if data limits a training step: steps from a label store against steps on a batch that stays in memory.

    python benchmarks/loading.py

A round trains the built-in ``lite0`` network in three ways with the same augmentation and optimizer: on the same batch
in memory; on batches that a worker process makes from the store; and in a plain loop that reads each photo and its
label and weight maps from files before the step. The network uses a single processor, so that the worker has another.
The goal is at most 1.03 times the step of the batch in memory.

Photos are those of MSRC with their own labels; the data folder is ``$MASKMILL_DATA``, or ``../shared/data`` beside the
repository.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from msrc import find_data

from maskmill.engine.inputs.label_maps import read_label_map
from maskmill.engine.labeling.export_labels import export_labels
from maskmill.engine.labeling.export_names import export_names
from maskmill.engine.model.png import encode_png
from maskmill.engine.store.label_store import InputRow, LabelRow, LabelStore, content_id
from maskmill.trainer.data.corpus import classes_taxonomy, open_corpus
from maskmill.trainer.data.datasets import TrainingImages, augment
from maskmill.trainer.data.loading import Plan, count_pixels, open_loader, to_device
from maskmill.trainer.loop.optim import make_optimizer
from maskmill.trainer.objectives.base import Moment
from maskmill.trainer.objectives.steps import OBJECTIVES
from maskmill.trainer.phases import phases
from maskmill.trainer.recipes import weighted
from maskmill.trainer.students.models import build_model

NUM_CLASSES = 24
GOAL = 1.03
RECIPE = weighted(steps=100_000, batch=8, crop=160, scale=(0.5, 2.0))


def make_store(data: Path, folder: Path) -> LabelStore:
    """Make a store of every photo with its true labels, and weights of 200."""
    store = LabelStore.create(
        folder, {"classes": classes_taxonomy([f"class {k}" for k in range(NUM_CLASSES)]).to_json()}
    )
    labels, inputs = [], []
    for path in sorted((data / "msrc" / "images").glob("*.jpg")):
        content = path.read_bytes()
        label = read_label_map(data / "msrc" / "labels" / f"{path.stem}.png")
        label = np.where(label < NUM_CLASSES, label, 255).astype(np.uint8)
        weight = np.full(label.shape, 200, np.uint8)
        counts = np.bincount(label.ravel(), minlength=256)[:NUM_CLASSES]
        row = LabelRow(
            id=content_id(content), width=label.shape[1], height=label.shape[0], label=encode_png(label),
            weight=encode_png(weight), counts=counts, kept=1.0, confidence=1.0,
        )  # fmt: skip
        labels.append(row)
        uri = str(path.resolve())
        inputs.append(InputRow(uri=uri, size=len(content), stamp="", id=row.id, error=None, message=None))
    store.commit(labels, inputs)
    return store


class Trainer:
    """The network and its step, as the loop makes it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.student = build_model("lite0", NUM_CLASSES).train()
        self.spec = self.student.input_spec(RECIPE.crop, RECIPE.crop)
        self.optimizer = make_optimizer(self.student, RECIPE)

    def step(self, batch: dict[str, Any]) -> None:
        """Run one step on a batch from the loader."""
        counts = {"labeled": float(count_pixels([batch], 255)[0])}
        moment = Moment(recipe=RECIPE, phase=phases(RECIPE)[0], step=0, ignore=255, counts=counts)
        OBJECTIVES["labels"](self.student, to_device(batch, "cpu", self.spec), moment).total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def plain_batches(files: dict[str, tuple[Path, Path]]) -> Iterator[dict[str, Any]]:
    """Yield batches of a plain loop, which reads the files of a batch and augments them."""
    rng = np.random.default_rng(0)
    uris = list(files)
    while True:
        samples = []
        for index in rng.integers(0, len(uris), RECIPE.batch):
            uri = uris[index]
            image = cv2.cvtColor(cv2.imread(uri), cv2.COLOR_BGR2RGB)
            label, weight = (cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in files[uri])
            move = augment.draw_move(rng, image.shape[:2], crop=RECIPE.crop, scale=RECIPE.scale, flip=RECIPE.flip)
            moved = (
                augment.move_image(image, move),
                augment.move_map(label, move, 255),
                augment.move_map(weight, move, 0),
            )
            samples.append([torch.from_numpy(np.ascontiguousarray(array)) for array in moved])
        image, label, weight = (torch.stack(arrays) for arrays in zip(*samples, strict=True))
        yield {"labeled": {"image": image.permute(0, 3, 1, 2), "label": label, "weight": weight}}


def time_steps(next_batch: Callable[[], dict[str, Any]], trainer: Trainer, steps: int) -> tuple[float, float]:
    """Measure seconds per step, and the part of them spent waiting for the batch."""
    waited, started = 0.0, time.perf_counter()
    for _ in range(steps):
        begun = time.perf_counter()
        batch = next_batch()
        waited += time.perf_counter() - begun
        trainer.step(batch)
    return (time.perf_counter() - started) / steps, waited / steps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6, help="steps of a round, each way")
    options = parser.parse_args()
    data = find_data()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    found: dict[str, list[tuple[float, float]]] = {"memory": [], "store": [], "files": []}
    with tempfile.TemporaryDirectory(prefix="maskmill-loading-") as name:
        folder = Path(name)
        store = make_store(data, folder / "store")
        export_labels(store, folder / "files", "png", weights=True)
        uris = sorted(row.uri for row in store.inputs())
        maps = {
            uri: (folder / "files" / "labels" / f"{stem}.png", folder / "files" / "weights" / f"{stem}.png")
            for uri, (_, stem) in zip(uris, export_names(uris), strict=True)
        }
        corpus = open_corpus(stores=[folder / "store"])
        images = TrainingImages(corpus.streams(), crop=RECIPE.crop, ignore=255, scale=RECIPE.scale, flip=RECIPE.flip)
        plan = Plan(phases=phases(RECIPE), sizes=images.sizes(), seed=0)
        loader, plain, trainer = open_loader(images, plan, workers=1), plain_batches(maps), Trainer()
        for _ in range(4):
            trainer.step(next(loader))
        fixed = next(loader)
        for _ in range(options.rounds):
            # first consume the batches that the worker made while idle
            for _ in range(8):
                next(loader)
            found["store"].append(time_steps(lambda: next(loader), trainer, options.steps))
            found["memory"].append(time_steps(lambda: fixed, trainer, options.steps))
            found["files"].append(time_steps(lambda: next(plain), trainer, options.steps))
    seconds = {name: [value for value, _ in values] for name, values in found.items()}
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    report = {
        "benchmark": "loading",
        "command": " ".join(["benchmarks/loading.py", *sys.argv[1:]]),
        "machine": f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} processors",
        "versions": {name: version(name) for name in ("maskmill", "torch", "pylance", "opencv-python-headless")},
        "batch": RECIPE.batch,
        "crop": RECIPE.crop,
        "seconds_a_step": seconds,
        "median": medians,
        "waited": {name: float(np.median([waited for _, waited in values])) for name, values in found.items()},
        "images_per_second": {name: RECIPE.batch / value for name, value in medians.items()},
        "store_to_memory": medians["store"] / medians["memory"],
        "goal": GOAL,
        "store_to_files": medians["files"] / medians["store"],
    }
    print(json.dumps(report, indent=2))
    return int(report["store_to_memory"] > GOAL)


if __name__ == "__main__":
    sys.exit(main())
