"""The images of a training run: label stores, labeled and unlabeled images, and validation images.

::

    corpus = open_corpus(stores=["labels"], labeled="labeled", validation="held-out")
    corpus.streams()["union"]           # the labeled and the stored images

All parts have the same classes. Labeled and validation images are left out of the stores and of the unlabeled images;
images are compared by name (uri).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from ...checks import name_list
from ...engine.inputs.identity import content_id
from ...engine.model.taxonomy import Taxonomy
from ...engine.store.label_store import LabelStore
from ...engine.store.run_record import is_store
from ...errors import UsageError
from ..methods import Consistency, S2c
from ..phases import phases
from ..recipes import Recipe
from ..run import RUN_FILE
from .bands import Normalization, common_pixels, measure_bands
from .datasets import TrainingImages
from .parts import LabeledImages, Part, PlainImages, Reading, StoredImages
from .splits import parse_share, seeded_split
from .weak_labels import WeakLabels

Location = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The images of a training run, by their role."""

    taxonomy: Taxonomy
    """The classes, and the class of each label index of the labeled folders."""
    labeled: LabeledImages | None
    """Images with true labels."""
    stored: tuple[StoredImages, ...]
    """Images with the labels of a teacher, one part per store."""
    plain: PlainImages | None
    """Images without labels."""
    validation: LabeledImages | None
    """Held-out images with true labels."""
    normalization: Normalization | None = None
    """Bands of the images and their statistics; None for photos."""
    weak: WeakLabels | None = None
    """Segments and image-level labels of the images with labels (S2C); None without ``segments``."""
    record: Mapping[str, Any]
    """Sources and numbers of images, as plain data for ``run.json``."""

    pin: str | None = None
    """Name of the pin that keeps the moment of the stores that is read; None without a pin."""
    new_pins: tuple[LabelStore, ...] = ()
    """Stores in which this corpus created the pin."""

    @property
    def num_channels(self) -> int:
        """Number of channels of the images: 3, or the number of bands."""
        return 3 if self.normalization is None else len(self.normalization.mean)

    def release(self) -> None:
        """Release the pins of the stores that this corpus reads; call it when the training run is complete."""
        stores = [part.store for part in self.stored]
        if self.weak is not None and isinstance(self.weak.maps, LabelStore):
            stores.append(self.weak.maps)
        _unpin(stores, self.pin)

    def abandon(self) -> None:
        """Release the pins that opening this corpus created; call it when the training run cannot start.

        A pin of an earlier, interrupted run in the same folder is kept.
        """
        _unpin(self.new_pins, self.pin)

    def calibration_images(self, recipe: Recipe) -> LabeledImages | None:
        """Return the labeled images that calibrate the student while it is trained; None if the recipe has none."""
        method, labeled_images = recipe.method, self.labeled
        if not isinstance(method, Consistency) or not method.calibrates or labeled_images is None:
            return None
        if not method.calibration_share:
            return labeled_images
        share = Fraction(method.calibration_share)
        return labeled_images.only(frozenset(seeded_split(labeled_images.uris, share, seed=recipe.seed)))

    def streams(self, recipe: Recipe | None = None) -> dict[str, tuple[Part, ...]]:
        """Return the parts that each stream of :data:`maskmill.trainer.data.datasets.STREAMS` draws from.

        A recipe that sets labeled images aside for calibration does not draw them.
        """
        true = self.labeled
        aside = None if recipe is None else self.calibration_images(recipe)
        if true is not None and aside is not None and len(aside.uris) < len(true.uris):
            true = true.only(frozenset(true.uris) - frozenset(aside.uris))
        labeled_parts: tuple[Part, ...] = () if true is None else (true,)
        plain_parts: tuple[Part, ...] = () if self.plain is None else (self.plain,)
        return {
            "union": labeled_parts + self.stored,
            "labeled": labeled_parts,
            "stored": self.stored,
            "unlabeled": self.stored + plain_parts,
            "partners": self.stored + plain_parts,
        }


