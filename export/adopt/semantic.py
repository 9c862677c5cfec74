"""Make a bundle from an ONNX file that somebody else exported.

The graph is checked before anything is written: one clear error for each fault. What the graph cannot say (how an
image becomes its input, what its scores mean, the class names) is given by the caller or read from a Hugging Face
``preprocessor_config.json``::

    bundle_from_onnx("model.onnx", "bundle", classes=names, background="background", layout="NHWC", …)
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...engine.model.bundle import Bundle, InputSpec, OutputSpec, Provenance
from ...engine.runtimes.onnx_runtime import OnnxSession
from ...errors import BundleError, UsageError
from ..graph import external_files, image_input, load_checked, shape_of
from ..staging import copy_model, staged

_PIL_FILTERS = {2: "bilinear", 3: "bicubic", 4: "area"}


def bundle_from_onnx(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    classes: Sequence[str],
    background: str | None = None,
    layout: Literal["NCHW", "NHWC"] = "NCHW",
    size: tuple[int, int] | None = None,
    activation: str = "softmax",
    output_name: str | None = None,
    license: str = "",
    **preprocessing: Any,
) -> Bundle:
    """Adopt a semantic segmentation model.

    Parameters
    ----------
    model
        The ONNX file; external data must lie in its folder.
    output
        Folder of the bundle, which must not exist yet.
    classes, background
        Class names in the order of the class axis, and which of them is the background.
    layout, size
        Order of the input's axes, and its (height, width) in pixels; the size may be left out where the graph fixes it.
    activation
        ``softmax``, ``sigmoid`` or ``none``: what turns the output into scores.
    output_name
        Name of the score output, where the graph has several.
    license
        License of the weights, for the record.
    preprocessing
        Further fields of :class:`InputSpec`: resize, resize_filter, antialias, channels, scale, mean, std, pad_value.

    Raises :class:`BundleError` for a graph that cannot be used, :class:`UsageError` for options that contradict it.
    """
    source, folder = Path(model), Path(output)
    if folder.exists():
        raise UsageError(f"{folder} exists already; remove it or choose another name for the bundle")
    graph = load_checked(source)
    name, size = image_input(graph, layout, size)
    spec = InputSpec(name=name, layout=layout, height=size[0], width=size[1], **preprocessing)
    scores = _score_output(graph, output_name)
    class_axis = _class_axis(scores, len(classes), layout)
    _check_activation(graph, scores.name, activation)
    if background is not None and background not in classes:
        raise UsageError(f"the background {background!r} is not one of the classes: {', '.join(classes)}")
    with staged(folder) as staging:
        files = copy_model(source, external_files(graph, source), staging)
        bundle = Bundle(
            path=staging,
            task="semantic",
            files=tuple(files),
            input=spec,
            outputs=(OutputSpec(name=scores.name, activation=activation, class_axis=class_axis),),  # type: ignore[arg-type]
            classes=tuple(classes),
            background=None if background is None else list(classes).index(background),
            source=Provenance(id=source.name, weights_sha256=files[0].sha256, license=license),
        )
        _try_out(bundle)
        bundle.save()
    return Bundle.load(folder)


def preprocessing_from_config(path: str | os.PathLike[str]) -> tuple[dict[str, Any], tuple[int, int] | None]:
    """Read a Hugging Face ``preprocessor_config.json``: (fields of :class:`InputSpec`, (height, width) or None).

    Raises :class:`UsageError` for steps that a bundle cannot express (center crops, shortest-edge resizes, nearest).
    """
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"cannot read the preprocessor {path}: {error}") from error
    if not isinstance(config, dict):
        raise UsageError(f"{path} is not a preprocessor configuration (expected a JSON object)")
    return preprocessing_of(config, path)


def preprocessing_of(
    config: Mapping[str, Any], path: str | os.PathLike[str]
) -> tuple[dict[str, Any], tuple[int, int] | None]:
    """What :func:`preprocessing_from_config` reads, from a configuration that was read from ``path``."""
    fields: dict[str, Any] = {}
    size: tuple[int, int] | None = None
    if config.get("do_center_crop"):
        raise UsageError(f"{path} crops the center of images; labels need the whole image, so set do_center_crop false")
    if config.get("do_resize", True):
        wanted = config.get("size")
        if isinstance(wanted, int):
            wanted = {"height": wanted, "width": wanted}
        wanted = dict(wanted or {})
        if {"height", "width"} <= set(wanted):
            size, fields["resize"] = (wanted["height"], wanted["width"]), "stretch"
        elif set(wanted) == {"longest_edge"}:
            pad = config.get("pad_size") or {"height": wanted["longest_edge"], "width": wanted["longest_edge"]}
            size, fields["resize"] = (pad["height"], pad["width"]), "longest-side"
        else:
            raise UsageError(
                f"{path} resizes to {wanted}; give --size and --resize instead (height and width, or longest side)"
            )
        resample = config.get("resample", 2)
        if resample not in _PIL_FILTERS:
            raise UsageError(f"{path} resamples with filter {resample}; supported are 2 bilinear, 3 bicubic, 4 box")
        fields["resize_filter"] = _PIL_FILTERS[resample]
    fields["scale"] = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    if config.get("do_normalize", True):
        for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
            if theirs not in config:
                raise UsageError(f"{path} normalizes but has no {theirs}")
            value = config[theirs]
            fields[ours] = tuple(value) if isinstance(value, list) else (value,) * 3
    if config.get("do_flip_channel_order"):
        fields["channels"] = "BGR"
    return fields, size


def _score_output(graph: Any, wanted: str | None) -> Any:
    outputs = {value.name: value for value in graph.graph.output}
    names = ", ".join(outputs)
    if wanted is not None:
        if wanted not in outputs:
            raise UsageError(f"the graph has no output {wanted!r}; it has {names}")
        return outputs[wanted]
    if len(outputs) != 1:
        raise UsageError(f"the graph has {len(outputs)} outputs ({names}); choose the score map with --output-name")
    return next(iter(outputs.values()))


def _class_axis(value: Any, num_classes: int, layout: str) -> int:
    shape = shape_of(value)
    if value.type.tensor_type.elem_type not in (1, 10, 16):  # FLOAT, FLOAT16, BFLOAT16
        raise BundleError(
            f"the output {value.name!r} is not floating point: it holds labels, and calibration needs scores; "
            "export the model without its final ArgMax"
        )
    if shape and len(shape) != 4:
        raise BundleError(f"the output {value.name!r} has {len(shape)} axes; a batch of score maps has four")
    preferred, other = (1, 3) if layout == "NCHW" else (3, 1)
    sizes = {axis: shape[axis] if shape else None for axis in (1, 3)}
    for axis in (preferred, other):
        if sizes[axis] == num_classes:
            return axis
    if sizes[preferred] is None:
        return preferred
    raise UsageError(
        f"the output {value.name!r} has shape {shape}, which has no axis of {num_classes} classes; "
        "check the class list (background included)"
    )


def _check_activation(graph: Any, output: str, activation: str) -> None:
    """A graph that ends in its own activation must not get it a second time."""
    producers = {name: node for node in graph.graph.node for name in node.output}
    node = producers.get(output)
    while node is not None and node.op_type in ("Identity", "Transpose", "Cast", "Resize", "Reshape"):
        node = producers.get(node.input[0])
    final = {"Softmax": "softmax", "Sigmoid": "sigmoid"}.get(node.op_type if node is not None else "")
    if final is not None and activation == final:
        raise UsageError(f"the graph already ends in {node.op_type}; use --activation none")  # type: ignore[union-attr]


def _try_out(bundle: Bundle) -> None:
    """Run the graph once on a gray image: shapes and values must be what the manifest says."""
    spec = bundle.input
    shape = (1, 3, spec.height, spec.width) if spec.layout == "NCHW" else (1, spec.height, spec.width, 3)
    session = OnnxSession(bundle)
    if session.max_batch not in (None, 1):
        shape = (session.max_batch, *shape[1:])
    scores = np.asarray(session.run(np.full(shape, 0.1, np.float32))[0])
    axis = bundle.outputs[0].class_axis
    if scores.ndim != 4 or scores.shape[axis] != len(bundle.classes):
        raise UsageError(
            f"run once, the model gave an output of shape {scores.shape}, not {len(bundle.classes)} classes on "
            f"axis {axis}; check the class list (background included)"
        )
    if not np.isfinite(scores).all():
        raise BundleError("run once on a gray image, the model gave scores that are not finite; refused")
