"""Rewrite detectors with masks, YOLO-seg and RF-DETR-Seg, so that they return class scores and their best objects.

==============  ====================================================================================================
YOLO-seg        ``output0`` (N, 4 + C + M, anchors): box (center x, center y, width, height) in pixels of the input,
                class probabilities, mask coefficients. YOLOv5 (N, anchors, 5 + C + M): an objectness before the
                classes. With suppression in the graph (N, boxes, 6 + M): corners, score, class, coefficients.
                ``output1`` (N, M, h, w): prototypes. A mask is coefficients times prototypes inside the box.
RF-DETR-Seg     ``dets`` (N, Q, 4), ``labels`` (N, Q, C) logits with a sigmoid, ``masks`` (N, Q, h, w) logits
==============  ====================================================================================================

The graph's new outputs are ``scores`` (N, 1 + C, h, w), where a class has the maximum over its objects of score times
mask and the background, in front, 1 minus the best class; and scores, classes and mask logits of the best objects. No
suppression is added: a second box on one object changes no maximum, and labeling gives each pixel to one object.

Sources: Ultralytics' ``ops.process_mask`` and ``ops.crop_mask``; RF-DETR's ``PostProcess``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...engine.model.bundle import OBJECT_KINDS, OutputSpec
from ...errors import UsageError
from ..graph import at_least_opset, shape_of
from .nodes import Nodes, float_output

if TYPE_CHECKING:
    import onnx

MAX_OBJECTS = 100
"""Most objects per image."""
YOLO_PREPROCESSING: dict[str, Any] = {"resize": "longest-side", "pad_value": 114.0}
"""Ultralytics' letterbox, with all of its padding at the right and at the bottom."""
DETR_PREPROCESSING: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

_OUTSIDE = 6.0
"""Smallest magnitude of the mask logits outside an object's box, which are negative there."""
_OPSET = 18
"""First opset with ScatterElements that keeps the maximum."""


@dataclass(frozen=True, kw_only=True)
class Detector:
    """Outputs of a detector with masks."""

    kind: str
    """Name of the kind, for messages."""
    rows: str
    """Output with one row per box or query."""
    masks: str
    """Prototypes, or masks."""
    columns: int
    """Values of a row that are not classes: -1 if suppression is in the graph, which leaves no class values."""
    transposed: bool = False
    """True if the rows are on the last axis."""
    objectness: bool = False
    """True if a probability of any object precedes the classes."""

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Preprocessing of the model's authors, if it differs from the defaults."""
        return DETR_PREPROCESSING if self.kind == "RF-DETR-Seg" else YOLO_PREPROCESSING


def detector_of(model: onnx.ModelProto, num_classes: int) -> Detector | None:
    """Recognize a detector with masks for ``num_classes`` classes; None if the graph is not one.

    Raises :class:`UsageError` if the number of classes contradicts the graph.
    """
    outputs = {value.name: shape_of(value) for value in model.graph.output}
    labels = outputs.get("labels", [])
    if set(outputs) == {"dets", "labels", "masks"} and len(labels) == 3 and len(outputs["masks"]) == 4:
        if labels[2] not in (None, num_classes):
            raise UsageError(
                f"RF-DETR's output 'labels' has {labels[2]} classes, {num_classes} names are given; name all of them "
                "in --classes, unused ones included"
            )
        return Detector(kind="RF-DETR-Seg", rows="labels", masks="masks", columns=0)
    lists = [name for name, shape in outputs.items() if len(shape) == 3]
    maps = [name for name, shape in outputs.items() if len(shape) == 4]
    if len(outputs) != 2 or len(lists) != 1 or len(maps) != 1:
        return None
    _, first, last = outputs[lists[0]]
    prototypes = outputs[maps[0]][1]
    if prototypes is None or prototypes == first:
        return None
    common: dict[str, Any] = {"kind": "YOLO-seg", "rows": lists[0], "masks": maps[0]}
    if first == 4 + num_classes + prototypes:
        return Detector(**common, columns=4 + prototypes, transposed=True)
    if last == 6 + prototypes:
        return Detector(**common, columns=-1)
    if last == 5 + num_classes + prototypes:
        return Detector(**common, columns=5 + prototypes, objectness=True)
    sizes = [size for size in (first, last) if size is not None]
    if sizes and min(sizes) > 5 + prototypes and max(sizes) >= 4 * min(sizes):
        raise UsageError(
            f"the output {lists[0]!r} of a YOLO-seg graph has {min(sizes)} values per box: 4 of the box, {prototypes} "
            f"coefficients and {min(sizes) - 4 - prototypes} classes; {num_classes} names are given"
        )
    return None


