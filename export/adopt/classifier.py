"""Make a cam bundle from an existing ONNX image classifier.

::

    cam_from_onnx("resnet50.onnx", "resnet50-cam", classes=names, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

A graph that returns class activation maps beside its logits is adopted unchanged. If a graph returns only logits, the
maps are derived from its head, which must be a mean over all positions and a linear layer: the maps are the linear
layer at every position (arXiv 1512.04150), and their mean plus the bias equals the logits.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...checks import name_list
from ...engine.model.bundle import Activation, Bundle, Kind, OutputSpec, check_class_names
from ...engine.model.input_spec import InputSpec, Layout
from ...errors import BundleError, UsageError
from ..graph import shape_of
from ..staging import staged
from .adoption import Adoption
from .head import classifier_head, with_head
from .trial import Trial, trial_tensors

if TYPE_CHECKING:
    import onnx

_REBUILT: tuple[tuple[str, Kind], ...] = (("cam", "cam"), ("logits", "logits"), ("features", "features"))
"""Names and kinds of the outputs of :func:`maskmill.export.adopt.head.with_head`."""


def cam_from_onnx(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    classes: Sequence[str],
    background: str | None = None,
    layout: Layout = "NCHW",
    size: tuple[int, int] | None = None,
    activation: Activation = "softmax",
    license: str = "",
    **preprocessing: Any,
) -> Bundle:
    """Adopt a classifier.

    Parameters
    ----------
    model
        The ONNX file; external data must reside in its folder.
    output
        Folder of the bundle, which must not exist yet.
    classes, background
        Class names in the order of the logits, and which of them stands for an image without any object, if any.
    layout, size
        Order of the input's axes, and its (height, width) in pixels, which may be left out if the graph fixes it. If
        the graph leaves it free, other sizes work as well.
    activation
        Function that turns logits into probabilities.
    license
        License of the weights, for the record.
    preprocessing
        Further fields of :class:`InputSpec`.

    Raises :class:`BundleError` for a graph that cannot be used, :class:`UsageError` for options that contradict it.
    """
    source, folder = Path(model), Path(output)
    if folder.exists():
        raise UsageError(f"{folder} exists already; remove it or choose another name for the bundle")
    if activation not in ("softmax", "sigmoid"):
        raise UsageError(f"a classifier's activation is softmax or sigmoid, got {activation!r}")
    if background is not None and background not in classes:
        raise UsageError(f"the background {background!r} is not one of the classes: {name_list(classes)}")
    check_class_names(classes)
    adoption = Adoption.open(source)
    name, input_size = adoption.image_input(layout, size, preprocessing)
    spec = InputSpec(
        name=name,
        layout=layout,
        height=input_size[0],
        width=input_size[1],
        dynamic=_has_free_size(adoption.model, name, layout),
        **preprocessing,
    )
    logits, kinds = _outputs(adoption.model, len(classes))
    with staged(folder) as staging:
        tensors = trial_tensors(spec)
        files = adoption.write(staging, spec, [logits], tensors)
        originals = [values[0] for values in Trial(files[0], name, [logits]).steady_outputs(tensors)]
        if kinds is None:
            _rebuild(files, name, len(classes))
            files, kinds = files[:1], _REBUILT
        names = [output_name for output_name, _ in kinds]
        actual = Trial(files[0], name, names).steady_outputs(tensors)
        _check_outputs(dict(zip([kind for _, kind in kinds], zip(*actual, strict=True), strict=True)), originals)
        adoption.save(
            files,
            task="cam",
            license=license,
            input=spec,
            outputs=tuple(
                OutputSpec(name=output_name, kind=kind, activation=activation if kind == "logits" else "none")
                for output_name, kind in kinds
            ),
            classes=tuple(classes),
            background=None if background is None else list(classes).index(background),
        )
    return Bundle.load(folder)


def _has_free_size(model: onnx.ModelProto, name: str, layout: Layout) -> bool:
    shape = next(shape_of(value) for value in model.graph.input if value.name == name)
    rows, columns = (2, 3) if layout == "NCHW" else (1, 2)
    return shape[rows] is None and shape[columns] is None


def _outputs(model: onnx.ModelProto, num_classes: int) -> tuple[str, tuple[tuple[str, Kind], ...] | None]:
    """Return the name of the logits, and (name, kind) of each output; None for a graph that gives logits only."""
    shapes = {value.name: shape_of(value) for value in model.graph.output}
    described = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    logits = [name for name, shape in shapes.items() if len(shape) == 2 and shape[1] in (None, num_classes)]
    maps = [name for name, shape in shapes.items() if len(shape) == 4]
    if len(logits) != 1:
        raise UsageError(
            f"a classifier gives logits (N, {num_classes}) for its {num_classes} classes; this graph gives {described}"
        )
    if not maps:
        return logits[0], None
    cams = [name for name in maps if name == "cam"] or [name for name in maps if shapes[name][1] == num_classes]
    features = [name for name in maps if name not in cams]
    if len(cams) != 1 or len(features) > 1:
        raise UsageError(
            f"a cam graph gives one map of {num_classes} classes, logits, and at most one map of features; this one "
            f"gives {described}"
        )
    return logits[0], ((cams[0], "cam"), (logits[0], "logits"), *((name, "features") for name in features))


def _rebuild(files: Sequence[Path], image: str, num_classes: int) -> None:
    """Replace the classifier in ``files`` by one with the outputs of :data:`_REBUILT`, all weights in one file."""
    import onnx

    model = onnx.load_model(str(files[0]))
    head = classifier_head(model)
    if len(head.weight) != num_classes:
        raise UsageError(f"the classifier has {len(head.weight)} classes, {num_classes} are named")
    onnx.save_model(with_head(model, image, head), str(files[0]))
    for data in files[1:]:
        data.unlink()


def _check_outputs(actual: dict[str, Sequence[NDArray[Any]]], originals: Sequence[NDArray[Any]]) -> None:
    """Check the shapes, and that the classes rank as the original's do."""
    for cams, logits, original in zip(actual["cam"], actual["logits"], originals, strict=True):
        num = len(original)
        if cams.ndim != 3 or len(cams) != num or logits.shape != (num,):
            raise BundleError(f"run on a picture, the model gives maps {cams.shape} with logits {logits.shape}")
        # a final softmax or sigmoid, which the rebuilt graph lacks, keeps the order
        if original.max() - original[logits.argmax()] > 1e-3 * np.abs(original).max():
            raise BundleError("run on a picture, the rebuilt head ranks the classes in another order; refused")
