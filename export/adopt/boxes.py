"""Make a detector bundle, which prompts a promptable model, from an ONNX file that returns boxes.

::

    detector_from_onnx("yolo11n.onnx", "yolo", classes=("person", "car"))

============  ======================================================================================================
``yolo``      one list (N, 4 + C, anchors), or transposed: center and size in pixels of the input, class probabilities;
              YOLOv5's (N, anchors, 5 + C) has a probability of any object before the classes
``yolo-nms``  one list (N, boxes, 6), suppression in the graph: corners in pixels of the input, score, class
``detr``      boxes (N, Q, 4), center and size as fractions of the input, and class logits (N, Q, C), with a sigmoid;
              with C + 1 classes, the last of them no object, a softmax over all
============  ======================================================================================================

Further outputs, such as masks, are left out. The graph's new outputs are :data:`OUTPUTS`.

Sources: Ultralytics' ``ops.non_max_suppression``; the post-processing of DETR, Deformable DETR and RF-DETR.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...engine.model.bundle import Activation, Bundle, OutputSpec, check_class_names
from ...engine.model.input_spec import InputSpec, Layout
from ...errors import BundleError, UsageError
from ..graph import at_least_opset, shape_of
from ..staging import staged
from .adoption import Adoption
from .nodes import Nodes, float_output
from .objects import DETR_PREPROCESSING, YOLO_PREPROCESSING
from .signatures import refuse_sam3
from .trial import Trial, trial_tensors

if TYPE_CHECKING:
    import onnx

BoxLayout = Literal["yolo", "yolo-nms", "detr"]
"""Meaning of a detector's outputs; see the module's text."""
OUTPUTS = (
    OutputSpec(name="maskmill_boxes", kind="boxes", activation="none"),
    OutputSpec(name="maskmill_box_scores", kind="box_scores", activation="none"),
)
"""Outputs of a detector's graph; their names differ from those of its own tensors."""

_OPSET = 13  # the first opset whose Squeeze, Unsqueeze and Split take axes as inputs


def detector_from_onnx(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    classes: Sequence[str],
    boxes: BoxLayout | None = None,
    layout: Layout = "NCHW",
    size: tuple[int, int] | None = None,
    activation: Activation | None = None,
    license: str = "",
    **preprocessing: Any,
) -> Bundle:
    """Adopt a detector.

    Parameters
    ----------
    model
        The ONNX file; external data must reside in its folder.
    output
        Folder of the bundle, which must not exist yet.
    classes
        Class names in the order of the class axis.
    boxes
        Layout of the outputs; recognized from their shapes if None.
    layout, size
        Order of the input's axes, and its (height, width) in pixels, which may be left out if the graph fixes it.
    activation
        Function that turns ``detr`` logits into scores; a softmax drops its last class, no object.
    license
        License of the weights, for the record.
    preprocessing
        Further fields of :class:`InputSpec`; the defaults are those of the layout's authors.

    Raises :class:`BundleError` for a graph that cannot be used, :class:`UsageError` for options that contradict it.
    """
    source, folder = Path(model), Path(output)
    if folder.exists():
        raise UsageError(f"{folder} exists already; remove it or choose another name for the bundle")
    check_class_names(classes)
    adoption = Adoption.open(source)
    refuse_sam3(adoption.model)
    output_layout, names = _outputs(adoption.model, len(classes), boxes)
    defaults = DETR_PREPROCESSING if output_layout == "detr" else YOLO_PREPROCESSING
    name, image_size = adoption.image_input(layout, size, preprocessing)
    spec = InputSpec(
        name=name, layout=layout, height=image_size[0], width=image_size[1], **{**defaults, **preprocessing}
    )
    adoption.model = at_least_opset(adoption.model, _OPSET, "axes as inputs")
    _rewrite(adoption.model, output_layout, names, len(classes), image_size, activation)
    adoption.note(
        f"outputs of the layout {output_layout} were converted to boxes as fractions of the input, and class scores"
    )
    with staged(folder) as staging:
        tensors = trial_tensors(spec)
        outputs = [output.name for output in OUTPUTS]
        files = adoption.write(staging, spec, outputs, tensors)
        for corners, scores in Trial(files[0], name, outputs).steady_outputs(tensors):
            if corners.shape != (len(scores), 4) or scores.shape[1:] != (len(classes),):
                raise BundleError(
                    f"run once, the detector gave boxes {corners.shape} with scores {scores.shape} for {len(classes)} "
                    "classes; refused"
                )
            if scores.min(initial=0.0) < -1e-3 or scores.max(initial=0.0) > 1.001:
                raise BundleError(
                    f"the scores of the boxes lie in [{scores.min():.3g}, {scores.max():.3g}] and must lie in [0, 1]; "
                    "state the layout of the outputs with --box-layout, and --activation sigmoid or softmax for logits"
                )
        adoption.save(
            files,
            task="detector",
            license=license,
            input=spec,
            outputs=OUTPUTS,
            classes=tuple(classes),
        )
    return Bundle.load(folder)


