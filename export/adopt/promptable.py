"""Make a promptable bundle from the two ONNX files that a model of the Segment Anything family is exported to.

::

    promptable_from_onnx("encoder.onnx", "decoder.onnx", "sam")

The encoder takes an image and gives one or more embeddings. Decoders are recognized by their inputs: SAM's own ONNX
signature, one prompt per call, and the batched one of :class:`maskmill.engine.model.bundle.PromptSpec`. A decoder of
SAM 2 as samexporter and X-AnyLabeling publish it (``high_res_feats_0``, ``point_coords``, …) becomes the batched kind,
one prompt per call; an encoder that takes an image (H, W, 3) becomes one that takes a batch of one. The default
preprocessing is SAM's.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...engine.model.bundle import Bundle, OutputSpec, PromptSpec, Provenance, Signature
from ...engine.model.files import sha256
from ...engine.model.input_spec import InputSpec, Layout
from ...engine.predictors.prompted.mask_decoder import PromptDecoder, official_feeds
from ...engine.predictors.prompted.prompts import PADDING, POSITIVE, point_prompts
from ...engine.runtimes.onnx_runtime import OnnxSession
from ...errors import BundleError, UsageError
from ..graph import inputs_of, shape_of
from ..staging import staged
from .adoption import Adoption
from .rewrite import bake_inputs, batch_image, cast_to_input, freeze_batch, rename_input
from .signatures import refuse_sam3
from .trial import Trial, trial_tensors

if TYPE_CHECKING:
    import onnx

SAM_MEAN, SAM_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Mean and standard deviation of RGB pixels in [0, 255]."""
SAM_PREPROCESSING: dict[str, Any] = {
    "resize": "longest-side",
    "scale": 1.0,
    "mean": SAM_MEAN,
    "std": SAM_STD,
    "pad_value": SAM_MEAN,
}
"""Fields of :class:`InputSpec` as the Segment Anything models expect an image."""
RAW_SAM_PREPROCESSING: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
"""Fields of an encoder that normalizes pixels itself."""
SAM_SIDE = 1024
"""Side of the Segment Anything models' input, in pixels."""

_OFFICIAL = {"image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size"}
_BATCHED = {"points", "labels"}
_PUBLISHED = {"point_coords": "points", "point_labels": "labels"}
_MASK_INPUTS = {"mask_input", "has_mask_input", "orig_im_size"}


def promptable_from_onnx(
    encoder: str | os.PathLike[str],
    decoder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    layout: Layout = "NCHW",
    size: tuple[int, int] | None = None,
    license: str = "",
    **preprocessing: Any,
) -> Bundle:
    """Adopt a promptable model.

    Parameters
    ----------
    encoder, decoder
        The ONNX files; external data must reside in their folders.
    output
        Folder of the bundle, which must not exist yet.
    layout, size
        Order of the encoder input's axes, and its (height, width) in pixels, which may be left out if the graph fixes
        it.
    license
        License of the weights, for the record.
    preprocessing
        Further fields of :class:`InputSpec`; the defaults are those of SAM (:data:`SAM_PREPROCESSING`), or raw pixels
        for an encoder that takes integers.

    Raises :class:`BundleError` for graphs that cannot be used, :class:`UsageError` for options that contradict them.
    """
    sources, folder = {"encoder": Path(encoder), "decoder": Path(decoder)}, Path(output)
    if folder.exists():
        raise UsageError(f"{folder} exists already; remove it or choose another name for the bundle")
    encoder_graph, decoder_graph = (Adoption.open(path) for path in sources.values())
    for adoption in (encoder_graph, decoder_graph):
        refuse_sam3(adoption.model)
    image_size = size or (SAM_SIDE, SAM_SIDE)
    if sentence := batch_image(encoder_graph.model, *image_size):
        layout = "NHWC"
        encoder_graph.note(sentence)
        for field, value in RAW_SAM_PREPROCESSING.items():
            preprocessing.setdefault(field, value)
    name, size = encoder_graph.image_input(layout, size, preprocessing)
    spec = InputSpec(name=name, layout=layout, height=size[0], width=size[1], **{**SAM_PREPROCESSING, **preprocessing})
    embeddings = [value.name for value in encoder_graph.model.graph.output]
    _unify_decoder(decoder_graph, embeddings, spec)
    signature, masks, scores = _decoder_outputs(decoder_graph.model, sources["decoder"], embeddings)
    mask_size = _mask_size(decoder_graph.model, spec)
    outputs = [OutputSpec(name=embedding, kind="embedding", activation="none") for embedding in embeddings]
    outputs += [
        OutputSpec(name=masks, kind="masks", activation="sigmoid"),
        OutputSpec(name=scores, kind="mask_scores", activation="none"),
    ]
    with staged(folder) as staging:
        tensors = trial_tensors(spec)
        encoder_files = encoder_graph.write(staging, spec, embeddings, tensors, role="encoder")
        trial_outputs = Trial(encoder_files[0], name, embeddings).steady_outputs(tensors)
        decoder_files = decoder_graph.place(staging, "decoder")
        bundle = Bundle(
            path=staging,
            task="promptable",
            files=(*encoder_graph.entries(encoder_files, "encoder"), *decoder_graph.entries(decoder_files, "decoder")),
            input=spec,
            outputs=tuple(outputs),
            prompt=PromptSpec(signature=signature, mask_height=mask_size[0], mask_width=mask_size[1]),
            source=Provenance(
                id=sources["encoder"].name,
                weights_sha256=sha256(sources["encoder"]),
                license=license,
                changes=(*encoder_graph.changes, *decoder_graph.changes),
            ),
        )
        embedding_arrays = [array[None] for array in trial_outputs[0]]
        bundle = dataclasses.replace(bundle, prompt=_try_decoder(bundle, embedding_arrays))
        OnnxSession(bundle, role="encoder")
        bundle.save()
    return Bundle.load(folder)


