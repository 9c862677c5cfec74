"""Recipes: functions that return the frozen configuration of a training run.

::

    recipe = weighted(crop=256, steps=4000)
    recipe = with_settings(csl(), ["epochs=80", "method.cover=0.5", "model=segformer", "model.depth=2"])

A recipe holds everything that determines the student besides the data: two runs with the same recipe, data and number
of processes give the same losses. Options that only affect where and how fast a run executes (device, loader processes)
are arguments of :func:`maskmill.trainer.train.train`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import UnionType
from typing import Any, Literal

from ..checks import check_choice
from ..engine.model.input_spec import MAX_SIDE
from ..engine.model.schema import read_value
from ..engine.model.taxonomy_file import nearest_name
from ..errors import UsageError
from .methods import AllSpark, ConformalSam, Consistency, Method, S2c, Supervised, check

Precision = Literal["fp32", "bf16", "fp16"]
Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["poly", "cosine"]
Colors = Literal["none", "strong", "s2c"]
Padding = Literal["mean", "black"]
Scaling = Literal["factor", "long-side"]
LabeledLoss = Literal["cross-entropy", "ohem"]
RecipeName = Literal[
    "supervised", "weighted", "conformalsam", "allspark", "fixmatch", "unimatch", "unimatch-v2", "csl", "csl-dinov2",
    "csl-segformer", "calibrated", "s2c",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Configuration of a training run."""

    name: RecipeName
    """Name in :data:`RECIPES` of the function that made it."""
    method: Method
    """Losses and their settings."""
    model: str = "lite0"
    """Network of the student: a name that :func:`maskmill.trainer.students.models.build_model` knows, or
    ``module:callable``."""
    model_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the network."""

    steps: int = 20_000
    """Optimizer steps; phase II of ConformalSAM is added to them."""
    epochs: int | None = None
    """Passes over the images, from which ``steps`` are computed; None: ``steps`` as given."""
    batch: int = 16
    """Images per step, over all processes."""
    labeled: int | None = None
    """Labeled images among them; None: labeled and stored images in their natural proportion."""
    accumulate: int = 1
    """Number of parts in which a process computes its share of the batch."""

    crop: int = 320
    """Side of the square training crop, in pixels; a multiple of the coarsest stride of the network."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Range of the random scale of an image before the crop; see ``scaling``."""
    scaling: Scaling = "factor"
    """``factor``: ``scale`` multiplies the size of an image; ``long-side``: it is the length of its longer side, in
    pixels, as in S2C."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    colors: Colors = "none"
    """Color augmentation of images with labels: ``strong`` as AllSpark (jitter .5, .5, .5, .25 at .8, gray .2, blur
    .5), ``s2c`` as S2C (jitter .4, .4, .4, .1 at .8, gray .02)."""
    padding: Padding = "mean"
    """Color of pixels outside an image: ImageNet's mean, or black."""

    labeled_loss: LabeledLoss = "cross-entropy"
    """Loss of labeled images; ``ohem``: mean over the pixels with the lowest probabilities of their class."""
    ohem_threshold: float = 0.7
    """Probability up to which a pixel counts as hard (``ohem``)."""
    ohem_pixels: int = 200_000
    """Least number of hard pixels per batch of a process (``ohem``)."""

    optimizer: Optimizer = "sgd"
    """SGD with momentum 0.9, or AdamW."""
    lr: float = 1e-3
    """Highest learning rate of the backbone."""
    head_lr: float = 10.0
    """Learning rate of all other layers, as a multiple of ``lr``."""
    weight_decay: float = 1e-4
    """Weight decay of every parameter."""
    schedule: Schedule = "poly"
    """``poly``: lr (1 - t/T)^0.9; ``cosine``: lr (1 + cos(pi t/T)) / 2."""
    warmup: int = 0
    """Steps of linear warm-up before the schedule."""
    clip: float = 0.0
    """Largest norm of the gradient; 0: no limit."""
    ema: float = 0.0
    """Decay of the moving average of the weights, which then is the student; 0: no average."""
    ema_warmup: bool = False
    """Limit the decay to 1 - 1/(t + 1) at step t, so that the initial weights do not dominate the average."""

    precision: Precision = "fp32"
    """Autocast of the forward pass; losses are computed in fp32."""
    compile: bool = False
    """Compile the student with ``torch.compile``."""
    channels_last: bool = False
    """Keep images and weights with the channels innermost, as tensor cores read them."""
    tf32: bool = True
    """Round the factors of fp32 products and convolutions to 10 bits of mantissa on CUDA devices that have TF32."""
    cudnn_benchmark: bool = False
    """Let cuDNN benchmark its algorithms for each new shape: faster, but two runs may choose different ones."""
    sync_batchnorm: bool = True
    """Batch statistics over all processes (on CUDA devices)."""
    seed: int = 0
    """Seed of weights, order, crops and all other random numbers."""
    log_every: int = 10
    """Steps between rows of the log."""
    validate_every: int = 1000
    """Steps between evaluations, if there are validation images."""
    save_every: int = 1000
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "validate_every", "save_every"):
            check(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name, most in (("batch", 65_536), ("accumulate", 65_536), ("crop", MAX_SIDE)):
            check(1 <= getattr(self, name) <= most, name, f"from 1 to {most}", getattr(self, name))
        check(self.epochs is None or self.epochs >= 1, "epochs", "at least 1", self.epochs)
        if self.labeled is not None:
            check(0 < self.labeled <= self.batch, "labeled", f"from 1 to the batch of {self.batch}", self.labeled)
        low, high = self.scale
        check(
            0 < low <= high <= MAX_SIDE,
            "scale",
            f"two positive numbers up to {MAX_SIDE}, the lower one first",
            self.scale,
        )
        check(0 <= self.flip <= 1, "flip", "from 0 to 1", self.flip)
        check(self.lr > 0 and math.isfinite(self.lr), "lr", "above 0", self.lr)
        for name in ("head_lr", "weight_decay", "warmup", "clip", "ohem_pixels"):
            check(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        check(0 < self.ohem_threshold <= 1, "ohem_threshold", "above 0 and at most 1", self.ohem_threshold)
        check(0 <= self.ema < 1, "ema", "at least 0 and below 1", self.ema)
        if isinstance(self.method, Consistency) and self.method.teacher == "average":
            check(self.ema > 0, "ema", "above 0, since method.teacher=average labels with the moving average", self.ema)

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as plain data."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def supervised(**settings: Any) -> Recipe:
    """Train on given labels without weights: of the labeled images only, or of label stores as well."""
    return Recipe(name="supervised", method=Supervised(), **settings)


def weighted(**settings: Any) -> Recipe:
    """Train on stored labels with their weights, and on labeled images: the recipe for production."""
    return Recipe(name="weighted", method=Supervised(weighted=True), **settings)


def conformalsam(**settings: Any) -> Recipe:
    """Make the recipe of ConformalSAM with two phases; the store should hold conformal labels.

    Batch and learning rate are the paper's (4 and 0.003); optimizer, schedule and augmentation are those of AllSpark,
    which the paper builds on.
    """
    defaults = {"method": ConformalSam(), "batch": 4, "lr": 3e-3, "colors": "strong", "padding": "black"}
    return Recipe(**{"name": "conformalsam", **defaults, **settings})


def allspark(**settings: Any) -> Recipe:
    """Make the recipe of AllSpark, as its authors train on VOC (4 GPUs with 2 labeled and 2 unlabeled images each)."""
    model = {"model": "allspark:segformer", "model_options": {"size": "b5"}, "crop": 512}
    defaults = {"method": AllSpark(), "batch": 16, "labeled": 8, "colors": "strong", "padding": "black", **model}
    return Recipe(**{"name": "allspark", **defaults, **settings})


def fixmatch(**settings: Any) -> Recipe:
    """Make the recipe of FixMatch, as in UniMatch's code: a strong view with CutMix, confidence of at least 0.95."""
    method = Consistency(selection="threshold", strong=0.5, second=0.0, features=0.0, strong_statistics=True)
    return Recipe(**{"name": "fixmatch", "method": method, **_UNIMATCH, **settings})


def unimatch(**settings: Any) -> Recipe:
    """Make the recipe of UniMatch: two strong CutMix views, one view with dropped features, confidence >= 0.95."""
    method = Consistency(selection="threshold", second_view="cutmix", strong_statistics=True)
    return Recipe(**{"name": "unimatch", "method": method, **_UNIMATCH, **settings})


def unimatch_v2(**settings: Any) -> Recipe:
    """Make the recipe of UniMatch V2: a moving average as teacher, complementary dropout in two strong views, DINOv2-S.

    As the authors train on VOC (4 GPUs with 4 + 4 images each, crop 518).
    """
    method = Consistency(
        selection="threshold", second_view="cutmix", teacher="average", feature_dropout="complementary", strong=0.25,
        second=0.25, features=0.0, strong_statistics=True,
    )  # fmt: skip
    return Recipe(**{"name": "unimatch-v2", "method": method, **_DINOV2, **settings})


def csl(**settings: Any) -> Recipe:
    """Make the recipe of CSL, as the authors train on VOC (8 labeled and 8 unlabeled per step, lr 0.001, heads 10x)."""
    return Recipe(**{"name": "csl", "method": Consistency(), **_UNIMATCH, **settings})


def csl_dinov2(**settings: Any) -> Recipe:
    """Make the recipe of CSL with DINOv2-S and the hyperparameters of UniMatch V2 (CSL's table 12)."""
    method = Consistency(
        teacher="average", feature_dropout="complementary", strong=0.25, second=0.25, features=0.0,
        strong_statistics=True,
    )  # fmt: skip
    return Recipe(**{"name": "csl-dinov2", "method": method, **_DINOV2, **settings})


def csl_segformer(**settings: Any) -> Recipe:
    """Make the recipe of CSL with SegFormer-B5 at crop 512, otherwise CSL's own hyperparameters (CSL's table 12)."""
    model = {"model": "segformer", "model_options": {"size": "b5"}, "crop": 512}
    return Recipe(**{"name": "csl-segformer", "method": Consistency(), **_UNIMATCH, **model, **settings})


def calibrated(**settings: Any) -> Recipe:
    """Make our recipe: CSL's views, and student labels selected by conformal thresholds recalibrated in training.

    Thresholds are per class, from the labeled images; batch, rate and views are those of ``csl`` without its masks.
    """
    method = Consistency(selection="conformal", cover_probability=0.0)
    return Recipe(**{"name": "calibrated", "method": method, **_UNIMATCH, **settings})


def s2c(**settings: Any) -> Recipe:
    """Make the recipe of S2C's classifier; the store should hold the labels of the prompted predictor.

    Batch, crop, sizes, colors, decay and frozen batch normalization are the authors' on VOC. Their rate of 0.02 goes
    with a momentum of nearly 0, and equals 0.002 with the momentum of 0.9 used here.
    """
    defaults = {
        "batch": 8, "crop": 256, "scale": (256.0, 512.0), "scaling": "long-side", "colors": "s2c", "lr": 2e-3,
        "head_lr": 1.0, "weight_decay": 5e-4, "model": "cam:lite0", "model_options": {"freeze_batchnorm": True},
    }  # fmt: skip
    return Recipe(**{"name": "s2c", "method": S2c(), **defaults, **settings})


_UNIMATCH: Mapping[str, Any] = {"batch": 16, "labeled": 8, "padding": "black"}
_DINOV2: Mapping[str, Any] = {
    "model": "dpt-dinov2", "model_options": {"size": "small"}, "batch": 32, "labeled": 16, "crop": 518,
    "optimizer": "adamw", "lr": 5e-6, "head_lr": 40.0, "weight_decay": 0.01, "ema": 0.996, "ema_warmup": True,
    "padding": "black",
}  # fmt: skip

RECIPES: Mapping[str, Callable[..., Recipe]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        supervised, weighted, conformalsam, allspark, fixmatch, unimatch, unimatch_v2, csl, csl_dinov2, csl_segformer,
        calibrated, s2c,
    )
}  # fmt: skip
"""Functions by the name of their recipe."""


_COMMON_OPTIONS = ("pretrained", "freeze_batchnorm")


def names_code(model: str) -> bool:
    """Return True if a model's name is ``package.module:function``: to build it, that is imported and called."""
    while model.startswith(("cam:", "allspark:")):
        model = model.partition(":")[2]
    return ":" in model and not model.startswith("smp:")


def with_settings(recipe: Recipe, settings: Sequence[str], *, allow_code: bool = False) -> Recipe:
    """Return the recipe with ``key=value`` settings; ``method.key`` sets the method, ``model.key`` the network.

    Values are parsed according to the type of the field; options of the network as JSON, or else as text. Raises
    :class:`UsageError`, also for a function as the model unless ``allow_code`` is given.
    """
    changes: dict[str, Any] = {}
    method: dict[str, Any] = {}
    options = dict(recipe.model_options)
    if any(setting.startswith("model=") for setting in settings):
        # the other options belong to the model that the setting replaces
        options = {name: value for name, value in options.items() if name in _COMMON_OPTIONS}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"a setting must be KEY=VALUE, for example crop=256; got {setting!r}")
        if key.startswith("model."):
            options[key.removeprefix("model.")] = _free_value(text)
        elif key.startswith("method."):
            name = key.removeprefix("method.")
            method[name] = _value(key, text, _type_of(recipe.method, name, key))
        elif key in ("name", "method", "model_options"):
            raise UsageError(
                f"{key} cannot be set; settings of the method are method.KEY=VALUE, of the model model.KEY=VALUE"
            )
        else:
            changes[key] = _value(key, text, _type_of(recipe, key, key))
    if names_code(changes.get("model", "")) and not allow_code:
        raise UsageError(
            f"model={changes['model']:.80} names a function, which training imports and calls; allow that with "
            "--allow-code (allow_code=True) if you trust it"
        )
    return replace(recipe, method=replace(recipe.method, **method), model_options=options, **changes)


