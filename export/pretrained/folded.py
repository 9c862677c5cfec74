"""Description of a family's model for the exporter, and readers of a checkpoint's preprocessing and class names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ...engine.model.bundle import OutputSpec, PromptSpec, Task, TextSpec, check_class_names
from ...engine.model.input_spec import InputSpec, ResizeFilter
from ...errors import UsageError
from ..adopt.preprocessing import PIL_FILTERS, Preprocessing, preprocessing_of
from ..adopt.semantic import BACKGROUND
from .checkpoint import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor, nn

BackgroundScore = Literal["rest", "void"]
Masks = Literal["all", "best"]


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Options of an export; None uses the value of the checkpoint."""

    classes: tuple[str, ...] | None = None
    """Class names: the prompts of a model that takes text, or new names for the classes of another model. SAM 3 without
    them takes class names when it labels.
    """
    background: str | None = None
    """Name of the background class. A model of mask queries or texts without it gets it as its first class, and so does
    a model with one class.
    """
    background_score: BackgroundScore = "rest"
    """Score of an added background: ``rest`` is 1 minus the best class, ``void`` the queries' mass on no class."""
    size: tuple[int, int] | None = None
    """(height, width) of the input in pixels."""
    mean: tuple[float, ...] | None = None
    """Mean per channel, subtracted after scaling."""
    std: tuple[float, ...] | None = None
    """Divisor per channel."""
    resize_filter: ResizeFilter | None = None
    """Interpolation filter of the resize."""
    template: str | None = None
    """Sentence around a class name, for models that take text; the family's own if None."""
    instances: int = 0
    """Number of objects per image that the graph gives beside the scores, best first; 0: none."""
    masks: Masks = "all"
    """Masks per prompt: all of them, or the one with the best predicted IoU."""


@dataclass(frozen=True, kw_only=True)
class Folded:
    """A model with its post-processing folded in: the arguments of ``bundle_from_module``."""

    module: nn.Module
    """(N, 3, H, W) float32 → the outputs, or those of the encoder."""
    decoder: nn.Module | None = None
    """The graph behind the encoder, of a promptable model or one whose classes are named when it labels."""
    task: Task
    """Kind of output that the graphs compute."""
    input: InputSpec
    """How an image becomes the input."""
    outputs: tuple[OutputSpec, ...]
    """Meaning of the outputs."""
    classes: tuple[str, ...] = ()
    """Class names in the order of the class axis."""
    background: str | None = None
    """Name of the background class."""
    reduced_labels: bool = False
    """See :class:`maskmill.engine.model.bundle.Bundle`."""
    prompt: PromptSpec | None = None
    """Prompts of a promptable model."""
    text: TextSpec | None = None
    """Texts of a model whose classes are named when it labels."""
    text_encoder: nn.Module | None = None
    """Its text encoder."""
    tokenizer: str = ""
    """Contents of its ``tokenizer.json``."""


def preprocessing(checkpoint: Checkpoint, choices: Choices) -> Preprocessing:
    """Read the checkpoint's image processor, with the choices in place of its values.

    Resizes that depend on the image's shape (shortest edge, center crop) become a stretch to a square of that edge,
    since labels need the whole image at one size. Raises :class:`UsageError` if the processor is missing or its steps
    cannot be expressed.
    """
    config, path = checkpoint.preprocessor()
    if not config:
        raise UsageError(
            f"{checkpoint.folder} has no preprocessor_config.json, so it is not known how an image becomes its input; "
            "put the model's own beside its weights"
        )
    overrides: dict[str, Any] = {"size": _whole_image(config), "do_center_crop": False}
    if choices.mean is not None:
        overrides["image_mean"] = list(choices.mean)
    if choices.std is not None:
        overrides["image_std"] = list(choices.std)
    if choices.resize_filter is not None:
        overrides["resample"] = {name: number for number, name in PIL_FILTERS.items()}[choices.resize_filter]
    steps = preprocessing_of({**config, **overrides}, path)
    statistics = {name: getattr(choices, name) for name in ("mean", "std") if getattr(choices, name) is not None}
    return dataclasses.replace(steps, fields={**steps.fields, **statistics})