def _unify_decoder(decoder: Adoption, embeddings: Sequence[str], spec: InputSpec) -> None:
    """Convert a decoder with other number types, or with SAM 2's published inputs, to a known signature."""
    for value in inputs_of(decoder.model):
        decoder.note(cast_to_input(decoder.model, value)[1])
    inputs = {value.name for value in inputs_of(decoder.model)}
    if inputs == _OFFICIAL or not set(_PUBLISHED) <= inputs:
        return
    if inputs - set(_PUBLISHED) - _MASK_INPUTS != set(embeddings):
        return
    rows, columns = _mask_size(decoder.model, spec)
    constants = {"mask_input": np.zeros((1, 1, rows, columns)), "has_mask_input": [0], "orig_im_size": [rows, columns]}
    for sentence in bake_inputs(decoder.model, constants):
        decoder.note(sentence)
    for name, new_name in _PUBLISHED.items():
        rename_input(decoder.model, name, new_name)
    decoder.note(freeze_batch(decoder.model, 1, "the decoder takes the prompts of one image"))


def _decoder_outputs(model: onnx.ModelProto, path: Path, embeddings: list[str]) -> tuple[Signature, str, str]:
    """Return the decoder's signature, and the names of its low-resolution masks and of their scores."""
    inputs = {value.name for value in inputs_of(model)}
    outputs = {value.name: len(shape_of(value)) for value in model.graph.output}
    if inputs == _OFFICIAL:
        if len(embeddings) != 1:
            raise UsageError(
                f"{path} takes one embedding and the encoder gives {len(embeddings)} ({', '.join(embeddings)}); "
                "are they of one model?"
            )
        if missing_names := {"low_res_masks", "iou_predictions"} - set(outputs):
            raise BundleError(
                f"{path} lacks SAM's outputs {', '.join(sorted(missing_names))}; export it as SAM's authors do"
            )
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


def _mask_size(decoder: onnx.ModelProto, spec: InputSpec) -> tuple[int, int]:
    """Return (rows, columns) of the decoder's mask input, or SAM's quarter of the image if it leaves them free."""
    shape = next((shape_of(value) for value in inputs_of(decoder) if value.name == "mask_input"), [])
    height, width = shape[2:] if len(shape) == 4 else (None, None)
    return height or max(spec.height // 4, 1), width or max(spec.width // 4, 1)


def _try_decoder(bundle: Bundle, embeddings: Sequence[NDArray[np.float32]]) -> PromptSpec:
    """Prompt the decoder once on an image's embeddings; returns the prompt's description with the masks' shape."""
    spec, prompt = bundle.input, bundle.prompt
    assert prompt is not None, "promptable bundles have one"
    decoder = OnnxSession(bundle, role="decoder")
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
        raise BundleError("run on a picture, the decoder gave masks or scores that are not finite; refused")
    prompt_spec = dataclasses.replace(
        prompt, num_masks=masks.shape[1], mask_height=masks.shape[2], mask_width=masks.shape[3]
    )
    two = point_prompts(np.repeat(np.repeat(points[:, :1], 3, axis=1), 2, axis=0))
    PromptDecoder(dataclasses.replace(bundle, prompt=prompt_spec), decoder).run(embeddings, two)
    return prompt_spec