def classes_taxonomy(names: Sequence[str], background: str | None = None) -> Taxonomy:
    """Make a taxonomy from class names: label index i is class i."""
    if background is not None and background not in names:
        raise UsageError(f"the background {background!r} is not one of the classes: {name_list(names)}")
    indices = tuple(range(len(names)))
    return Taxonomy(
        targets=tuple(names),
        background=None if background is None else list(names).index(background),
        model=indices,
        labels={index: index for index in indices},
    )


def open_corpus(
    *,
    stores: Sequence[Location] = (),
    labeled: Location | None = None,
    ids: Iterable[str] | None = None,
    unlabeled: Location | None = None,
    validation: Location | None = None,
    validation_ids: Iterable[str] | None = None,
    taxonomy: Taxonomy | None = None,
    labels_of: Location | None = None,
    segments: Location | None = None,
    image_labels: Location | None = None,
    labeled_share: str | None = None,
    split_seed: int = 0,
    reading: Reading | None = None,
    run: Location | None = None,
) -> Corpus:
    """Open all images of a run, once, before it starts.

    Parameters
    ----------
    stores
        Label stores, all of the same classes.
    labeled, validation
        Folders with ``images`` and ``labels``.
    ids, validation_ids
        Names of the images to use from these folders; all if None.
    unlabeled
        A source of images without labels.
    taxonomy
        The classes, needed if there is no store.
    labels_of
        A taxonomy file whose ``[labels]`` table gives the classes of the label indices of the folders, in place of the
        table of the stores.
    segments, image_labels
        For images with labels: a store or folder of segment maps, and a file with the classes of each image (default:
        the classes in its label map); see :mod:`.weak_labels`.
    labeled_share, split_seed
        Use a share of the labeled images, such as ``1/16``, drawn with this seed (:mod:`.splits`); all if None.
    reading
        How the labels of ``labeled`` and ``validation`` are read, if they are not recognized.
    run
        Folder of the training run: the stores are read at one moment, kept until :meth:`Corpus.release`, and a run
        that is resumed reads the same moment.

    Raises :class:`UsageError` if the classes are unknown or differ, or a part is empty; no pin is left then.
    """
    pin = None if run is None else f"train-{content_id(os.path.abspath(run).encode())[:16]}"
    label_stores = [LabelStore.open(store) for store in stores]
    pinned = label_stores if segments is None or not is_store(segments) else [*label_stores, LabelStore.open(segments)]
    if run is not None and not (Path(run) / RUN_FILE).exists() and os.environ.get("RANK", "0") == "0":
        _unpin(pinned, pin)  # pinned by a deleted run of the same name
    taxonomies = [Taxonomy.from_json(store.classes) for store in label_stores] + (
        [] if taxonomy is None else [taxonomy]
    )
    if not taxonomies:
        raise UsageError("the classes are not known: give a label store, or --classes FILE")
    classes = taxonomies[0]
    for other_taxonomy in taxonomies[1:]:
        if (other_taxonomy.targets, other_taxonomy.background) != (classes.targets, classes.background):
            names = f"{name_list(classes.targets)} and {name_list(other_taxonomy.targets)}"
            raise UsageError(f"all labels must have the same classes, got {names}")
    if taxonomy is not None:
        classes = replace(classes, labels=taxonomy.labels)
    if labels_of is not None:
        classes = classes.with_labels_of(labels_of)
    pixels, windows = common_pixels(label_stores)
    raster: dict[str, Any] = {"pixels": pixels, "windows": windows}
    held_out = None
    if validation is not None:
        held_out = LabeledImages.open(validation, classes, ids=validation_ids, reading=reading, **raster)
    skip = set() if held_out is None else set(held_out.uris)
    true = None
    if labeled is not None:
        true = LabeledImages.open(labeled, classes, ids=ids, skip=skip, reading=reading, **raster)
    if labeled_share is not None:
        if labeled is None or true is None:
            raise UsageError("--labeled-share needs --labeled DIR")
        names_of_share = seeded_split(true.uris, parse_share(labeled_share), seed=split_seed)
        true = true.only(frozenset(names_of_share))
    skip |= set() if true is None else set(true.uris)
    plain_images = None if unlabeled is None else PlainImages.open(unlabeled, classes, skip=skip, **raster)
    new_pins = tuple(store for store in pinned if pin is not None and not store.has_pin(pin))
    try:
        stored_images = tuple(StoredImages.open(store, skip=skip, pin=pin) for store in stores)
        weak = None if segments is None else WeakLabels.open(segments, classes, image_labels=image_labels, pin=pin)
        parts = (*stored_images, *(() if true is None else (true,)))
        normalization = None if pixels.bands is None else measure_bands(parts, pixels.bands)
    except BaseException:
        _unpin(new_pins, pin)
        raise
    record = {
        "stores": [{"path": str(store.path), "run": store.run} for store in label_stores],
        "labeled": _labeled_record(labeled, true, labeled_share, split_seed),
        "unlabeled": _source_record(unlabeled, plain_images),
        "validation": _source_record(validation, held_out),
        "segments": None if segments is None else str(segments),
        "image_labels": None if image_labels is None else str(image_labels),
        "images": {"stored": sum(len(part.uris) for part in stored_images)},
    }
    if pixels.bit_depth is not None:
        record["bit_depth"] = pixels.bit_depth
    if reading is not None and reading != Reading():
        record["reading"] = asdict(reading)
    return Corpus(
        taxonomy=classes,
        labeled=true,
        stored=stored_images,
        plain=plain_images,
        validation=held_out,
        normalization=normalization,
        weak=weak,
        pin=pin,
        new_pins=new_pins,
        record=json.loads(json.dumps(record)),
    )