def recipe_from_json(document: Mapping[str, Any]) -> Recipe:
    """Return the recipe of :meth:`Recipe.to_json`; raises :class:`UsageError` if a field is missing or impossible."""
    check_choice("recipe.name", document.get("name"), RECIPES)
    name = str(document["name"])
    types: dict[str, Any] = typing.get_type_hints(Recipe) | {"method": type(RECIPES[name]().method)}
    if unknown_keys := [key for key in document if key not in types]:
        raise UsageError(f"the recipe has the unknown field {unknown_keys[0]!r:.80}")
    if missing_keys := [key for key in types if key not in document]:
        raise UsageError(f"the recipe lacks the field {missing_keys[0]!r}")
    return Recipe(**{key: read_value(kind, document[key], f"recipe.{key}") for key, kind in types.items()})


def _type_of(owner: Any, name: str, key: str) -> Any:
    types = typing.get_type_hints(type(owner))
    if name not in types:
        prefix = key[: len(key) - len(name)]
        names = [f"{prefix}{field.name}" for field in dataclasses.fields(owner)]
        nearest = nearest_name(key, names, similarity=0.7)
        hint = "; this" if nearest is None else f"; did you mean {nearest}? This"
        raise UsageError(f"there is no setting {key}{hint} recipe has {', '.join(names) or 'none'}")
    return types[name]


def _value(key: str, text: str, kind: Any) -> Any:
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        check(text in arguments, key, f"one of {', '.join(arguments)}", text)
        return text
    if isinstance(kind, UnionType):
        return None if text.lower() == "none" else _value(key, text, arguments[0])
    try:
        if typing.get_origin(kind) is tuple:
            parts = text.split(",")
            return tuple(item(part) for item, part in zip(arguments, parts, strict=True))
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text)
    except (ValueError, KeyError):
        type_name = {bool: "true or false", int: "an integer", float: "a number"}.get(
            kind, "numbers with commas between"
        )
        raise UsageError(f"{key} must be {type_name}, got {text!r}") from None


def _free_value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
