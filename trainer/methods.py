"""Training methods: frozen dataclasses with the settings of the losses, one class per family of methods.

A recipe (:mod:`maskmill.trainer.recipes`) holds one of them; :mod:`maskmill.trainer.provenance` records which values
come from a paper, from the authors' code, or from us.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..errors import UsageError

SelectionRule = Literal["pcos", "threshold", "matched", "conformal", "conformal-pcos"]
PcosForm = Literal["code", "supplement"]
PcosMetrics = Literal["dispersion", "dispersion+entropy", "dispersion+residual-entropy", "dispersion+margin", "all"]
PcosGroups = Literal["image", "class"]
SecondView = Literal["masked", "cutmix"]
MaskForm = Literal["code", "supplement"]
Partners = Literal["batch", "second"]
MaskedImages = Literal["unlabeled", "labeled", "both"]
MaskedColors = Literal["none", "strong", "strong-without-gray", "mild-without-gray"]
FeatureDropout = Literal["separate", "complementary"]
Teacher = Literal["student", "average"]


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """Cross-entropy on given labels: of the labeled images and, if there are any, of label stores."""

    weighted: bool = False
    """Multiply the loss of each pixel by its weight in the store; pixels of labeled images have weight 1."""


@dataclass(frozen=True, kw_only=True)
class ConformalSam:
    """ConformalSAM: phase I on the labels of a store, phase II on the labels of the student itself."""

    self_reliance: float = 0.39
    """Share of all steps in phase II, which is added after the ``steps`` of phase I. The paper's 20 epochs after 60
    are .398 (92 labeled images of VOC) to .383 (732) of all steps. A recipe with ``epochs`` computes it."""
    initial: float = 0.01
    """lambda_0, the share of the unlabeled loss at the start of phase II."""
    decay: float = 5.0
    """lambda(t) = lambda_0 exp(-decay t / T) over the T steps of phase II. A guess: the paper names no value."""

    def __post_init__(self) -> None:
        check(0 < self.self_reliance < 1, "method.self_reliance", "above 0 and below 1", self.self_reliance)
        check(0 <= self.initial <= 1, "method.initial", "from 0 to 1", self.initial)
        check(self.decay >= 0, "method.decay", "at least 0", self.decay)


@dataclass(frozen=True, kw_only=True)
class AllSpark:
    """AllSpark: labeled features are rebuilt from unlabeled channels; L = labeled L_x + unlabeled L_u.

    Needs a model ``allspark:NAME`` (:mod:`maskmill.trainer.students.allspark`). The labels of L_u are the predictions
    of the student for the same view in eval mode.
    """

    labeled: float = 0.5
    """Weight of L_x."""
    unlabeled: float = 0.5
    """Weight of L_u."""
    memory_start: float = 0.0625
    """Share of the steps before labeled features attend to the semantic memory instead of the unlabeled batch."""

    def __post_init__(self) -> None:
        for name in ("labeled", "unlabeled"):
            check(getattr(self, name) >= 0, f"method.{name}", "at least 0", getattr(self, name))
        check(0 <= self.memory_start <= 1, "method.memory_start", "from 0 to 1", self.memory_start)


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """Weak-to-strong consistency on unlabeled images: CSL, FixMatch, UniMatch and UniMatch V2 by their settings.

    ``L = labeled L_x + strong L_s + second L_m + features L_fp``. The labels of the three unlabeled losses are the
    predictions for the weak view. The defaults are CSL as in the authors' code, 1/2 [L_x + 1/4 L_s + 1/4 L_m + 1/2
    L_fp]; the supplement's (lambda_1, lambda_2) is ``strong`` = lambda_1 / 4 and ``second`` = lambda_2 / 4.
    """

    selection: SelectionRule = "pcos"
    """``pcos``: every pixel with its PCOS weight; ``threshold``: pixels with a confidence of at least ``threshold``;
    ``matched``: the most confident pixels of an image, as many as PCOS weighs in total, to compare the two orders;
    ``conformal``: pixels whose prediction set is their top class alone, with thresholds per class from the labeled
    images; ``conformal-pcos``: the same pixels with their PCOS weights."""
    threshold: float = 0.95
    """Lowest confidence that counts (``threshold`` only)."""
    alpha: float = 0.1
    """Miscoverage of the prediction sets (``conformal`` only)."""
    recalibrate: int = 50
    """Steps between two calibrations of the student (``conformal`` only)."""
    calibration_share: float = 0.0
    """Share of the labeled images that calibrate the student and are not trained on (``conformal`` only). With 0 all
    labeled images are used for both; but scores of images that the student has learned are too low, and so are the
    thresholds."""
    pcos: PcosForm = "code"
    """``code``: exponent z²/8, the authors' dispersion, epsilon 1e-8; ``supplement``: z²/64, exact dispersion, no
    epsilon."""
    metrics: PcosMetrics = "dispersion"
    """Features of a pixel besides its confidence; ``all``: dispersion, entropy, residual entropy and margin."""
    groups: PcosGroups = "image"
    """Group of pixels that PCOS compares: all of an image, or those of one predicted class of an image."""
    teacher: Teacher = "student"
    """Network that labels the weak view: the student, or the moving average of its weights (needs ``ema``)."""
    labeled: float = 0.5
    """Weight of the labeled loss L_x."""
    strong: float = 0.125
    """Weight of L_s, the strong view with CutMix."""
    second: float = 0.125
    """Weight of L_m, the second view."""
    features: float = 0.25
    """Weight of L_fp, the weak view with dropped feature channels."""
    second_view: SecondView = "masked"
    """``masked``: trusted mask perturbation on the share ``cover_probability`` of the images, a plain strong view for
    the others; ``cutmix``: another strong view with its own CutMix box."""
    start: int = 0
    """First step with unlabeled losses."""
    ramp: float = 0.0
    """Share of the steps in which the weights of the unlabeled losses rise linearly from 0, beginning at ``start``.
    For short runs: PCOS trusts most pixels of every image, even if the first predictions are poor."""
    mask_form: MaskForm = "code"
    """``supplement``: as in Algorithm 2, masks every image, floor(crop / cell) cells per side, unweighted loss."""
    cover_probability: float = 0.5
    """Share of the images with masked cells (``code`` only); 0 turns trusted mask perturbation off."""
    cover: float = 0.7
    """Share of the cells that are masked, on pixels with a reliable prediction."""
    cell: int = 32
    """Side of a cell, in pixels."""
    masked_images: MaskedImages = "unlabeled"
    """Images whose masked view L_m is over. All labeled pixels count as reliable."""
    masked_colors: MaskedColors = "mild-without-gray"
    """Color augmentation before masking; ``none`` is the weak view."""
    masked_cutmix: bool = False
    """Apply CutMix before masking."""
    screen: float = 0.0
    """Confidence from which the prediction for the masked view replaces an unreliable label in L_s and L_fp; 0: off."""
    cutmix: float = 0.5
    """Share of the images that are mixed with another one."""
    partners: Partners = "batch"
    """Images that CutMix takes its boxes from: ``batch``: the next image of the same batch, as UniMatch V2's code;
    ``second``: a second batch of unlabeled images in another order, with labels of its own from a forward pass more,
    as the code of UniMatch and CSL."""
    dropout: float = 0.5
    """Share of the feature channels that are dropped."""
    feature_dropout: FeatureDropout = "separate"
    """``separate``: L_fp decodes the weak features of labeled and unlabeled images with dropped channels;
    ``complementary``: the two strong views each keep the channels that the other drops (half of the images only)."""
    strong_statistics: bool = False
    """Let the strong views update the running statistics of batch normalization."""

    @property
    def calibrates(self) -> bool:
        """Return True if the thresholds come from labeled images."""
        return self.selection in ("conformal", "conformal-pcos")

    def __post_init__(self) -> None:
        for name in ("threshold", "ramp", "cover_probability", "cover", "cutmix", "screen"):
            check(0 <= getattr(self, name) <= 1, f"method.{name}", "from 0 to 1", getattr(self, name))
        for name in ("labeled", "strong", "second", "features", "start"):
            check(getattr(self, name) >= 0, f"method.{name}", "at least 0", getattr(self, name))
        for name in ("dropout", "calibration_share"):
            check(0 <= getattr(self, name) < 1, f"method.{name}", "at least 0 and below 1", getattr(self, name))
        check(0 < self.alpha < 1, "method.alpha", "above 0 and below 1", self.alpha)
        check(self.recalibrate >= 1, "method.recalibrate", "at least 1", self.recalibrate)
        check(self.cell >= 1, "method.cell", "at least 1", self.cell)
        if self.feature_dropout == "complementary" and self.features:
            raise UsageError("method.feature_dropout=complementary replaces the feature view; set method.features=0")
        if self.second_view == "cutmix" and self.masked_images != "unlabeled":
            raise UsageError("method.masked_images needs method.second_view=masked")


@dataclass(frozen=True, kw_only=True)
class S2c:
    """S2C: a classifier whose activation maps learn from a promptable model; see
    :mod:`maskmill.trainer.objectives.s2c`.

    ``L = L_cls + segments L_SSC + prompted L_CPM``.
    """

    segments: float = 1.0
    """Weight of L_SSC, the contrast between segments."""
    prompted: float = 1.0
    """Weight of L_CPM, the labels of the prompted predictor."""
    warmup: float = 0.05
    """Share of the steps before L_CPM begins (the authors' 2 of 40 epochs)."""
    temperature: float = 1.0
    """T of L_SSC."""
    compat: bool = False
    """Number segments and compute L_SSC as the authors' code does, not as the equation says."""

    def __post_init__(self) -> None:
        for name in ("segments", "prompted"):
            check(getattr(self, name) >= 0, f"method.{name}", "at least 0", getattr(self, name))
        check(0 <= self.warmup <= 1, "method.warmup", "from 0 to 1", self.warmup)
        check(self.temperature > 0, "method.temperature", "above 0", self.temperature)


Method = Supervised | ConformalSam | AllSpark | Consistency | S2c


def check(condition: bool, name: str, expected: str, value: Any) -> None:
    """Raise :class:`UsageError` with the name, expected range and value of a setting if ``condition`` is False."""
    if not condition:
        raise UsageError(f"{name} must be {expected}, got {value!r}")