def refuse_unused(recipe: Recipe, *, unlabeled: Location | None = None, segments: Location | None = None) -> None:
    """Raise :class:`UsageError` for images or segments that a recipe would not train on."""
    streams = {stream for phase in phases(recipe) for stream in phase.draws}
    if unlabeled is not None and streams.isdisjoint({"unlabeled", "partners"}):
        raise UsageError(
            "this recipe trains on labels only: leave --unlabeled out, choose a semi-supervised --recipe, such as csl, "
            "or label the images first"
        )
    if segments is not None and not isinstance(recipe.method, S2c):
        raise UsageError("--segments applies to --recipe s2c only; leave it out, or choose that recipe")


def training_images(recipe: Recipe, corpus: Corpus) -> TrainingImages:
    """Return the augmented samples of a recipe from the images of a corpus."""
    return TrainingImages(
        corpus.streams(recipe),
        crop=recipe.crop,
        ignore=corpus.taxonomy.ignore_index,
        scale=recipe.scale,
        scaling=recipe.scaling,
        flip=recipe.flip,
        seed=recipe.seed,
        colors=recipe.colors,
        padding=recipe.padding,
        views=recipe.method if isinstance(recipe.method, Consistency) else None,
        weak=_weak_labels(corpus, recipe),
        normalization=corpus.normalization,
    )


def _weak_labels(corpus: Corpus, recipe: Recipe) -> WeakLabels | None:
    if not isinstance(recipe.method, S2c):
        return None
    if corpus.weak is None:
        raise UsageError("this recipe needs segment maps; add --segments STORE or --segments DIR")
    return replace(corpus.weak, compat=recipe.method.compat)


def _unpin(stores: Iterable[LabelStore], pin: str | None) -> None:
    for store in stores if pin else ():
        store.unpin(pin or "")


def _labeled_record(path: Location | None, part: Part | None, share: str | None, seed: int) -> dict[str, Any] | None:
    record = _source_record(path, part)
    return record if record is None or share is None else {**record, "split": {"share": share, "seed": seed}}


def _source_record(path: Location | None, part: Part | None) -> dict[str, Any] | None:
    return None if path is None or part is None else {"path": str(path), "images": len(part.uris)}