def _outputs(model: onnx.ModelProto, num_classes: int, boxes: BoxLayout | None) -> tuple[BoxLayout, list[str]]:
    """Return the layout of the outputs, and the names of the list, or of boxes and logits."""
    shapes = {value.name: shape_of(value) for value in model.graph.output}
    lists = {name: shape for name, shape in shapes.items() if len(shape) == 3}
    fours = [name for name, shape in lists.items() if shape[2] == 4]
    logits = [name for name, shape in lists.items() if shape[2] in (num_classes, num_classes + 1)]
    if num_classes in (3, 4) and len(fours) > 1:  # the names distinguish boxes from logits
        fours = [name for name in fours if "box" in name or name == "dets"]
    logits = [name for name in logits if name not in fours]
    if boxes in (None, "detr") and len(fours) == 1 and len(logits) == 1:
        return "detr", [fours[0], logits[0]]
    widths = (4 + num_classes, 5 + num_classes)
    if boxes in (None, "yolo-nms") and len(lists) == 1 and next(iter(lists.values()))[2] == 6 and num_classes != 2:
        return "yolo-nms", list(lists)
    if boxes == "yolo-nms" and len(lists) == 1:
        return "yolo-nms", list(lists)
    if boxes in (None, "yolo"):
        # YOLO-seg has mask coefficients after the classes
        coefficients = [shape[1] or 0 for shape in shapes.values() if len(shape) == 4]
        widths += tuple(width + more for width in widths for more in coefficients)
        matches = [name for name, shape in lists.items() if set(shape[1:]) & set(widths)]
        if len(matches) == 1:
            return "yolo", matches
    described = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    raise UsageError(
        f"the graph gives {described}, which is not a {boxes or 'known'} layout of boxes for {num_classes} classes; "
        "state "
        "it with --box-layout, and name all classes of the model, unused ones included"
    )


def _rewrite(
    model: onnx.ModelProto,
    boxes: BoxLayout,
    names: Sequence[str],
    num_classes: int,
    size: tuple[int, int],
    activation: Activation | None,
) -> None:
    """Append the nodes that turn the outputs into corners as fractions of the input, and class scores."""
    graph, shapes = Nodes(model), {value.name: shape_of(value) for value in model.graph.output}
    pixels = np.array([size[1], size[0], size[1], size[0]], np.float32)
    if boxes == "detr":
        places, logits = names
        extra = shapes[logits][2] == num_classes + 1
        if activation == "softmax" or (activation is None and extra):
            values = graph("Softmax", logits, axis=2)
        else:
            values = logits if activation == "none" else graph("Sigmoid", logits)
        graph.columns(values, 0, num_classes, name=OUTPUTS[1].name)
        _corners(graph, places)
    elif boxes == "yolo-nms":
        rows = names[0]
        graph("Div", graph.columns(rows, 0, 4), pixels, name=OUTPUTS[0].name)
        kinds = graph("Cast", graph.columns(rows, 5, 6), to=1)
        is_class = graph("Equal", kinds, np.arange(num_classes, dtype=np.float32)[None, None])
        graph("Mul", graph("Cast", is_class, to=1), graph.columns(rows, 4, 5), name=OUTPUTS[1].name)
    else:
        rows, shape = names[0], shapes[names[0]]
        coefficients = sum(shape[1] or 0 for shape in shapes.values() if len(shape) == 4)
        widths = {4 + num_classes + coefficients: False, 5 + num_classes + coefficients: True}
        transposed = shape[1] in widths
        objectness = widths[shape[1] if transposed else shape[2]]  # type: ignore[index]
        rows = graph("Transpose", rows, perm=[0, 2, 1]) if transposed else rows
        first = 4 + objectness
        if objectness:
            values = graph.columns(rows, first, first + num_classes)
            graph("Mul", values, graph.columns(rows, 4, 5), name=OUTPUTS[1].name)
        else:
            graph.columns(rows, first, first + num_classes, name=OUTPUTS[1].name)
        _corners(graph, graph("Div", graph.columns(rows, 0, 4), pixels))
    del model.graph.output[:]
    model.graph.output.append(float_output(OUTPUTS[0].name, ["batch", "rows", 4]))
    model.graph.output.append(float_output(OUTPUTS[1].name, ["batch", "rows", num_classes]))


def _corners(graph: Nodes, places: str) -> None:
    """Append nodes that compute the corners of boxes from center and size, under the name ``boxes``."""
    centers, sides = graph.columns(places, 0, 2), graph.columns(places, 2, 4)
    halves = graph("Mul", sides, np.array([0.5], np.float32))
    graph("Concat", graph("Sub", centers, halves), graph("Add", centers, halves), axis=2, name=OUTPUTS[0].name)
