"""Run a TensorRT engine that ``maskmill build`` made.

::

    session = TensorRTSession(Bundle.load("deeplab"), precision="fp16")
    (scores,) = session.run(batch)                  # NumPy in, NumPy out
    (scores,) = session.run(cupy.asarray(batch))    # CuPy in, CuPy out: queued on the current stream, nothing waits

Every call has the batch size that the engine was optimized for: larger batches are split, smaller ones padded, so that
input shapes repeat. From the second call with the same shapes on, the engine's launches are replayed as one CUDA graph,
which has buffers of its own: inputs and outputs are then copied on the device. All shapes share one scratch buffer.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import SessionError
from ...kernels.types import BackendArray
from ..model.bundle import Bundle
from ..model.engine_records import choose_engine, read_engine
from ..model.storage import shown
from .device_arrays import is_device_array
from .nvidia import load_tensorrt_runtime, message_log, this_gpu

if TYPE_CHECKING:
    import cupy
    import tensorrt

MAX_GRAPHS = 4
"""Most input shapes that are replayed as CUDA graphs; each graph has its own input and output buffers."""

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT64": "int64", "BOOL": "bool", "UINT8": "uint8"}
"""TensorRT's element types → NumPy's."""

_log = logging.getLogger(__name__)

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class _Replay:
    """A captured call: its graph, and the buffers and the context that the graph refers to."""

    graph: cupy.cuda.Graph
    inputs: Mapping[str, cupy.ndarray]
    outputs: list[cupy.ndarray]
    context: Any
    scratch: cupy.ndarray


class TensorRTSession:
    """A TensorRT engine on CuPy's current device. Calls from several threads are queued one after the other.

    The engine is the bundle's latest for ``role`` and ``precision`` that runs on this GPU with this TensorRT version.
    Without the full TensorRT package the lean runtime runs version-compatible engines. Raises :class:`SessionError` if
    there is no such engine, its file is damaged, or TensorRT refuses it. ``graphs=False`` disables CUDA graphs.
    """

    def __init__(
        self, bundle: Bundle, *, role: str = "model", precision: str | None = None, graphs: bool = True
    ) -> None:
        trt, lean = load_tensorrt_runtime("running TensorRT engines")
        gpu = this_gpu()
        entry = choose_engine(bundle, role=role, precision=precision, gpu=gpu, tensorrt=trt.__version__, lean=lean)
        data = read_engine(bundle, entry)
        self._trt, self._messages = trt, message_log(trt)
        try:
            self._runtime = trt.Runtime(self._messages)
        except TypeError as error:  # the bindings raise it if the library returns no runtime
            raise SessionError(f"TensorRT cannot start: {self._messages.last() or error}") from error
        if entry.version_compatible:
            # such engines contain the code that runs them; their hash was checked above
            self._runtime.engine_host_code_allowed = True
        self._path = bundle.path / entry.path
        self._location = shown(self._path)
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise self._failure("refuses the engine; run `maskmill build` again")
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self._dtypes = {name: self._dtype(name) for name in names}
        self._inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self._outputs = [name for name in names if name not in self._inputs]
        self._requested = [output.name for output in bundle.outputs_of(role)]
        if missing_outputs := set(self._requested) - set(self._outputs):
            raise SessionError(
                f"{self._location} has no output {', '.join(sorted(missing_outputs))}; run `maskmill build` again"
            )
        self._profile = entry.profile
        rows = {name: [shape[0] for shape in shapes] for name, shapes in self._profile.items() if len(shapes[0]) > 1}
        self._batched = {name for name in self._inputs if rows.get(name) == rows[self._inputs[0]]}
        self._smallest, self._batch, _ = rows[self._inputs[0]]
        self._image = bundle.input.name
        self._kind = f"tensorrt/{gpu}/{entry.precision}"
        self._artifact = entry.sha256
        self._description = (
            f"TensorRT {trt.__version__}{' (lean runtime)' if lean else ''} on {gpu}, {entry.precision}, "
            f"{self._path.name}, batches of {self._batch}"
        )
        import cupy

        self._cupy = cupy
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._done = cupy.cuda.Event(disable_timing=True)
        self._lock = threading.Lock()
        self._context = self._new_context()
        self._scratch = self._empty_scratch(0)
        self._bound: Shapes | None = None
        self._replays: dict[Shapes, _Replay] = {}
        self._seen: set[Shapes] = set()
        self._graphs = graphs
        # buffers that queued work still uses must not be handed out again when the session is dropped
        weakref.finalize(self, self._done.synchronize).atexit = False

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
        """The batch size that the engine was optimized for; other batches are split or padded to it."""
        return self._batch

    @property
    def threads(self) -> int:
        """Threads per call on the host: the calling thread."""
        return 1

    def run(self, inputs: Any) -> list[Any]:
        """Run the engine on a float32 batch (N, …) in the bundle's layout, or on named inputs.

        NumPy arrays are copied to the device and the outputs back. With CuPy arrays the work is queued on CuPy's
        current stream and the outputs are CuPy arrays. If the device runs out of memory, this call and all further
        ones use half the batch size, and a warning is logged.
        """
        feeds = dict(inputs) if isinstance(inputs, Mapping) else {self._image: inputs}
        if set(feeds) != set(self._inputs):
            raise SessionError(f"{self._location} takes {', '.join(self._inputs)}, got {', '.join(feeds)}")
        if any(is_device_array(array) for array in feeds.values()):
            return self._in_parts(feeds)
        with self._stream:
            return [self._cupy.asnumpy(array) for array in self._in_parts(feeds)]

    def __repr__(self) -> str:
        return self._description

    def _in_parts(self, feeds: Mapping[str, Any]) -> list[Any]:
        """Run a batch in calls of the engine's batch size."""
        arrays = {name: self._cupy.asarray(feeds[name], self._dtypes[name], order="C") for name in self._inputs}
        total = len(arrays[self._inputs[0]])
        parts: list[list[Any]] = []
        start = 0
        while start < total:
            num = min(total - start, self._batch)
            part = {
                name: array[start : start + num] if name in self._batched and num < total else array
                for name, array in arrays.items()
            }
            try:
                parts.append(self._call(part, num, self._batch))
            except MemoryError as error:
                if self._batch <= max(self._smallest, 1):
                    raise self._failure(f"has too little memory for a batch of {self._batch} ({error})") from error
                smaller = max(self._batch // 2, self._smallest)
                _log.warning("%s: out of memory with a batch of %d; trying %d", self._location, self._batch, smaller)
                self._batch = smaller
                continue
            start += num
        return parts[0] if len(parts) == 1 else [self._cupy.concatenate(same) for same in zip(*parts, strict=True)]

    def _call(self, arrays: Mapping[str, Any], num: int, batch: int) -> list[Any]:
        """Queue one call with ``num`` rows, padded to ``batch``, on the current stream."""
        stream = self._cupy.cuda.get_current_stream()
        shapes = tuple(
            (batch, *array.shape[1:]) if name in self._batched else array.shape for name, array in arrays.items()
        )
        with self._lock:
            # the last call may still run on another stream, with the same scratch memory and buffers
            stream.wait_event(self._done)
            replay = self._replays.get(shapes) or self._replay(shapes)
            if replay is None:
                filled = {
                    name: self._filled(array, batch) if name in self._batched else array
                    for name, array in arrays.items()
                }
                outputs = self._bind(self._context, filled)
                self._enqueue(self._context, stream)
            else:
                for name, array in arrays.items():
                    # further rows still hold data of an earlier call
                    replay.inputs[name][: num if name in self._batched else None] = array
                replay.graph.launch(stream)
                outputs = [array[:num].copy() for array in replay.outputs]
            self._done.record(stream)
        return [outputs[self._outputs.index(name)][:num] for name in self._requested]

    def _filled(self, array: Any, batch: int) -> BackendArray:
        """Pad an array to ``batch`` rows with zeros."""
        if len(array) == batch:
            return array
        zeros = self._cupy.zeros((batch - len(array), *array.shape[1:]), array.dtype)
        return self._cupy.concatenate([array, zeros])

    def _replay(self, shapes: Shapes) -> _Replay | None:
        """Capture a graph for shapes that occurred before, unless there are too many or capturing has failed."""
        again = shapes in self._seen
        self._seen.add(shapes)
        if not (self._graphs and again and len(self._replays) < MAX_GRAPHS):
            return None
        try:
            self._replays[shapes] = replay = self._captured(shapes)
        except (SessionError, MemoryError, self._cupy.cuda.runtime.CUDARuntimeError) as error:
            self._graphs = False
            _log.warning("%s runs without a CUDA graph: %s", self._location, error)
            return None
        return replay

    def _captured(self, shapes: Shapes) -> _Replay:
        context = self._new_context()
        with self._stream:  # its pool keeps the buffers, since the stream of the capture is dropped
            inputs = {
                name: self._cupy.zeros(shape, self._dtypes[name])
                for name, shape in zip(self._inputs, shapes, strict=True)
            }
            outputs = self._bind(context, inputs)
        # a stream of its own: work that other threads queue meanwhile must not be captured
        stream = self._cupy.cuda.Stream(non_blocking=True)
        with stream:
            stream.wait_event(self._done)
            stream.wait_event(self._stream.record())
            self._enqueue(context, stream)  # the first call does some setup that cannot be captured
            stream.synchronize()
            stream.begin_capture()
            try:
                self._enqueue(context, stream)
            finally:
                graph = stream.end_capture()
        return _Replay(graph, inputs, outputs, context, self._scratch)

    def _bind(self, context: Any, arrays: Mapping[str, Any]) -> list[Any]:
        """Set a context's inputs, scratch memory and new outputs, which are returned."""
        shapes = tuple(array.shape for array in arrays.values())
        if context is not self._context or shapes != self._bound:
            for name, array in arrays.items():
                if not context.set_input_shape(name, array.shape):
                    smallest, _, largest = self._profile[name]
                    raise SessionError(
                        f"{self._location} takes {name!r} from {tuple(smallest)} to {tuple(largest)}, got "
                        f"{array.shape}; build it for other sizes with `maskmill build`"
                    )
            self._reserve(context.update_device_memory_size_for_shapes())
        context.set_device_memory(self._scratch.data.ptr, self._scratch.nbytes)
        outputs = []
        for name in self._outputs:
            shape = tuple(context.get_tensor_shape(name))
            if min(shape, default=0) < 0:
                raise SessionError(
                    f"the shape of the output {name!r} of {self._location} depends on values of the input, got "
                    f"{shape}; run this bundle with --provider cuda"
                )
            outputs.append(self._cupy.empty(shape, self._dtypes[name]))
        for name, array in zip([*arrays, *self._outputs], [*arrays.values(), *outputs], strict=True):
            if not context.set_tensor_address(name, array.data.ptr):
                raise self._failure(f"refuses the memory of {name!r}")
        if context is self._context:
            self._bound = shapes
        return outputs

    def _reserve(self, num_bytes: int) -> None:
        """Make the scratch memory, which calls use one after the other, at least ``num_bytes`` large."""
        if num_bytes > self._scratch.nbytes:
            # the last call may still use the dropped memory, which returns to the pool of this stream
            self._stream.wait_event(self._done)
            self._scratch = self._empty_scratch(num_bytes)
        # new memory may have work queued on the stream of its pool
        self._cupy.cuda.get_current_stream().wait_event(self._stream.record())

    def _empty_scratch(self, num_bytes: int) -> cupy.ndarray:
        with self._stream:
            return self._cupy.empty(max(num_bytes, 1), np.uint8)

    def _enqueue(self, context: Any, stream: Any) -> None:
        if not context.execute_async_v3(stream.ptr):
            raise self._failure("failed on its input")

    def _new_context(self) -> tensorrt.IExecutionContext:
        context = self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise self._failure("cannot create an execution context; free some device memory")
        return context

    def _dtype(self, name: str) -> np.dtype[Any]:
        kind = self._engine.get_tensor_dtype(name).name
        if kind not in _DTYPES:
            raise SessionError(
                f"{name!r} of {self._location} has the type {kind}, expected one of {', '.join(_DTYPES)}; "
                "keep inputs and outputs of the graph in float32"
            )
        return np.dtype(_DTYPES[kind])

    def _failure(self, what: str) -> SessionError:
        return SessionError(f"TensorRT with {self._location} {what}: {self._messages.last() or 'it gave no reason'}")