def image_input(
    checkpoint: Checkpoint,
    choices: Choices,
    *,
    fixed: tuple[int, int] | None = None,
    dynamic: bool = False,
    multiple: int = 1,
) -> InputSpec:
    """Describe the input as the checkpoint's image processor prepares it; see :func:`preprocessing`.

    ``fixed`` is the one (height, width) that the model takes. Raises :class:`UsageError` if the checkpoint does not say
    how images are prepared, or if the requested size is not possible.
    """
    steps = preprocessing(checkpoint, choices)
    if choices.size is not None and fixed not in (None, choices.size):
        raise UsageError(f"the model takes {fixed[0]}x{fixed[1]} images only, not {choices.size[0]}x{choices.size[1]}")
    height, width = fixed or choices.size or steps.size or (None, None)
    if height is None or width is None:
        raise UsageError(f"{checkpoint.folder} does not say to which size images are brought; give --size HEIGHTxWIDTH")
    return InputSpec(name="image", height=height, width=width, dynamic=dynamic, multiple=multiple, **steps.fields)


def class_names(checkpoint: Checkpoint, choices: Choices) -> tuple[str, ...]:
    """Return the names of the classes that the model was trained on, or the caller's in their place.

    Raises :class:`UsageError` if the checkpoint names no classes, if its names are not a complete list, or if the
    caller gives another number of names.
    """
    config = checkpoint.config
    labels = config.get("id2label")
    if labels is None:
        if choices.classes is None:
            raise UsageError(
                f"{checkpoint.folder}/config.json names no classes (id2label is missing); give them with --classes FILE"
            )
        model_names = [""] * config.get("num_labels", 2)
    else:
        model_names = _label_list(labels, f"{checkpoint.folder}/config.json")
    if choices.classes is not None:
        if len(choices.classes) != len(model_names):
            raise UsageError(f"the model has {len(model_names)} classes, {len(choices.classes)} names are given")
        check_class_names(choices.classes)
        return choices.classes
    # ImageNet's list contains "crane" twice
    names = tuple(
        f"{name} ({index})" if model_names.count(name) > 1 else name for index, name in enumerate(model_names)
    )
    check_class_names(names)
    return names


def _label_list(labels: object, path: str) -> list[str]:
    """Return the names of ``id2label`` in the order of their indices."""
    if not isinstance(labels, Mapping) or not labels or not all(str(index).isdecimal() for index in labels):
        raise UsageError(f"{path}: id2label must map class indices to names, got {labels!r:.80}; give --classes FILE")
    names = {int(index): name for index, name in labels.items()}
    gaps = [index for index in range(len(names)) if index not in names]
    if gaps:
        raise UsageError(f"{path}: id2label leaves out class {gaps[0]} of {len(names)}; give --classes FILE")
    return [names[index] if isinstance(names[index], str) else "" for index in range(len(names))]


def with_background(
    classes: tuple[str, ...], choices: Choices
) -> tuple[tuple[str, ...], str | None, BackgroundScore | None]:
    """Return the classes, the name of the background, and the score of a background that is added in front.

    A model with one class always gets a background, since its class competes with nothing else.
    """
    background = choices.background or (BACKGROUND if len(classes) == 1 else None)
    if background is None or background in classes:
        return classes, background, None
    return (background, *classes), background, choices.background_score


OBJECTS = (
    OutputSpec(name="object_scores", kind="object_scores", activation="none"),
    OutputSpec(name="object_classes", kind="object_classes", activation="none"),
    OutputSpec(name="object_masks", kind="object_masks", activation="sigmoid"),
)
"""Outputs of a graph that gives single objects."""


def best_objects(scores: Tensor, classes: Tensor, queries: Tensor, masks: Tensor, limit: int) -> tuple[Tensor, ...]:
    """Choose the best of P candidates: scores (N, P), with classes (N or 1, P) and numbers of their masks (P,).

    ``masks`` are logits (N, Q, h, w). Returns scores (N, K), classes (N, K) float32 and masks (N, K, h, w), best first,
    with K at most ``limit``.
    """
    values, places = scores.topk(min(limit, scores.shape[1]), dim=1)
    rows = queries[places][:, :, None, None].expand(-1, -1, *masks.shape[2:])
    return values, classes.float().expand(scores.shape[0], -1).gather(1, places), masks.gather(1, rows)


def _whole_image(config: Mapping[str, Any]) -> Any:
    size = config.get("size")
    if isinstance(size, Mapping) and size.get("shortest_edge") is not None:
        return {"height": size["shortest_edge"], "width": size["shortest_edge"]}
    return size
