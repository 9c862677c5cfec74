"""Recipes: functions that return a frozen configuration of a whole training run.

::

    recipe = weighted(crop=256, steps=4000)
    recipe = with_settings(csl(), ["steps=8000", "method.cover=0.5", "model=segformer", "model.depth=2"])

A recipe holds all that decides the student besides the data: two runs with the same recipe, data and number of
processes give the same losses. What only decides where and how fast it runs (device, loader processes) is an argument
of :func:`maskmill.trainer.train.train`.
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

from ..errors import UsageError

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """Cross-entropy on labels as they are: of the labeled images and, where given, of label stores."""

    weighted: bool = False
    """Multiply each pixel's loss by its weight in the store; pixels of labeled images have weight 1."""


@dataclass(frozen=True, kw_only=True)
class ConformalSam:
    """ConformalSAM: phase I on the labels of a store, phase II on the student's own labels."""

    self_reliance: float = 0.25
    """Share of the steps in phase II, at the end (the paper's 20 of 80 epochs)."""
    initial: float = 0.01
    """lambda_0, the unlabeled loss's share at the start of phase II."""
    decay: float = 5.0
    """lambda(t) = lambda_0 exp(-decay t / T) over the T steps of phase II."""

    def __post_init__(self) -> None:
        _check(0 < self.self_reliance < 1, "method.self_reliance", "above 0 and below 1", self.self_reliance)
        _check(0 <= self.initial <= 1, "method.initial", "from 0 to 1", self.initial)
        _check(self.decay >= 0, "method.decay", "at least 0", self.decay)


@dataclass(frozen=True, kw_only=True)
class Csl:
    """CSL: consistency between views of unlabeled images, weighted by PCOS, with trusted mask perturbation.

    ``L = labeled L_x + strong L_s + masked L_m + features L_fp``, the four weights below; their defaults are those of
    the authors' code, 1/2 [L_x + 1/4 L_s + 1/4 L_m + 1/2 L_fp].
    """

    selection: Literal["pcos", "threshold"] = "pcos"
    """``pcos``: every pixel with its PCOS weight; ``threshold``: pixels at least as confident as ``threshold``."""
    threshold: float = 0.95
    """Lowest confidence that counts (``threshold`` only)."""
    denominator: float = 8.0
    """Of the squared distance in PCOS's exponent."""
    labeled: float = 0.5
    """Weight of the labeled loss L_x."""
    strong: float = 0.125
    """Weight of L_s, the strong view with CutMix."""
    masked: float = 0.125
    """Weight of L_m, the view with trusted mask perturbation, or a second strong view where there is none."""
    features: float = 0.25
    """Weight of L_fp, the weak view with dropped features."""
    ramp: float = 0.0
    """Share of the steps in which the weights of the three unlabeled losses rise evenly from 0; none in the authors'
    code. For short runs: PCOS trusts most pixels of every image, however poor the first predictions are."""
    cover_probability: float = 0.5
    """Share of the images that are perturbed; 0 turns trusted mask perturbation off."""
    cover: float = 0.7
    """Share of the cells that are covered, where the prediction is reliable."""
    cell: int = 32
    """Side of a cell, in pixels."""
    cutmix: float = 0.5
    """Share of the images that are mixed with another one of the batch."""
    dropout: float = 0.5
    """Share of the feature channels that are dropped."""

    def __post_init__(self) -> None:
        for name in ("threshold", "ramp", "cover_probability", "cover", "cutmix"):
            _check(0 <= getattr(self, name) <= 1, f"method.{name}", "from 0 to 1", getattr(self, name))
        for name in ("labeled", "strong", "masked", "features"):
            _check(getattr(self, name) >= 0, f"method.{name}", "at least 0", getattr(self, name))
        _check(self.denominator > 0, "method.denominator", "above 0", self.denominator)
        _check(0 <= self.dropout < 1, "method.dropout", "at least 0 and below 1", self.dropout)
        _check(self.cell >= 1, "method.cell", "at least 1", self.cell)