def fold_detector(
    model: onnx.ModelProto, detector: Detector, num_classes: int, size: tuple[int, int], limit: int = MAX_OBJECTS
) -> tuple[onnx.ModelProto, tuple[OutputSpec, ...], str]:
    """Give the graph its new outputs, as the module's text defines them.

    ``size`` is the (height, width) of the input. Returns the graph, the description of its outputs and a sentence
    about the edit.
    """
    model = at_least_opset(model, _OPSET, "the maximum of scattered values")
    graph = Nodes(model)
    masks_shape = next(shape_of(value) for value in model.graph.output if value.name == detector.masks)
    height, width = masks_shape[2:]
    if height is None or width is None:
        raise UsageError(
            f"the output {detector.masks!r} has a free size; export the model with fixed sizes (dynamic axes for the "
            "batch alone)"
        )
    if detector.kind == "RF-DETR-Seg":
        scores, classes, masks = _of_queries(graph, detector, num_classes, limit)
    else:
        scores, classes, masks = _of_boxes(graph, detector, num_classes, size, (height, width), limit)
    _finish(graph, scores, classes, masks, num_classes)
    del model.graph.output[:]
    axes = {"scores": [num_classes + 1, height, width], OBJECT_KINDS[2]: ["objects", height, width]}
    for name in ("scores", *OBJECT_KINDS):
        model.graph.output.append(float_output(name, ["batch", *axes.get(name, ["objects"])]))
    specs = (
        OutputSpec(name="scores", activation="none"),
        *(
            OutputSpec(name=kind, kind=kind, activation="sigmoid" if kind == "object_masks" else "none")
            for kind in OBJECT_KINDS
        ),
    )
    sentence = f"{detector.kind}: its objects became class scores, with the background in front, and {limit} objects"
    return model, specs, sentence


def _of_queries(graph: Nodes, detector: Detector, num_classes: int, limit: int) -> tuple[str, str, str]:
    """Choose pairs of query and class: (N, K) scores, (N, K) int64 classes, (N, K, h, w) masks."""
    flat = graph("Reshape", graph("Sigmoid", detector.rows), np.array([0, -1]))
    scores, places = _best(graph, flat, limit)
    divisor = np.array(num_classes)
    queries, classes = graph("Div", places, divisor), graph("Mod", places, divisor)
    return scores, classes, _rows(graph, detector.masks, queries)


