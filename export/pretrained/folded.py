"""What every family gives to the exporter, and what they share in reading a checkpoint's description."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ...engine.model.bundle import InputSpec, OutputSpec, PromptSpec, Task
from ...errors import UsageError
from ..adopt.semantic import preprocessing_of
from .checkpoint import Checkpoint

if TYPE_CHECKING:
    from torch import nn

BackgroundScore = Literal["rest", "void"]
Masks = Literal["all", "best"]


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the caller decides about an export; None is what the checkpoint says."""

    classes: tuple[str, ...] | None = None
    """Class names: of a model that takes text what it is asked for, of another model new names for its classes."""
    background: str | None = None
    """Name of the background class. Models made of masks and texts get that class, first, where they have none."""
    background_score: BackgroundScore = "rest"
    """Score of a class so added: ``rest`` is what the best class leaves of 1, ``void`` what queries give no class."""
    size: tuple[int, int] | None = None
    """(height, width) of the input in pixels."""
    template: str = "a photo of a {}."
    """The sentence that a class name stands in, for models that take text."""
    masks: Masks = "all"
    """Masks that a prompt gives: all of them, or the one that the model thinks best."""


@dataclass(frozen=True, kw_only=True)
class Folded:
    """A model with its post-processing folded in, ready to be exported: arguments of ``bundle_from_module``."""

    module: nn.Module
    """(N, 3, H, W) float32 → the outputs, or those of the encoder."""
    decoder: nn.Module | None = None
    """The second graph of a promptable model."""
    task: Task
    """What the graphs compute."""
    input: InputSpec
    """How an image becomes the input."""
    outputs: tuple[OutputSpec, ...]
    """What the outputs mean."""
    classes: tuple[str, ...] = ()
    """Class names in the order of the class axis."""
    background: str | None = None
    """Name of the background class."""
    prompt: PromptSpec | None = None
    """How a promptable model is prompted."""


def image_input(
    checkpoint: Checkpoint,
    choices: Choices,
    *,
    fixed: tuple[int, int] | None = None,
    dynamic: bool = False,
    multiple: int = 1,
) -> InputSpec:
    """The input as the checkpoint's image processor prepares it.

    ``fixed`` is the one (height, width) that the model takes. Resizes that depend on the image's shape (shortest edge,
    center crop) become a stretch to a square of that edge, since labels need the whole image at one size.

    Raises :class:`UsageError` where the checkpoint does not say how, or the size asked for cannot be had.
    """
    config, path = checkpoint.preprocessor()
    if not config:
        raise UsageError(
            f"{checkpoint.folder} has no preprocessor_config.json, so it is not known how an image becomes its input; "
            "put the model's own beside its weights"
        )
    fields, size = preprocessing_of({**config, "size": _whole_image(config), "do_center_crop": False}, path)
    if choices.size is not None and fixed not in (None, choices.size):
        raise UsageError(f"the model takes {fixed[0]}x{fixed[1]} images only, not {choices.size[0]}x{choices.size[1]}")
    height, width = fixed or choices.size or size or (None, None)
    if height is None or width is None:
        raise UsageError(f"{path} does not say to which size images are brought; give --size HEIGHTxWIDTH")
    return InputSpec(name="image", height=height, width=width, dynamic=dynamic, multiple=multiple, **fields)


def class_names(checkpoint: Checkpoint, choices: Choices) -> tuple[str, ...]:
    """Names of the classes that the model was trained on, unique; the caller's instead where there are as many."""
    labels = checkpoint.config.get("id2label") or {index: f"LABEL_{index}" for index in range(2)}
    own = [str(name) for _, name in sorted((int(index), name) for index, name in labels.items())]
    if choices.classes is not None:
        if len(choices.classes) != len(own):
            raise UsageError(f"the model has {len(own)} classes, {len(choices.classes)} names are given")
        return choices.classes
    # ImageNet's list has two cranes
    return tuple(f"{name} ({index})" if own.count(name) > 1 else name for index, name in enumerate(own))


def with_background(classes: tuple[str, ...], choices: Choices) -> tuple[tuple[str, ...], BackgroundScore | None]:
    """The classes with the background first where it has to be added, and the score it then gets."""
    if choices.background is None or choices.background in classes:
        return classes, None
    return (choices.background, *classes), choices.background_score


def _whole_image(config: Mapping[str, Any]) -> Any:
    size = config.get("size")
    if isinstance(size, Mapping) and "shortest_edge" in size:
        return {"height": size["shortest_edge"], "width": size["shortest_edge"]}
    return size
