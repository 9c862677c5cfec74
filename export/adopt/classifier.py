"""Make a cam bundle from an ONNX image classifier that somebody else exported.

::

    cam_from_onnx("resnet50.onnx", "resnet50-cam", classes=names, mean=…, std=…)

A graph that gives class activation maps beside its logits is taken as it is. Of one that gives logits only the maps
follow from its head, where that is a mean over all positions and a linear layer: the maps are the linear layer at every
position (arXiv 1512.04150), and their mean plus the bias is the logits again.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...engine.model.bundle import Bundle, InputSpec, OutputSpec, Provenance
from ...engine.model.files import sha256
from ...engine.runtimes.onnx_runtime import OnnxSession
from ...errors import BundleError, UsageError
from ..graph import external_files, image_input, load_checked, shape_of
from ..staging import copy_model, model_file, staged
from .head import classifier_head, with_head

_REBUILT = (("cam", "cam"), ("logits", "logits"), ("features", "features"))
"""Names and kinds of the outputs of :func:`maskmill.export.adopt.head.with_head`."""


def cam_from_onnx(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    classes: Sequence[str],
    background: str | None = None,
    layout: Literal["NCHW", "NHWC"] = "NCHW",
    size: tuple[int, int] | None = None,
    activation: str = "softmax",
    license: str = "",
    **preprocessing: Any,
) -> Bundle:
    """Adopt a classifier.

    Parameters
    ----------
    model
        The ONNX file; external data must lie in its folder.
    output
        Folder of the bundle, which must not exist yet.
    classes, background
        Class names in the order of the logits, and which of them says that nothing is there, if any.
    layout, size
        Order of the input's axes, and its (height, width) in pixels; the size may be left out where the graph fixes it.
        Where the graph leaves it free, other sizes can be used as well.
    activation
        ``softmax`` or ``sigmoid``: what turns logits into probabilities.
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
        raise UsageError(f"the background {background!r} is not one of the classes: {', '.join(classes)}")
    graph = load_checked(source)
    name, known = image_input(graph, layout, size)
    spec = InputSpec(
        name=name,
        layout=layout,
        height=known[0],
        width=known[1],
        dynamic=_has_free_size(graph, name, layout),
        **preprocessing,
    )
    outputs = _outputs(graph, len(classes))
    with staged(folder) as staging:
        if outputs is None:
            files, outputs = [_rebuild(source, staging / "model.onnx", name, len(classes))], _REBUILT
        else:
            files = copy_model(source, external_files(graph, source), staging)
        outputs = tuple(
            OutputSpec(name=output, kind=kind, activation=activation if kind == "logits" else "none")  # type: ignore[arg-type]
            for output, kind in outputs
        )
        bundle = Bundle(
            path=staging,
            task="cam",
            files=tuple(files),
            input=spec,
            outputs=outputs,
            classes=tuple(classes),
            background=None if background is None else list(classes).index(background),
            source=Provenance(id=source.name, weights_sha256=sha256(source), license=license),
        )
        _try_out(bundle, graph, source)
        bundle.save()
    return Bundle.load(folder)


def _has_free_size(graph: Any, name: str, layout: str) -> bool:
    shape = next(shape_of(value) for value in graph.graph.input if value.name == name)
    rows, columns = (2, 3) if layout == "NCHW" else (1, 2)
    return shape[rows] is None and shape[columns] is None


def _outputs(graph: Any, num_classes: int) -> tuple[tuple[str, str], ...] | None:
    """(name, kind) of each output; None for a graph that gives logits only."""
    shapes = {value.name: shape_of(value) for value in graph.graph.output}
    logits = [name for name, shape in shapes.items() if len(shape) == 2 and shape[1] in (None, num_classes)]
    maps = [name for name, shape in shapes.items() if len(shape) == 4]
    if len(logits) != 1:
        raise UsageError(
            f"a classifier gives logits (N, {num_classes}) for its {num_classes} classes; this graph gives "
            + ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        )
    if not maps:
        return None
    cams = [name for name in maps if name == "cam"] or [name for name in maps if shapes[name][1] == num_classes]
    features = [name for name in maps if name not in cams]
    if len(cams) != 1 or len(features) > 1:
        raise UsageError(
            f"a cam graph gives one map of {num_classes} classes, logits, and at most one map of features; this one "
            "gives " + ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        )
    return ((cams[0], "cam"), (logits[0], "logits"), *((name, "features") for name in features))


def _rebuild(source: Path, target: Path, image: str, num_classes: int) -> Any:
    """Write the classifier with the outputs of :data:`_REBUILT`; its logits must stay what they were."""
    import onnx

    graph = onnx.load_model(str(source))
    head = classifier_head(graph)
    if len(head.weight) != num_classes:
        raise UsageError(f"the classifier has {len(head.weight)} classes, {num_classes} are named")
    onnx.save_model(with_head(graph, image, head), str(target))
    return model_file(target)


def _try_out(bundle: Bundle, graph: Any, source: Path) -> None:
    """Run the graph once on noise: its shapes, and that it ranks the classes as the original does."""
    spec, num = bundle.input, len(bundle.classes)
    session = OnnxSession(bundle)
    batch = session.max_batch or 2
    shape = (batch, 3, spec.height, spec.width) if spec.layout == "NCHW" else (batch, spec.height, spec.width, 3)
    noise = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = dict(zip([output.kind for output in bundle.outputs], session.run(noise), strict=True))
    cams, logits = np.asarray(found["cam"]), np.asarray(found["logits"])
    if cams.ndim != 4 or cams.shape[:2] != (batch, num) or logits.shape != (batch, num):
        raise BundleError(f"run once, the model gave maps {cams.shape} with logits {logits.shape} for {num} classes")
    if not (np.isfinite(cams).all() and np.isfinite(logits).all()):
        raise BundleError("run once on noise, the model gave values that are not finite; refused")
    given = next(value.name for value in graph.graph.output if len(shape_of(value)) == 2)
    original = dataclasses.replace(
        bundle,
        path=source.parent,
        files=(dataclasses.replace(bundle.files[0], path=source.name),),
        outputs=(OutputSpec(name=given, kind="logits"),),
    )
    (expected,) = OnnxSession(original).run(noise)
    # a final softmax or sigmoid, which the rebuilt graph has not, keeps the order
    chosen = np.take_along_axis(expected, logits.argmax(axis=1)[:, None], axis=1)[:, 0]
    if (expected.max(axis=1) - chosen > 1e-3 * np.abs(expected).max()).any():
        raise BundleError("run once on noise, the rebuilt head ranks the classes otherwise than the original; refused")
