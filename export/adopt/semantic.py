"""Make a bundle from an existing ONNX file.

The graph is checked, edited if necessary, and run on generated pictures before anything is written. The caller, or a
Hugging Face ``preprocessor_config.json``, states the facts that the graph does not contain: how an image becomes its
input, the meaning of its scores, and the class names. Detectors with masks, YOLO-seg and RF-DETR-Seg, become semantic
models with objects (:mod:`.objects`)::

    bundle_from_onnx("model.onnx", "bundle", classes=names, background="background", layout="NCHW", scale=1 / 255)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...checks import name_list
from ...engine.model.bundle import Activation, Bundle, OutputSpec, check_class_names
from ...engine.model.input_spec import InputSpec, Layout
from ...errors import BundleError, UsageError
from ..graph import shape_of
from ..pictures import GateImage
from ..staging import staged
from .adoption import Adoption
from .objects import Detector, detector_of, fold_detector
from .rewrite import add_complement, cut_argmax, expose_features
from .signatures import refuse_other_models
from .trial import Trial, trial_tensors

if TYPE_CHECKING:
    import onnx

BACKGROUND = "background"
"""Name of the background class of a one-channel model, unless the caller gives another one."""
_ROUNDING = 2e-3  # 16-bit probabilities do not sum to 1 exactly


def bundle_from_onnx(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    classes: Sequence[str],
    background: str | None = None,
    layout: Layout = "NCHW",
    size: tuple[int, int] | None = None,
    activation: Activation = "softmax",
    output_name: str | None = None,
    features_name: str | None = None,
    reduced_labels: bool = False,
    license: str = "",
    images: Sequence[GateImage] = (),
    **preprocessing: Any,
) -> Bundle:
    """Adopt a semantic segmentation model.

    Parameters
    ----------
    model
        The ONNX file; external data must reside in its folder.
    output
        Folder of the bundle, which must not exist yet.
    classes, background
        Class names in the order of the class axis, and which of them is the background. A model with one channel has
        one class, or two with the background; the bundle's second channel is the background at one minus the class.
    layout, size
        Order of the input's axes, and its (height, width) in pixels, which may be left out if the graph fixes it.
    activation
        Function that turns the output into scores; ``none`` if the output holds probabilities.
    output_name
        Name of the score output, if the graph has several.
    features_name
        Name of a tensor of the graph, (N, D, h, w) or (N, D), that becomes the output ``features``.
    reduced_labels
        See :class:`Bundle`.
    license
        License of the weights, for the record.
    images
        Photos, with names, that the model is tested on in addition to generated pictures.
    preprocessing
        Further fields of :class:`InputSpec`: resize, resize_filter, antialias, channels, bands, scale, mean, std,
        pad_value.

    The edits to the graph are recorded in the bundle's ``source.changes``. Raises :class:`BundleError` for a
    graph that cannot be used, :class:`UsageError` for options that contradict it.
    """
    source, folder = Path(model), Path(output)
    if folder.exists():
        raise UsageError(f"{folder} exists already; remove it or choose another name for the bundle")
    check_class_names(classes)
    adoption = Adoption.open(source)
    detector = detector_of(adoption.model, len(classes)) if output_name is None else None
    if detector is not None:
        preprocessing = {**detector.preprocessing, **preprocessing}
        return _with_objects(
            adoption, detector, folder, classes, background, layout=layout, size=size, license=license, images=images,
            preprocessing=preprocessing,
        )  # fmt: skip
    refuse_other_models(adoption.model)
    name, size = adoption.image_input(layout, size, preprocessing)
    spec = InputSpec(name=name, layout=layout, height=size[0], width=size[1], **preprocessing)
    scores = _score_output(adoption.model, output_name)
    scores, note = cut_argmax(adoption.model, scores)
    adoption.note(note)
    score_value = next(value for value in adoption.model.graph.output if value.name == scores)
    names, foreground = _class_names(score_value, classes, background, layout)
    class_axis = _class_axis(score_value, 1 if foreground is not None else len(names), layout)
    score_output = OutputSpec(name=scores, activation=activation, class_axis=class_axis)
    if background is None and foreground is not None:
        background = BACKGROUND
    if background is not None and background not in names:
        raise UsageError(f"the background {background!r} is not one of the classes: {name_list(names)}")
    with staged(folder) as staging:
        tensors = trial_tensors(spec, images)
        files = adoption.write(staging, spec, [score_output.name], tensors)
        maps = [values[0] for values in Trial(files[0], name, [score_output.name]).steady_outputs(tensors)]
        _check_values(maps, score_output, 1 if foreground is not None else len(names))
        outputs = [score_output]
        if foreground is not None:
            outputs = [_two_channels(adoption, score_output, background_first=foreground == 1)]
        if features_name is not None:
            features, sentence = expose_features(adoption.model, features_name)
            adoption.note(sentence)
            outputs.append(OutputSpec(name=features, kind="features", activation="none"))
        adoption.rewrite(files[0])
        adoption.save(
            files,
            task="semantic",
            license=license,
            input=spec,
            outputs=tuple(outputs),
            classes=names,
            background=None if background is None else names.index(background),
            reduced_labels=reduced_labels,
        )
    return Bundle.load(folder)


def _with_objects(
    adoption: Adoption,
    detector: Detector,
    folder: Path,
    classes: Sequence[str],
    background: str | None,
    *,
    layout: Layout,
    size: tuple[int, int] | None,
    license: str,
    images: Sequence[GateImage],
    preprocessing: dict[str, Any],
) -> Bundle:
    """Adopt a detector with masks; the background is added in front of its classes."""
    background = background or BACKGROUND
    if background in classes:
        raise UsageError(
            f"{detector.kind} has no class for the background, which is added: name it with --background, and leave "
            f"{background!r} out of the classes"
        )
    name, size = adoption.image_input(layout, size, preprocessing)
    spec = InputSpec(name=name, layout=layout, height=size[0], width=size[1], **preprocessing)
    adoption.model, outputs, sentence = fold_detector(adoption.model, detector, len(classes), size)
    adoption.note(sentence)
    with staged(folder) as staging:
        tensors = trial_tensors(spec, images)
        files = adoption.write(staging, spec, ["scores"], tensors)
        Trial(files[0], name, ["scores"]).steady_outputs(tensors)
        adoption.rewrite(files[0])
        adoption.save(
            files,
            task="semantic",
            license=license,
            input=spec,
            outputs=outputs,
            classes=(background, *classes),
            background=0,
        )
    return Bundle.load(folder)


def _two_channels(adoption: Adoption, output: OutputSpec, *, background_first: bool) -> OutputSpec:
    name, activation, sentence = add_complement(
        adoption.model, output.name, output.class_axis, output.activation, background_first
    )
    adoption.note(sentence)
    return OutputSpec(name=name, activation=activation, class_axis=output.class_axis)


def _score_output(model: onnx.ModelProto, output_name: str | None) -> str:
    outputs = [value.name for value in model.graph.output]
    names = ", ".join(outputs)
    if output_name is not None:
        if output_name not in outputs:
            raise UsageError(f"the graph has no output {output_name!r}; it has {names}")
        return output_name
    if len(outputs) != 1:
        raise UsageError(f"the graph has {len(outputs)} outputs ({names}); choose the score map with --output-name")
    return outputs[0]


def _class_names(
    value: onnx.ValueInfoProto, classes: Sequence[str], background: str | None, layout: Layout
) -> tuple[tuple[str, ...], int | None]:
    """Return the bundle's class names, and the index of the only class that a one-channel graph scores, else None."""
    shape = shape_of(value)
    channels = {shape[axis] for axis in (1, 3)} if len(shape) == 4 else set()
    preferred = shape[1 if layout == "NCHW" else 3] if len(shape) == 4 else None
    if len(classes) == 1 and background not in classes:
        return (background or BACKGROUND, classes[0]), 1
    one_channel = 1 in channels and len(classes) not in channels and preferred in (None, 1)
    if len(classes) == 2 and one_channel and background is not None and background in classes:
        return tuple(classes), 1 - list(classes).index(background)
    return tuple(classes), None