@dataclass(frozen=True, kw_only=True)
class S2c:
    """S2C: a classifier whose activation maps learn from a promptable model; see
    :mod:`maskmill.trainer.objectives.s2c`.

    ``L = L_cls + segments L_SSC + prompted L_CPM``.
    """

    segments: float = 1.0
    """Weight of L_SSC, the contrast between segments."""
    prompted: float = 1.0
    """Weight of L_CPM, the prompted predictor's labels."""
    warmup: float = 0.05
    """Share of the steps before L_CPM begins (the paper's 2 of 40 epochs)."""
    temperature: float = 1.0
    """T of L_SSC."""
    compat: bool = False
    """Number segments and make L_SSC as the authors' code does, not as its equation says."""

    def __post_init__(self) -> None:
        for name in ("segments", "prompted"):
            _check(getattr(self, name) >= 0, f"method.{name}", "at least 0", getattr(self, name))
        _check(0 <= self.warmup <= 1, "method.warmup", "from 0 to 1", self.warmup)
        _check(self.temperature > 0, "method.temperature", "above 0", self.temperature)


Method = Supervised | ConformalSam | Csl | S2c


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole training run."""

    name: str
    """The function that made it."""
    method: Method
    """What the losses are, with their settings."""
    model: str = "lite0"
    """The student: a name that :func:`maskmill.trainer.students.models.build_model` knows, or ``module:callable``."""
    model_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the student, as that function takes them."""

    steps: int = 20_000
    """Optimizer steps in all."""
    batch: int = 16
    """Images a step, over all processes."""
    labeled: int | None = None
    """How many of them are labeled images; None: labeled and stored images as they come, without balancing."""
    accumulate: int = 1
    """Parts that a process's share of the batch is computed in, one after the other."""

    crop: int = 320
    """Side of the square training crop, in pixels; a multiple of the student's coarsest stride."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Range of the random scale of an image before it is cropped."""
    flip: float = 0.5
    """Probability of a horizontal flip."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum 0.9, or AdamW."""
    lr: float = 1e-3
    """Highest learning rate of the backbone."""
    head_lr: float = 10.0
    """Learning rate of all other layers, as a multiple of ``lr``."""
    weight_decay: float = 1e-4
    """Weight decay of every parameter."""
    schedule: Literal["poly", "cosine"] = "poly"
    """``poly``: lr (1 - t/T)^0.9; ``cosine``: lr (1 + cos(pi t/T)) / 2."""
    warmup: int = 0
    """Steps of linear warm-up before the schedule."""
    clip: float = 0.0
    """Largest norm of the gradient; 0: no limit."""
    ema: float = 0.0
    """Decay of the moving average of the weights, which is then the student; 0: none."""

    precision: Precision = "fp32"
    """Autocast of the forward pass; losses are computed in fp32."""
    compile: bool = False
    """Compile the student with ``torch.compile``."""
    sync_batchnorm: bool = True
    """Batch statistics over all processes (on CUDA devices)."""
    seed: int = 0
    """Seed of weights, order, crops and every other draw."""
    log_every: int = 10
    """Steps between two rows of the log."""
    validate_every: int = 1000
    """Steps between two evaluations, where there are validation images."""
    save_every: int = 1000
    """Steps between two checkpoints."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "crop", "log_every", "validate_every", "save_every"):
            _check(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        if self.labeled is not None:
            _check(0 < self.labeled <= self.batch, "labeled", f"from 1 to the batch of {self.batch}", self.labeled)
        low, high = self.scale
        _check(0 < low <= high, "scale", "two positive numbers, the lower one first", self.scale)
        _check(0 <= self.flip <= 1, "flip", "from 0 to 1", self.flip)
        _check(self.lr > 0 and math.isfinite(self.lr), "lr", "above 0", self.lr)
        for name in ("head_lr", "weight_decay", "warmup", "clip"):
            _check(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        _check(0 <= self.ema < 1, "ema", "at least 0 and below 1", self.ema)

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``run.json``."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A run of steps with the same losses."""

    objective: Literal["labels", "self_reliance", "consistency", "segments"]
    """Function of :mod:`maskmill.trainer.objectives.steps` that gives the losses."""
    start: int
    """First step."""
    stop: int
    """Step after the last one."""
    draws: Mapping[str, int]
    """Images a step, over all processes, of each stream (:data:`maskmill.trainer.data.datasets.STREAMS`)."""


