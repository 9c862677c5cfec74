"""Put an 8-bit precision into a graph as QuantizeLinear and DequantizeLinear nodes, scaled on calibration images.

::

    converted = in_8_bit(bundle, "model", "int8", photos, keep_fp32={"logits"})

int8 is ONNX Runtime's static quantizer: weights by channel, activations with a scale each. fp8 (E4M3) is NVIDIA
ModelOpt's, where that is installed. Inputs and outputs keep their shapes, names and type float32.
"""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...checks import name_list
from ...engine.inputs.images import preprocess
from ...engine.model.bundle import Bundle
from ...engine.runtimes.base import Session, first_line
from ...engine.runtimes.onnx_runtime import OnnxSession
from ...errors import ExportError, MissingPackageError, UsageError
from ..gate.tasks import Side, prompted_masks
from ..graph import at_least_opset, node_name
from ..pictures import GateImage
from .sixteen_bit import Converted

if TYPE_CHECKING:
    import onnx

Precision8 = Literal["int8", "fp8"]
Method = Literal["minmax", "percentile"]

PRECISIONS_8: tuple[str, ...] = get_args(Precision8)
METHODS: tuple[str, ...] = get_args(Method)

_PERCENTILE = 99.99
_CHANNEL_OPSET = 13
_LARGEST_FILE = 2**31 - 1  # of a protobuf message