def _class_axis(value: onnx.ValueInfoProto, num_channels: int, layout: Layout) -> int:
    shape = shape_of(value)
    if value.type.tensor_type.elem_type not in (1, 10, 16):  # FLOAT, FLOAT16, BFLOAT16
        raise BundleError(
            f"the output {value.name!r} is not floating point: it holds labels, and calibration needs scores; "
            "export the model without its final ArgMax"
        )
    if shape and len(shape) != 4:
        raise BundleError(f"the output {value.name!r} has {len(shape)} axes; a batch of score maps has four")
    preferred, alternative = (1, 3) if layout == "NCHW" else (3, 1)
    sizes = {axis: shape[axis] if shape else None for axis in (1, 3)}
    for axis in (preferred, alternative):
        if sizes[axis] == num_channels:
            return axis
    if sizes[preferred] is None:
        return preferred
    raise UsageError(
        f"the output {value.name!r} has shape {shape}, which has no axis of {num_channels} classes; "
        "check the class list (background included)"
    )


def _check_values(maps: Sequence[NDArray[Any]], output: OutputSpec, channels: int) -> None:
    """Check the values of the graph's own output, maps of single images, against the manifest."""
    axis = output.class_axis - 1
    if any(scores.ndim != 3 or scores.shape[axis] != channels for scores in maps):
        raise UsageError(
            f"the model gives an output of shape {maps[0].shape} for an image, not {channels} classes on axis "
            f"{axis}; check the class list (background included)"
        )
    low = min(float(scores.min()) for scores in maps)
    high = max(float(scores.max()) for scores in maps)
    probabilities = low >= -_ROUNDING and high <= 1 + _ROUNDING
    if output.activation != "none" and probabilities:
        sums = channels > 1 and all(
            float(np.abs(scores.sum(axis=axis, dtype=np.float64) - 1).max()) < _ROUNDING * 5 for scores in maps
        )
        raise UsageError(
            f"every value of {output.name!r} is in [0, 1]{' and they sum to 1 over the classes' if sums else ''}, so "
            f"they are probabilities already; use --activation none, not {output.activation}"
        )
    if output.activation == "softmax" and channels == 1:
        raise UsageError(
            "the model has one channel, and a softmax over one channel is 1 everywhere; its values are logits: use "
            "--activation sigmoid"
        )
    if output.activation == "none" and low < -_ROUNDING:
        better = "sigmoid" if channels == 1 else "softmax, or sigmoid if classes overlap"
        raise UsageError(
            f"the values of {output.name!r} reach from {low:.3g} to {high:.3g}, so they are logits, not scores; use "
            f"--activation {better}"
        )
