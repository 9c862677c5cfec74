"""Make a promptable bundle from the two ONNX files that a model of the Segment Anything family is exported to.

::

    promptable_from_onnx("encoder.onnx", "decoder.onnx", "sam")

The encoder takes an image and gives one or more embeddings. Two kinds of decoders are known by their inputs: SAM's own
ONNX signature, one prompt a call, and the batched one of :class:`maskmill.engine.model.bundle.PromptSpec`.
Preprocessing is
SAM's unless other is given.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...engine.model.bundle import Bundle, InputSpec, OutputSpec, PromptSpec, Provenance
from ...engine.predictors.prompted.mask_decoder import PromptDecoder, official_feeds
from ...engine.predictors.prompted.prompts import PADDING, POSITIVE, point_prompts
from ...engine.runtimes.onnx_runtime import OnnxSession
from ...errors import BundleError, UsageError
from ..graph import external_files, image_input, inputs_of, load_checked, shape_of
from ..staging import copy_model, staged

SAM_MEAN, SAM_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of RGB pixels in [0, 255]."""
SAM_PREPROCESSING: dict[str, Any] = {
    "resize": "longest-side",
    "scale": 1.0,
    "mean": SAM_MEAN,
    "std": SAM_STD,
    "pad_value": SAM_MEAN,
}
"""Fields of :class:`InputSpec` as the Segment Anything models expect an image."""

_OFFICIAL = {"image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size"}
_BATCHED = {"points", "labels"}


def promptable_from_onnx(
    encoder: str | os.PathLike[str],
    decoder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    layout: Literal["NCHW", "NHWC"] = "NCHW",
    size: tuple[int, int] | None = None,
    license: str = "",
    **preprocessing: Any,
) -> Bundle:
    """Adopt a promptable model.

    Parameters
    ----------
    encoder, decoder
        The ONNX files; external data must lie in their folders.
    output
        Folder of the bundle, which must not exist yet.
    layout, size
        Order of the encoder input's axes, and its (height, width) in pixels; the size may be left out where the graph
        fixes it.
    license
        License of the weights, for the record.
    preprocessing
        Further fields of :class:`InputSpec`; those of SAM (:data:`SAM_PREPROCESSING`) where left out.

    Raises :class:`BundleError` for graphs that cannot be used, :class:`UsageError` for options that contradict them.
    """
    sources, folder = {"encoder": Path(encoder), "decoder": Path(decoder)}, Path(output)
    if folder.exists():
        raise UsageError(f"{folder} exists already; remove it or choose another name for the bundle")
    graphs = {role: load_checked(path) for role, path in sources.items()}
    name, size = image_input(graphs["encoder"], layout, size)
    spec = InputSpec(name=name, layout=layout, height=size[0], width=size[1], **{**SAM_PREPROCESSING, **preprocessing})
    embeddings = [value.name for value in graphs["encoder"].graph.output]
    signature, masks, scores = _decoder_outputs(graphs["decoder"], sources["decoder"], embeddings)
    mask_size = _mask_size(graphs["decoder"], spec)
    outputs = [OutputSpec(name=embedding, kind="embedding", activation="none") for embedding in embeddings]
    outputs += [
        OutputSpec(name=masks, kind="masks", activation="sigmoid"),
        OutputSpec(name=scores, kind="mask_scores", activation="none"),
    ]
    with staged(folder) as staging:
        files = [
            file
            for role, path in sources.items()
            for file in copy_model(path, external_files(graphs[role], path), staging, role=role)
        ]
        bundle = Bundle(
            path=staging,
            task="promptable",
            files=tuple(files),
            input=spec,
            outputs=tuple(outputs),
            prompt=PromptSpec(signature=signature, mask_height=mask_size[0], mask_width=mask_size[1]),
            source=Provenance(id=sources["encoder"].name, weights_sha256=files[0].sha256, license=license),
        )
        bundle = dataclasses.replace(bundle, prompt=_try_out(bundle))
        bundle.save()
    return Bundle.load(folder)


