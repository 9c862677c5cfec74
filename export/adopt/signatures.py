"""Recognize graphs that are not semantic segmentation by their inputs and outputs, and name them in the error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import BundleError
from ..graph import inputs_of, shape_of

if TYPE_CHECKING:
    import onnx

_SAM_DECODER = {"point_coords", "point_labels", "mask_input", "has_mask_input"}
_SAM3_REMEDY = "export its checkpoint: maskmill export facebook/sam3, and name classes with label --text"
_SAM3_EXPORTER = (
    "of SAM 3 as samexporter and X-AnyLabeling publish it: the decoder gives only objects above a score of 0.5, as "
    f"masks without probabilities, which no calibration can use; {_SAM3_REMEDY}"
)
"""Signatures of samexporter's ``export_sam3.py``."""
_SAM3_USLS = (
    "of SAM 3 as usls publishes it, which takes the features of an image once per class; here all classes share them: "
    f"{_SAM3_REMEDY}"
)
"""Signatures of the three or four files that usls specifies."""
_DETR_BOXES = {"pred_boxes", "dets", "boxes"}


def refuse_other_models(model: onnx.ModelProto) -> None:
    """Raise :class:`BundleError` that names the kind of model, if the graph is known not to return class scores."""
    kind = signature_of(model)
    if kind:
        outputs = ", ".join(f"{value.name} {shape_of(value)}" for value in model.graph.output)
        raise BundleError(
            f"the graph is {kind}; it is not a semantic segmentation model with class scores (it gives {outputs})"
        )


def refuse_sam3(model: onnx.ModelProto) -> None:
    """Raise :class:`BundleError` for a part of SAM 3 in files of another exporter."""
    inputs = {value.name for value in inputs_of(model)}
    if part := _part_of_sam3(inputs, {value.name for value in model.graph.output}):
        raise BundleError(f"the graph is {part}")


def signature_of(model: onnx.ModelProto) -> str:
    """Return the kind of model that the graph's inputs and outputs indicate; empty if it is unknown."""
    inputs = {value.name: shape_of(value) for value in inputs_of(model)}
    outputs = {value.name: shape_of(value) for value in model.graph.output}
    lists = [shape for shape in outputs.values() if len(shape) == 3]
    maps = [shape for shape in outputs.values() if len(shape) == 4]
    if set(inputs) >= _SAM_DECODER:
        return "a Segment Anything decoder; import it with its encoder: --task promptable --decoder DECODER.onnx"
    if set(outputs) >= {"high_res_feats_0", "high_res_feats_1"}:
        return "a SAM 2 encoder; import it with its decoder: --task promptable --decoder DECODER.onnx"
    if set(outputs) <= {"image_embeddings", "image_embed", "embeddings"} and len(inputs) == 1:
        return "a Segment Anything encoder; import it with its decoder: --task promptable --decoder DECODER.onnx"
    if part := _part_of_sam3(set(inputs), set(outputs)):
        return part
    if _DETR_BOXES & set(outputs):
        return "a detector of the DETR family without masks of its own, or with other outputs than RF-DETR-Seg's"
    if len(lists) == 1 and len(maps) == 1 and len(outputs) == 2 and _is_queries(lists[0], maps[0]):
        return "a model of mask queries (MaskFormer and others); export its checkpoint with `maskmill export`"
    if len(lists) == 1 and len(maps) == 1 and len(outputs) == 2 and _is_yolo(lists[0], maps[0][1]):
        return "a YOLO-seg export whose boxes do not have as many classes as names are given, or in an unknown order"
    if len(outputs) == 1 and len(lists) == 1 and len(inputs) == 1 and _is_yolo(lists[0], 0):
        return "a YOLO detection export: boxes with class scores and no masks; use a YOLO-seg model"
    return ""


def _part_of_sam3(inputs: set[str], outputs: set[str]) -> str:
    """Return the part of SAM 3 that has these inputs and outputs; empty if there is none."""
    if {"language_features", "language_mask"} & inputs:
        return f"the decoder {_SAM3_EXPORTER}"
    if "text_memory" in outputs or inputs == {"tokens"}:
        return f"the language encoder {_SAM3_EXPORTER}"
    if {"backbone_fpn_0", "vision_pos_enc_0"} & outputs:
        return f"the image encoder {_SAM3_EXPORTER}"
    if "presence_logits" in outputs and "pred_masks" in outputs:
        if any(name.startswith("fpn_") for name in inputs):
            return f"the decoder {_SAM3_USLS}"
        return f"SAM 3 with one text inside, and its masks as queries; {_SAM3_REMEDY}"
    if {"text_features", "text_mask"} <= outputs:
        return f"the text encoder {_SAM3_USLS}"
    if "geometry_features" in outputs:
        return f"the geometry encoder {_SAM3_USLS}"
    if {"fpn_feat_0", "fpn_feat_1"} <= outputs:
        return f"the image encoder {_SAM3_USLS}"
    return ""


def _is_queries(classes: list[int | None], masks: list[int | None]) -> bool:
    """Return True for classes (N, queries, classes) and masks (N, queries, h, w), not detections and prototypes."""
    return classes[1] is not None and classes[1] == masks[1] and (classes[2] or 0) < 1000


def _is_yolo(detections: list[int | None], prototypes: int | None) -> bool:
    """Return True for detections (N, 4 + classes + coefficients, anchors) or their transpose."""
    _, rows, columns = detections
    if prototypes is None or rows is None and columns is None:
        return False
    sizes = sorted(size for size in (rows, columns) if size is not None)
    # a map of labels is nearly square, a list of boxes is not
    return sizes[0] >= max(prototypes, 5) and (len(sizes) == 1 or sizes[1] >= 4 * sizes[0])