def phases(recipe: Recipe) -> tuple[Phase, ...]:
    """The phases of a recipe, which follow on one another from step 0 to the last."""
    method, half = recipe.method, recipe.labeled or max(1, recipe.batch // 2)
    both = {"labeled": half, "unlabeled": recipe.batch - half}
    if isinstance(method, ConformalSam | Csl):
        _check(half < recipe.batch, "labeled", f"below the batch of {recipe.batch}, the rest is unlabeled", half)
    if recipe.labeled is None:
        with_labels = {"union": recipe.batch}
    else:
        with_labels = {"labeled": recipe.labeled, "stored": recipe.batch - recipe.labeled}
    if isinstance(method, Csl):
        return (Phase(objective="consistency", start=0, stop=recipe.steps, draws=both),)
    if isinstance(method, S2c):
        return (Phase(objective="segments", start=0, stop=recipe.steps, draws=with_labels),)
    if isinstance(method, ConformalSam):
        turn = recipe.steps - round(recipe.steps * method.self_reliance)
        return (
            Phase(objective="labels", start=0, stop=turn, draws=with_labels),
            Phase(objective="self_reliance", start=turn, stop=recipe.steps, draws=both),
        )
    return (Phase(objective="labels", start=0, stop=recipe.steps, draws=with_labels),)


def supervised(**settings: Any) -> Recipe:
    """Labels as they are: of the labeled images alone, or with label stores, whose weights are not used."""
    return Recipe(name="supervised", method=Supervised(), **settings)


def weighted(**settings: Any) -> Recipe:
    """Cached labels with cached weights, together with the labeled images: the recipe for production."""
    return Recipe(name="weighted", method=Supervised(weighted=True), **settings)


def conformalsam(**settings: Any) -> Recipe:
    """ConformalSAM's two phases; the store should hold conformal labels.

    Batch and learning rate are the paper's (4 and 0.003); optimizer and schedule those of AllSpark, which it builds on.
    """
    return Recipe(**{"name": "conformalsam", "method": ConformalSam(), "batch": 4, "lr": 3e-3, **settings})


def csl(**settings: Any) -> Recipe:
    """CSL on labeled and unlabeled images, as the authors train on VOC (8 and 8 a step, lr 0.001, heads 10x)."""
    return Recipe(**{"name": "csl", "method": Csl(), "batch": 16, "labeled": 8, **settings})


def s2c(**settings: Any) -> Recipe:
    """S2C's classifier; the store should hold the prompted predictor's labels.

    Batch, crop, scales and decay are the authors' on VOC. Their rate of 0.02 goes with next to no momentum, which is
    0.002 with the 0.9 used here.
    """
    defaults = {"batch": 8, "crop": 256, "scale": (0.5, 1.0), "lr": 2e-3, "weight_decay": 5e-4, "model": "cam:lite0"}
    return Recipe(**{"name": "s2c", "method": S2c(), **defaults, **settings})


RecipeName = Literal["supervised", "weighted", "conformalsam", "csl", "s2c"]

RECIPES: Mapping[str, Callable[..., Recipe]] = {
    function.__name__: function for function in (supervised, weighted, conformalsam, csl, s2c)
}


def with_settings(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """The recipe with ``key=value`` settings; ``method.key`` is a setting of the method, ``model.key`` of the model.

    Values are read as the field's type says; those of the model as JSON, or else as text. Raises :class:`UsageError`.
    """
    changes: dict[str, Any] = {}
    method: dict[str, Any] = {}
    options = dict(recipe.model_options)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"a setting is KEY=VALUE, as in crop=256; got {setting!r}")
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
    return replace(recipe, method=replace(recipe.method, **method), model_options=options, **changes)


def recipe_from_json(raw: Mapping[str, Any]) -> Recipe:
    """The inverse of :meth:`Recipe.to_json`."""
    methods = {function: type(function().method) for function in RECIPES.values()}
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
    values["method"] = methods[RECIPES[raw["name"]]](**raw["method"])
    return Recipe(**values)


def _check(holds: bool, name: str, wanted: str, got: Any) -> None:
    if not holds:
        raise UsageError(f"{name} must be {wanted}, got {got!r}")


def _type_of(owner: Any, name: str, key: str) -> Any:
    types = typing.get_type_hints(type(owner))
    if name not in types:
        prefix = key[: len(key) - len(name)]
        known = ", ".join(f"{prefix}{field.name}" for field in dataclasses.fields(owner)) or "none"
        raise UsageError(f"there is no setting {key}; this recipe knows {known}")
    return types[name]


def _value(key: str, text: str, kind: Any) -> Any:
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        _check(text in arguments, key, f"one of {', '.join(arguments)}", text)
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
        wanted = {bool: "true or false", int: "an integer", float: "a number"}.get(kind, "numbers with commas between")
        raise UsageError(f"{key} must be {wanted}, got {text!r}") from None


def _free_value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
