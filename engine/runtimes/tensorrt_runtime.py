"""Run a TensorRT engine that ``maskmill build`` made.

::

    session = TensorRTSession(Bundle.load("deeplab"), precision="fp16")
    (scores,) = session.run(batch)                  # NumPy in, NumPy out
    (scores,) = session.run(cupy.asarray(batch))    # CuPy in, CuPy out: queued on the current stream, nothing waits

CuPy arrays are read and written in place. From the second call with the same shapes on, the engine's launches are
replayed as one CUDA graph, which has buffers of its own: inputs and outputs are then copied on the device.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import SessionError
from ..model.bundle import Bundle
from ..model.engine_records import choose_engine, read_engine
from .device_arrays import is_device_array
from .nvidia import load_tensorrt, message_log, this_gpu

MAX_GRAPHS = 4
"""Shapes that are replayed as CUDA graphs; each keeps scratch memory of its own."""

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT64": "int64", "BOOL": "bool", "UINT8": "uint8"}
"""TensorRT's element types → NumPy's."""

_log = logging.getLogger(__name__)

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class _Replay:
    """A captured call: its graph, and the buffers and the context that the graph refers to."""

    graph: Any
    inputs: Mapping[str, Any]
    outputs: list[Any]
    context: Any


class TensorRTSession:
    """A TensorRT engine on CuPy's current device. Calls from several threads are queued one after the other.

    The engine is the bundle's latest for ``role`` and ``precision`` that runs on this GPU with this TensorRT version.
    Raises :class:`SessionError` where there is none, its file is damaged, or TensorRT refuses it. ``graphs=False``
    leaves CUDA graphs away.
    """

    def __init__(
        self, bundle: Bundle, *, role: str = "model", precision: str | None = None, graphs: bool = True
    ) -> None:
        trt = load_tensorrt("running TensorRT engines")
        gpu = this_gpu()
        entry = choose_engine(bundle, role=role, precision=precision, gpu=gpu, tensorrt=trt.__version__)
        data = read_engine(bundle, entry)
        self._messages = message_log(trt)
        try:
            self._runtime = trt.Runtime(self._messages)
        except TypeError as error:  # how the bindings report that the library gave no runtime
            raise SessionError(f"TensorRT cannot start: {self._messages.last() or error}") from error
        if entry.version_compatible:
            # such engines carry the code that runs them; their hash was checked above
            self._runtime.engine_host_code_allowed = True
        self._path = bundle.path / entry.path
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise self._failure("refuses the engine; run `maskmill build` again")
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self._dtypes = {name: self._dtype(name) for name in names}
        self._inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self._given = [name for name in names if name not in self._inputs]
        self._wanted = [output.name for output in bundle.outputs_of(role)]
        if missing := set(self._wanted) - set(self._given):
            raise SessionError(f"{self._path} does not give {', '.join(sorted(missing))}; run `maskmill build` again")
        self._profile = entry.profile
        smallest, _, largest = self._profile[self._inputs[0]]
        self._smallest, self._largest = smallest[0], largest[0]
        self._limit = self._largest
        self._context = self._new_context()
        self._image = bundle.input.name
        self._kind = f"tensorrt/{gpu}/{entry.precision}"
        self._artifact = entry.sha256
        self._description = (
            f"TensorRT {trt.__version__} on {gpu}, {entry.precision}, {self._path.name}, batches of "
            f"{self._smallest} to {self._largest}"
        )
        import cupy

        self._cupy = cupy
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._done = cupy.cuda.Event(disable_timing=True)
        self._lock = threading.Lock()
        self._replays: dict[Shapes, _Replay] = {}
        self._seen: set[Shapes] = set()
        self._graphs = graphs

    @property
    def kind(self) -> str:
        """Runtime, GPU and precision."""
        return self._kind

    @property
    def artifact(self) -> str:
        """SHA-256 of the engine."""
        return self._artifact

    @property
    def max_batch(self) -> int | None:
        """The engine's batch size where it was built for one only, else None: larger batches are cut."""
        return self._largest if self._smallest == self._largest else None

    @property
    def threads(self) -> int:
        """Threads that one call uses on the host: the calling one."""
        return 1

    def run(self, inputs: Any) -> list[Any]:
        """Run the engine on a float32 batch (N, …) in the bundle's layout, or on named inputs.

        NumPy arrays are copied to the device and the outputs back. With CuPy arrays the work is queued on CuPy's
        current stream and the outputs are CuPy arrays. Where the device runs out of memory, half the batch is tried,
        for this and all further calls, and a warning is logged.
        """
        feeds = dict(inputs) if isinstance(inputs, Mapping) else {self._image: inputs}
        if set(feeds) != set(self._inputs):
            raise SessionError(f"{self._path} takes {', '.join(self._inputs)}, got {', '.join(feeds)}")
        if any(is_device_array(array) for array in feeds.values()):
            return self._in_parts(feeds)
        with self._stream:
            return [self._cupy.asnumpy(array) for array in self._in_parts(feeds)]

    def __repr__(self) -> str:
        return self._description

    def _in_parts(self, feeds: Mapping[str, Any]) -> list[Any]:
        """Outputs of the whole batch, in as few calls as engine and memory allow."""
        arrays = {name: self._cupy.asarray(feeds[name], self._dtypes[name], order="C") for name in self._inputs}
        total = len(arrays[self._inputs[0]])
        parts: list[list[Any]] = []
        start = 0
        while start < total:
            num = min(total - start, self._limit)
            whole = num == total
            part = arrays if whole else {name: array[start : start + num] for name, array in arrays.items()}
            try:
                parts.append(self._padded(part, num))
            except MemoryError as error:
                if num == 1 or num <= self._smallest:
                    raise self._failure(f"has too little memory for a batch of {num} ({error})") from error
                self._limit = max(num // 2, self._smallest)
                _log.warning("%s: out of memory with a batch of %d; trying %d", self._path, num, self._limit)
                continue
            start += num
        return parts[0] if len(parts) == 1 else [self._cupy.concatenate(same) for same in zip(*parts, strict=True)]

    def _padded(self, arrays: Mapping[str, Any], num: int) -> list[Any]:
        """Outputs of ``num`` rows, filled up to the smallest batch that the engine takes."""
        if num >= self._smallest:
            return self._call(arrays)
        rows = self._smallest - num
        filled = {
            name: self._cupy.concatenate([array, self._cupy.zeros((rows, *array.shape[1:]), array.dtype)])
            for name, array in arrays.items()
        }
        return [array[:num] for array in self._call(filled)]

    def _call(self, arrays: Mapping[str, Any]) -> list[Any]:
        """Queue one call on the current stream."""
        stream = self._cupy.cuda.get_current_stream()
        shapes = tuple(array.shape for array in arrays.values())
        with self._lock:
            # the last call may be under way on another stream, in the same scratch memory and buffers
            stream.wait_event(self._done)
            replay = self._replays.get(shapes) or self._replay(shapes)
            if replay is None:
                outputs = self._bind(self._context, arrays)
                self._enqueue(self._context, stream)
            else:
                for name, array in arrays.items():
                    replay.inputs[name][...] = array
                replay.graph.launch(stream)
                outputs = [array.copy() for array in replay.outputs]
            self._done.record(stream)
        return [outputs[self._given.index(name)] for name in self._wanted]

    def _replay(self, shapes: Shapes) -> _Replay | None:
        """A graph for shapes that came before, while there is room for one and none has failed."""
        again = shapes in self._seen
        self._seen.add(shapes)
        if not (self._graphs and again and len(self._replays) < MAX_GRAPHS):
            return None
        try:
            self._replays[shapes] = replay = self._captured(shapes)
        except (SessionError, MemoryError, self._cupy.cuda.runtime.CUDARuntimeError) as error:
            self._graphs = False
            _log.warning("%s runs without a CUDA graph: %s", self._path, error)
            return None
        return replay

    def _captured(self, shapes: Shapes) -> _Replay:
        # a stream of its own: what other threads queue meanwhile must not be captured
        stream = self._cupy.cuda.Stream(non_blocking=True)
        with stream:
            context = self._new_context()
            inputs = {
                name: self._cupy.zeros(shape, self._dtypes[name])
                for name, shape in zip(self._inputs, shapes, strict=True)
            }
            outputs = self._bind(context, inputs)
            self._enqueue(context, stream)  # the first call sets things up that cannot be captured
            stream.synchronize()
            stream.begin_capture()
            try:
                self._enqueue(context, stream)
            finally:
                graph = stream.end_capture()
        return _Replay(graph, inputs, outputs, context)

    def _bind(self, context: Any, arrays: Mapping[str, Any]) -> list[Any]:
        """Point the context at its inputs and at new outputs, which are returned."""
        for name, array in arrays.items():
            if not context.set_input_shape(name, array.shape):
                smallest, _, largest = self._profile[name]
                raise SessionError(
                    f"{self._path} takes {name!r} from {tuple(smallest)} to {tuple(largest)}, got {array.shape}; "
                    "build it for other sizes with `maskmill build`"
                )
            context.set_tensor_address(name, array.data.ptr)
        outputs = []
        for name in self._given:
            shape = tuple(context.get_tensor_shape(name))
            if min(shape, default=0) < 0:
                raise SessionError(f"the output {name!r} of {self._path} has no shape before it is computed {shape}")
            array = self._cupy.empty(shape, self._dtypes[name])
            context.set_tensor_address(name, array.data.ptr)
            outputs.append(array)
        return outputs

    def _enqueue(self, context: Any, stream: Any) -> None:
        if not context.execute_async_v3(stream.ptr):
            raise self._failure("failed on its input")

    def _new_context(self) -> Any:
        context = self._engine.create_execution_context()
        if context is None:
            raise self._failure("has too little memory for its scratch space; build it for a smaller --batch")
        return context

    def _dtype(self, name: str) -> np.dtype[Any]:
        kind = self._engine.get_tensor_dtype(name).name
        if kind not in _DTYPES:
            raise SessionError(f"{name!r} of {self._path} is {kind}; keep inputs and outputs of the graph in float32")
        return np.dtype(_DTYPES[kind])

    def _failure(self, what: str) -> SessionError:
        return SessionError(f"TensorRT with {self._path} {what}: {self._messages.last() or 'it gave no reason'}")