def in_8_bit(
    bundle: Bundle,
    role: str,
    precision: Precision8,
    images: Iterable[GateImage],
    *,
    keep_fp32: Collection[str] = (),
    method: Method = "minmax",
    symmetric: bool = False,
    threads: int = 1,
) -> Converted:
    """Quantize the bundle's fp32 graph for ``role``, with ranges from ``images``.

    Parameters
    ----------
    bundle, role, precision
        The graph and the precision to convert it to: ``int8`` or ``fp8``.
    images
        Names and (H, W, 3) uint8 RGB pixels from which ranges are computed.
    keep_fp32
        Names of nodes that are not quantized.
    method
        Range of an int8 activation: ``minmax`` covers every observed value, ``percentile`` all but the last 0.01 % on
        either side. (ONNX Runtime's entropy method chooses the same ranges as minmax.)
    symmetric
        Ranges around 0, which TensorRT requires; without it, activations are uint8 with a zero point of their own.
    threads
        Threads of the session that computes a decoder's inputs.

    Raises :class:`MissingPackageError` for fp8 without ModelOpt, :class:`UsageError` for a name that no node has,
    :class:`ExportError` if the quantizer fails.
    """
    if precision not in PRECISIONS_8:
        raise UsageError(f"an 8-bit precision is one of {', '.join(PRECISIONS_8)}, got {precision!r}")
    if method not in METHODS:
        raise UsageError(f"the calibration method is one of {', '.join(METHODS)}, got {method!r}")
    import onnx

    path = bundle.model_path(role)
    names = [node_name(node) for node in onnx.load_model(path, load_external_data=False).graph.node]
    if unknown := sorted(set(keep_fp32) - set(names)):
        raise UsageError(
            f"the graph has no node named {name_list(unknown, most=5)}; names are those in the original's graph"
        )
    with tempfile.TemporaryDirectory(prefix="maskmill-quantize-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source, target = _with_channel_scales(path, Path(folder)), Path(folder) / "quantized.onnx"
        feeds = _feeds(bundle, role, images, threads)
        try:
            if precision == "int8":
                _quantize_int8(source, target, feeds, sorted(keep_fp32), method, symmetric)
            else:
                _quantize_fp8(source, target, feeds, sorted(keep_fp32))
        except (ImportError, UsageError):
            raise
        except Exception as error:
            # quantizers raise nearly every kind of exception
            raise ExportError(f"{path} cannot be quantized to {precision}: {first_line(error)}") from error
        model = onnx.load_model(target)
    quantized = _quantized_nodes(model)
    fp32_nodes = dict.fromkeys(keep_fp32, "kept by the caller")
    return Converted(model=model, converted=tuple(name for name in names if name in quantized), fp32_nodes=fp32_nodes)


def _with_channel_scales(path: Path, folder: Path) -> Path:
    """Copy the graph to ``folder``, in an opset in which a weight can have a scale per channel.

    It is always a copy, because ModelOpt overwrites the file that it reads.
    """
    import onnx

    model = at_least_opset(onnx.load_model(path), _CHANNEL_OPSET, "scales by channel")
    source = folder / "source.onnx"
    onnx.save_model(model, source, save_as_external_data=model.ByteSize() > _LARGEST_FILE, location="source.data")
    return source


def _quantize_int8(
    source: Path,
    target: Path,
    feeds: Iterator[dict[str, NDArray[Any]]],
    exclude: list[str],
    method: str,
    symmetric: bool,
) -> None:
    try:
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise MissingPackageError("onnxruntime", "cpu", "quantizing to int8") from error

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> Mapping[str, NDArray[Any]] | None:
            return next(feeds, None)

    prepared = target.with_name("prepared.onnx")
    # the graph is not optimized first, since that would change node names
    with_shapes = partial(quant_pre_process, str(source), str(prepared), skip_optimization=True)
    try:
        with_shapes(auto_merge=True)
    except Exception:
        # symbolic shape inference supports fewer operators than ONNX's own
        with_shapes(skip_symbolic_shape=True)
    calibrate = quantization.CalibrationMethod
    with _quiet():
        quantization.quantize_static(
            str(prepared),
            str(target),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QInt8 if symmetric else quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=exclude,
            calibrate_method=calibrate.MinMax if method == "minmax" else calibrate.Percentile,
            extra_options={
                "ActivationSymmetric": symmetric,
                "WeightSymmetric": True,
                "CalibPercentile": _PERCENTILE,
                "CalibTensorRangeSymmetric": symmetric,
            },
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the messages that the quantizer logs on the root logger, and the progress that it prints."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)


def _quantize_fp8(source: Path, target: Path, feeds: Iterator[dict[str, NDArray[Any]]], exclude: list[str]) -> None:
    try:
        from modelopt.onnx.quantization import quantize
    except ImportError as error:
        raise MissingPackageError("nvidia-modelopt", "modelopt", "quantizing to fp8") from error
    batches = list(feeds)
    data = {name: np.concatenate([feed[name] for feed in batches]) for name in batches[0]}
    quantize(
        onnx_path=str(source),
        quantize_mode="fp8",
        calibration_data=data,
        calibration_method="max",
        calibration_eps=["cpu"],
        nodes_to_exclude=exclude,
        high_precision_dtype="fp32",
        log_level="ERROR",
        output_path=str(target),
    )


class _Recorder:
    """Wrap a session and record its inputs."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.kind, self.artifact = session.kind, session.artifact
        self.max_batch, self.threads = session.max_batch, session.threads
        self.recorded: list[dict[str, NDArray[Any]]] = []

    def run(self, inputs: Any) -> list[Any]:
        self.recorded.append(dict(inputs))
        return self._session.run(inputs)


def _feeds(bundle: Bundle, role: str, images: Iterable[GateImage], threads: int) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield a graph's inputs for each image: the image, or for a decoder the points of the gate's grid."""
    if role != "decoder":
        for _, photo in images:
            yield {bundle.input.name: preprocess(photo, bundle.input)[0][None]}
        return
    recorder = _Recorder(OnnxSession(bundle, role="decoder", threads=threads))
    encoder = OnnxSession(bundle, role="encoder", threads=threads)
    side = Side(bundle=bundle, sessions={"encoder": encoder, "decoder": recorder})
    for _, photo in images:
        prompted_masks(side, photo)
        while recorder.recorded:
            yield recorder.recorded.pop()


def _quantized_nodes(model: onnx.ModelProto) -> set[str]:
    """Return the nodes that read a dequantized tensor."""
    dequantized = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return {node_name(node) for node in model.graph.node if not dequantized.isdisjoint(node.input)}