def _of_boxes(
    graph: Nodes,
    detector: Detector,
    num_classes: int,
    size: tuple[int, int],
    grid: tuple[int, int],
    limit: int,
) -> tuple[str, str, str]:
    """Choose boxes and make their masks from prototypes; results as of :func:`_of_queries`."""
    rows = graph("Transpose", detector.rows, perm=[0, 2, 1]) if detector.transposed else detector.rows
    end = 2**31 - 1
    if detector.columns < 0:
        values = graph("Squeeze", graph.columns(rows, 4, 5), np.array([2]))
        kinds = graph("Cast", graph("Squeeze", graph.columns(rows, 5, 6), np.array([2])), to=7)
        first = 6
    else:
        first = 4 + detector.objectness + num_classes
        probabilities = graph.columns(rows, first - num_classes, first)
        values = graph("ReduceMax", probabilities, np.array([2]), keepdims=0)
        kinds = graph("ArgMax", probabilities, axis=2, keepdims=0)
        if detector.objectness:
            values = graph("Mul", values, graph("Squeeze", graph.columns(rows, 4, 5), np.array([2])))
    scores, places = _best(graph, values, limit)
    classes = graph("GatherElements", kinds, places, axis=1)
    best_rows = _rows(graph, rows, places)
    coefficients = graph.columns(best_rows, first, end)
    prototypes = graph("Reshape", detector.masks, np.array([0, 0, -1]))
    logits = graph("Reshape", graph("MatMul", coefficients, prototypes), np.array([0, 0, *grid]))
    corners = [graph.columns(best_rows, index, index + 1) for index in range(4)]
    if detector.columns >= 0:
        halves = [graph("Mul", length, np.float32(0.5).reshape(1)) for length in corners[2:]]
        centers = corners[:2]
        corners = [graph(operator, *pair) for operator in ("Sub", "Add") for pair in zip(centers, halves, strict=True)]
    sides: list[str] = []
    for axis, (low, high) in enumerate(((corners[0], corners[2]), (corners[1], corners[3]))):
        cells, pixels = grid[1 - axis], size[1 - axis]
        places_of = np.arange(cells, dtype=np.float32)
        cell = places_of.reshape((1, 1, 1, cells) if axis == 0 else (1, 1, cells, 1))
        bounds = [
            graph("Unsqueeze", graph("Mul", bound, np.float32(cells / pixels).reshape(1)), np.array([3]))
            for bound in (low, high)
        ]
        sides.append(graph("And", graph("GreaterOrEqual", cell, bounds[0]), graph("Less", cell, bounds[1])))
    inside = graph("And", *sides)
    # minus the logit itself, so that upsampling puts the edge midway between two cells
    outside = graph("Neg", graph("Max", graph("Abs", logits), np.float32(_OUTSIDE).reshape(1)))
    return scores, classes, graph("Where", inside, logits, outside)


def _best(graph: Nodes, values: str, limit: int) -> list[str]:
    """Return the largest ``limit`` values of (N, P), fewer if there are fewer, and their places."""
    num = graph("Shape", values, start=1, end=2)
    return graph("TopK", values, graph("Min", num, np.array([limit])), axis=1, outputs=2)


def _rows(graph: Nodes, values: str, places: str) -> str:
    """Gather rows (N, K) of (N, A, …)."""
    return graph("GatherND", values, graph("Unsqueeze", places, np.array([2])), batch_dims=1)


def _finish(graph: Nodes, scores: str, classes: str, masks: str, num_classes: int) -> None:
    """Name the objects' outputs and fold them to class scores, with the background in front."""
    probability = graph(
        "Mul", graph("Sigmoid", masks), graph("Unsqueeze", graph("Unsqueeze", scores, np.array([2])), np.array([3]))
    )
    shape = graph("Shape", masks)
    batch = graph("Slice", shape, np.array([0]), np.array([1]))
    size = graph("Slice", shape, np.array([2]), np.array([4]))
    zeros = graph(
        "Expand", np.zeros((1, 1, 1, 1), np.float32), graph("Concat", batch, np.array([num_classes]), size, axis=0)
    )
    channel = graph("Unsqueeze", graph("Unsqueeze", classes, np.array([2])), np.array([3]))
    class_maps = graph("ScatterElements", zeros, graph("Expand", channel, shape), probability, axis=1, reduction="max")
    best = graph("ReduceMax", class_maps, np.array([1]), keepdims=1)
    background = graph("Sub", np.ones(1, np.float32), best)
    graph("Concat", background, class_maps, axis=1, name="scores")
    graph("Identity", scores, name="object_scores")
    graph("Cast", graph("Add", classes, np.array([1])), to=1, name="object_classes")
    graph("Identity", masks, name="object_masks")
