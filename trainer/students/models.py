"""Students: networks built by name, and the trained student of a run.

::

    model = build_model("lite0", num_classes=21)
    logits = model(images)                  # (N, 3, H, W) float32, normalized → (N, 21, h, w)
    student = load_run("run")
    student.module, student.classes, student.input

Names are ``lite0``, ``tiny`` and ``deeplabv3plus`` (built in), ``segformer``, ``dpt-dinov2``, ``dpt-dinov3``,
``linear-dinov3`` and ``deeplabv3plus-mobilenetv2`` (transformers), ``smp:Architecture`` (segmentation-models-pytorch),
and ``package.module:function`` for any function of your own that takes the number of classes, ``pretrained`` and
options, and returns a ``torch.nn.Module``. ``cam:NAME`` turns any of them into a classifier with activation maps,
``allspark:NAME`` inserts the AllSpark block. Their options are the arguments of the functions in :mod:`.networks`,
:mod:`.deeplab` and :mod:`.libraries`.

A model is ``decode(encode(images))`` with a list of feature maps between the two. It has ``backbone_parameters()`` and
``head_parameters()``; ``input_spec(height, width)``, the preprocessing of its input; and the ``options`` that build it
again with ``pretrained=False`` and without a download.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...engine.model.input_spec import InputSpec
from ...errors import TrainingError, UsageError
from ...kernels.processors import limit_torch_threads
from ..recipes import names_code
from ..run import Run, best_checkpoint, import_torch, read_checkpoint, student_state
from . import networks
from .allspark import allspark
from .classifier import classifier
from .deeplab import deeplabv3plus
from .libraries import by_path, deeplabv3plus_mobilenetv2, dpt_dinov2, dpt_dinov3, linear_dinov3, segformer, smp
from .networks import batchnorm_layers, lite0, tiny

if TYPE_CHECKING:
    from torch import nn

_MODELS: Mapping[str, Callable[..., nn.Module]] = {
    "lite0": lite0,
    "tiny": tiny,
    "segformer": segformer,
    "dpt-dinov2": dpt_dinov2,
    "dpt-dinov3": dpt_dinov3,
    "linear-dinov3": linear_dinov3,
    "deeplabv3plus": deeplabv3plus,
    "deeplabv3plus-mobilenetv2": deeplabv3plus_mobilenetv2,
}


def build_model(
    name: str,
    num_classes: int,
    *,
    background: int | None = None,
    pretrained: bool = True,
    freeze_batchnorm: bool = False,
    channels: int = 3,
    **options: Any,
) -> nn.Module:
    """Build a student for ``num_classes`` classes with a random head and, if ``pretrained``, a pretrained backbone.

    With ``freeze_batchnorm`` the backbone normalizes by its stored statistics, which small batches need. ``background``
    is the index of the background class, for which a classifier (``cam:``) has no activation map. ``channels`` is the
    number of bands that the student takes in place of three colors; see :func:`.networks.widen_input`.

    Raises :class:`UsageError` for an unknown name or option, and :class:`MissingPackageError`.
    """
    import_torch()
    limit_torch_threads()
    if num_classes < 2:
        raise UsageError(f"a student needs at least 2 classes, got {num_classes}")
    factory = _factory(name, background)
    try:
        model = factory(num_classes, pretrained=pretrained, **options)
    except TypeError as error:
        if "keyword argument" not in str(error):
            raise
        raise UsageError(f"the model {name} does not take these options: {error}") from error
    if channels != 3:
        networks.widen_input(model, channels, pretrained=pretrained)
        model.options["channels"] = channels
    if freeze_batchnorm:
        networks.freeze_batchnorm(model)
    return model


def _factory(name: str, background: int | None) -> Callable[..., nn.Module]:
    if name.startswith("cam:"):
        return partial(_classifier, name.removeprefix("cam:"), background)
    if name.startswith("allspark:"):
        return partial(_allspark, name.removeprefix("allspark:"))
    if name in _MODELS:
        return _MODELS[name]
    if name.startswith("smp:"):
        return partial(smp, name.removeprefix("smp:"))
    if ":" in name:
        return partial(by_path, name)
    raise UsageError(
        f"there is no model {name!r}; choose one of {', '.join(_MODELS)}, smp:Architecture, package.module:function, "
        "or cam:NAME or allspark:NAME with one of these"
    )


def _classifier(
    name: str, background: int | None, num_classes: int, *, pretrained: bool, features: int = 256, **options: Any
) -> nn.Module:
    body = build_model(name, features, pretrained=pretrained, **options)
    return classifier(body, features, num_classes, background)


def _allspark(
    name: str, num_classes: int, *, pretrained: bool, crop: int = 512, heads: int = 2, dropout: float = 0.1,
    temperature: float = 1.0, **options: Any,
) -> nn.Module:  # fmt: skip
    body = build_model(name, num_classes, pretrained=pretrained, **options)
    return allspark(body, num_classes, crop=crop, heads=heads, dropout=dropout, temperature=temperature)


@dataclass(frozen=True, kw_only=True)
class Student:
    """A trained network with its classes and preprocessing."""

    module: nn.Module
    """In evaluation mode: images (N, 3, H, W) float32, preprocessed as ``input`` says → logits (N, K, h, w)."""
    classes: tuple[str, ...]
    """Names of the K classes, in the order of the class axis."""
    background: int | None
    """Index of the background class, or None."""
    input: InputSpec
    """Preprocessing of an image."""
    run: Run
    """The record of its training."""
    thresholds: NDArray[np.float64] | None = None
    """(K,) thresholds of its prediction sets if it was calibrated while it was trained, otherwise None."""


def load_run(path: str | os.PathLike[str], *, allow_code: bool = False) -> Student:
    """Load the student of a run: the best checkpoint if there was validation, else the last.

    A run can name a function as its model, which would be imported and called: refused without ``allow_code``.

    Raises :class:`TrainingError` if the folder holds no run, no checkpoint, a checkpoint of another network, or the
    name of a function.
    """
    run = Run.load(path)
    if names_code(run.recipe.model) and not allow_code:
        raise TrainingError(
            f"{path} names the function {run.recipe.model!r:.80} as its model, which would be imported and called; "
            "allow that with --allow-code (allow_code=True) if you trust where the run comes from"
        )
    file = best_checkpoint(path)
    try:
        module = build_model(
            run.recipe.model, len(run.classes), background=run.background, pretrained=False, **run.model_options
        )
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, OverflowError, MemoryError) as error:
        raise TrainingError(f"{path} does not describe a {run.recipe.model} that can be built: {error}") from error
    state = read_checkpoint(file)
    try:
        module.load_state_dict(dict(student_state(state)))
        thresholds = None if state.get("thresholds") is None else np.array(state["thresholds"], np.float64)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise TrainingError(f"{file} does not hold the weights of {run.recipe.model}: {error}") from error
    return Student(
        module=module.eval(), classes=run.classes, background=run.background, input=run.input, run=run,
        thresholds=thresholds,
    )  # fmt: skip


@contextmanager
def keep_batchnorm(model: nn.Module) -> Iterator[None]:
    """Use batch statistics in training mode without updating the running statistics."""
    layers = [layer for layer in batchnorm_layers(model) if layer.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