def _decoder_outputs(graph: Any, path: Path, embeddings: list[str]) -> tuple[Literal["batched", "official"], str, str]:
    """The decoder's signature, and the names of its low-resolution masks and of their scores."""
    inputs = {value.name for value in inputs_of(graph)}
    outputs = {value.name: len(shape_of(value)) for value in graph.graph.output}
    if inputs == _OFFICIAL:
        if len(embeddings) != 1:
            raise UsageError(
                f"{path} takes one embedding and the encoder gives {len(embeddings)} ({', '.join(embeddings)}); "
                "are they of one model?"
            )
        if missing := {"low_res_masks", "iou_predictions"} - set(outputs):
            raise BundleError(f"{path} lacks SAM's outputs {', '.join(sorted(missing))}; export it as SAM's authors do")
        return "official", "low_res_masks", "iou_predictions"
    if inputs == _BATCHED | set(embeddings):
        masks = [name for name, axes in outputs.items() if axes == 4]
        scores = [name for name, axes in outputs.items() if axes == 2]
        if len(masks) != 1 or len(scores) != 1:
            raise BundleError(
                f"{path} must give masks with four axes (N, M, h, w) and scores with two (N, M); it gives "
                + ", ".join(f"{name} with {axes}" for name, axes in outputs.items())
            )
        return "batched", masks[0], scores[0]
    raise UsageError(
        f"{path} takes {', '.join(sorted(inputs))}; a decoder takes SAM's {', '.join(sorted(_OFFICIAL))}, or the "
        f"encoder's outputs ({', '.join(embeddings)}) with points and labels"
    )


def _mask_size(decoder: Any, spec: InputSpec) -> tuple[int, int]:
    """(rows, columns) of an earlier mask where the decoder takes one; SAM's quarter of the input where it is free."""
    shape = next((shape_of(value) for value in inputs_of(decoder) if value.name == "mask_input"), [])
    height, width = shape[2:] if len(shape) == 4 else (None, None)
    return height or max(spec.height // 4, 1), width or max(spec.width // 4, 1)


def _try_out(bundle: Bundle) -> PromptSpec:
    """Prompt a gray image once: what the masks' shape is, and that the two files belong together."""
    spec, prompt = bundle.input, bundle.prompt
    assert prompt is not None, "promptable bundles have one"
    shape = (1, 3, spec.height, spec.width) if spec.layout == "NCHW" else (1, spec.height, spec.width, 3)
    encoder, decoder = OnnxSession(bundle, role="encoder"), OnnxSession(bundle, role="decoder")
    if encoder.max_batch not in (None, 1):
        shape = (encoder.max_batch, *shape[1:])
    embeddings = [np.asarray(output)[:1] for output in encoder.run(np.full(shape, 0.1, np.float32))]
    points = np.array([[[spec.width / 2, spec.height / 2], [0, 0]]], np.float32)
    labels = np.array([[POSITIVE, PADDING]], np.float32)
    if prompt.signature == "official":
        size, input_size = (prompt.mask_height, prompt.mask_width), (spec.height, spec.width)
        feeds = official_feeds(embeddings[0], points, labels, mask_size=size, input_size=input_size)
    else:
        names = [output.name for output in bundle.outputs_of("encoder")]
        feeds = {**dict(zip(names, embeddings, strict=True)), "points": points, "labels": labels}
    masks, scores = (np.asarray(output) for output in decoder.run(feeds))
    if masks.ndim != 4 or scores.shape != masks.shape[:2] or len(masks) != 1:
        raise BundleError(f"run once, the decoder gave masks {masks.shape} with scores {scores.shape}; refused")
    if not (np.isfinite(masks).all() and np.isfinite(scores).all()):
        raise BundleError("run once on a gray image, the model gave masks or scores that are not finite; refused")
    found = dataclasses.replace(prompt, num_masks=masks.shape[1], mask_height=masks.shape[2], mask_width=masks.shape[3])
    two = point_prompts(np.repeat(np.repeat(points[:, :1], 3, axis=1), 2, axis=0))
    PromptDecoder(dataclasses.replace(bundle, prompt=found), decoder).run(embeddings, two)
    return found
