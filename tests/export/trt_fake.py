"""A recording stand-in for TensorRT: builds "engines" that hold the ONNX file and runs them with ONNX Runtime.

Calls of our code are logged, with the number of arguments and the type of each result; test_tensorrt.py compares that
log with the real bindings, so that neither our code nor this stand-in can deviate from them. Tensor addresses are
addresses of main memory, see :mod:`tests.cupy_fake`.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import json
from typing import Any

import numpy as np
import onnx
import onnxruntime

from .. import race_detector
from ..cupy_fake import stream_at

log: list[dict[str, Any]] = []
"""Every class, member and call that was used."""

VERSION = "11.4.0"


class World:
    """Faults that a test requests."""

    version = VERSION
    memory_for = 1 << 30
    """Largest batch that the device has the memory to build."""
    build_error = ""
    starts = True
    """Whether the library can be used at all."""
    contexts = 99
    """Execution contexts that can be created."""
    scratch = 4096
    """Bytes of scratch memory per row of a batch."""
    interrupt_at: str | None = None
    """Phase during which the user presses Ctrl-C."""


def reset() -> None:
    """Reset the log and the faults."""
    log.clear()
    for name, value in vars(World).items():
        if not name.startswith("_"):
            setattr(world, name, value)


world = World()


def _note(owner: str, member: str, kind: str, **more: Any) -> None:
    entry = {"owner": owner, "member": member, "kind": kind, **more}
    if entry not in log:
        log.append(entry)


def _recorded(owner: str, name: str, function: Any) -> Any:
    @functools.wraps(function)
    def call(self: Any, *args: Any, **options: Any) -> Any:
        result = function(self, *args, **options)
        returns = None if result is None else type(result).__name__
        _note(owner, name, "call", args=len(args), options=sorted(options), returns=returns)
        return result

    return call


class _Recording(type):
    """Logs calls of public methods, reads and writes of properties, and constants read from the class."""

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> Any:
        if namespace.get("__module__") == __name__:
            for key, value in list(namespace.items()):
                if inspect.isfunction(value) and (key == "__init__" or not key.startswith("_")):
                    namespace[key] = _recorded(name, key, value)
                elif isinstance(value, property):
                    namespace[key] = _property(name, key, value)
        return super().__new__(cls, name, bases, namespace)

    def __getattribute__(cls, key: str) -> Any:
        if key.isupper():
            _note(super().__getattribute__("__name__"), key, "constant")
        return super().__getattribute__(key)


def _property(owner: str, name: str, value: property) -> property:
    def read(self: Any) -> Any:
        _note(owner, name, "read")
        return value.fget(self)  # type: ignore[misc]

    def write(self: Any, new: Any) -> None:
        _note(owner, name, "write")
        value.fset(self, new)  # type: ignore[misc]

    return property(read, write if value.fset else None)


def _called_back(instance: Any, base: str, method: str, *args: Any) -> Any:
    """Call a method that our code overrides, as the library does, and log its parameters."""
    function = getattr(instance, method)
    _note(base, method, "override", parameters=list(inspect.signature(function).parameters))
    return function(*args)


class _Member:
    def __init__(self, name: str, value: int) -> None:
        self.name, self._value = name, value

    def __int__(self) -> int:
        return self._value


def _enum(kind: str, *names: str) -> Any:
    member = type(kind, (_Member,), {})
    return _Recording(kind, (), {name: member(name, value) for value, name in enumerate(names)})


NetworkDefinitionCreationFlag = _enum("NetworkDefinitionCreationFlag", "OTHER", "STRONGLY_TYPED")
BuilderFlag = _enum("BuilderFlag", "TF32", "VERSION_COMPATIBLE")
HardwareCompatibilityLevel = _enum("HardwareCompatibilityLevel", "NONE", "AMPERE_PLUS")
MemoryPoolType = _enum("MemoryPoolType", "WORKSPACE")
TensorIOMode = _enum("TensorIOMode", "NONE", "INPUT", "OUTPUT")
ExecutionContextAllocationStrategy = _enum(
    "ExecutionContextAllocationStrategy", "STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"
)
DataType = _enum("DataType", "FLOAT", "HALF", "INT64", "BF16")
_ONNX_TYPES = {1: "FLOAT", 10: "HALF", 7: "INT64", 16: "BF16"}


class Dims(tuple):
    """A shape."""


class ILogger(metaclass=_Recording):
    INTERNAL_ERROR, ERROR, WARNING, INFO = (_Member(name, value) for value, name in enumerate(("IE", "E", "W", "I")))

    def __init__(self) -> None:
        pass


class IProgressMonitor(metaclass=_Recording):
    def __init__(self) -> None:
        pass


class IHostMemory(bytes):
    """Bytes behind the buffer protocol."""


def _say(logger: Any, severity: str, text: str) -> None:
    _called_back(logger, "ILogger", "log", ILogger.__dict__[severity], text)


class ITensor(metaclass=_Recording):
    def __init__(self, value: Any) -> None:
        self._name = value.name
        dims = value.type.tensor_type.shape.dim
        self._shape = Dims(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)
        self._type = _ONNX_TYPES[value.type.tensor_type.elem_type]

    @property
    def name(self) -> str:
        return self._name

    @property
    def shape(self) -> Dims:
        return self._shape


class INetworkDefinition(metaclass=_Recording):
    def __init__(self, flags: int) -> None:
        assert flags == 1 << 1, "TensorRT 11 has strongly typed networks only"

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    def get_input(self, index: int) -> ITensor:
        return self._inputs[index]


class ParserError(metaclass=_Recording):
    def __init__(self, node: Any) -> None:
        self._node = node

    def node(self) -> int:
        return 0

    def node_name(self) -> str:
        return self._node.name

    def node_operator(self) -> str:
        return self._node.op_type

    def desc(self) -> str:
        return "No importer registered for op"


class OnnxParser(metaclass=_Recording):
    def __init__(self, network: INetworkDefinition, logger: Any) -> None:
        self._network, self._logger, self._errors = network, logger, []

    def parse_from_file(self, model: str) -> bool:
        assert isinstance(model, str)
        graph = onnx.load(model)
        self._errors = [ParserError(node) for node in graph.graph.node if node.domain == "unknown"]
        if self._errors:
            _say(self._logger, "ERROR", "ModelImporter: parsing failed")
            return False
        stored = {tensor.name for tensor in graph.graph.initializer}
        self._network._model = graph
        self._network._inputs = [ITensor(value) for value in graph.graph.input if value.name not in stored]
        return True

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]


class IOptimizationProfile(metaclass=_Recording):
    def __init__(self) -> None:
        self._shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        assert all(low <= best <= high for low, best, high in zip(min, opt, max, strict=True))
        self._shapes[input] = [min, opt, max]


class ITimingCache(metaclass=_Recording):
    def __init__(self, data: bytes) -> None:
        self._data = bytes(data)

    def serialize(self) -> IHostMemory:
        return IHostMemory(self._data + b"timing;")


class IBuilderConfig(metaclass=_Recording):
    def __init__(self) -> None:
        self._flags, self._workspace, self._cache = {"TF32"}, None, None
        self._level, self._monitor = "NONE", None

    def set_flag(self, flag: _Member) -> None:
        self._flags.add(flag.name)

    def clear_flag(self, flag: _Member) -> None:
        self._flags.discard(flag.name)

    def set_memory_pool_limit(self, pool: _Member, pool_size: int) -> None:
        self._workspace = pool_size

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profile = profile
        return 0

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if cache._data.startswith(b"other"):
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache:
        assert self._cache is not None
        return self._cache

    @property
    def hardware_compatibility_level(self) -> Any:
        return self._level

    @hardware_compatibility_level.setter
    def hardware_compatibility_level(self, level: _Member) -> None:
        self._level = level.name

    @property
    def progress_monitor(self) -> Any:
        return self._monitor

    @progress_monitor.setter
    def progress_monitor(self, monitor: Any) -> None:
        self._monitor = monitor


class Builder(metaclass=_Recording):
    def __init__(self, logger: Any) -> None:
        if not world.starts:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        if not self._watched(config._monitor):
            _say(self._logger, "WARNING", "canceled by the progress monitor")
            return None
        profile = config._profile._shapes
        largest = max(shapes[2][0] for shapes in profile.values())
        if largest > world.memory_for:
            _say(self._logger, "WARNING", "Skipping tactic 0x1 due to insufficient memory on requested size of 9 bytes")
            _say(self._logger, "ERROR", "Error Code 10: Could not find any implementation for node Conv_0.")
            return None
        if world.build_error:
            _say(self._logger, "ERROR", world.build_error)
            return None
        header = {"profile": profile, "flags": sorted(config._flags), "level": config._level}
        header["workspace"] = config._workspace
        return IHostMemory(json.dumps(header).encode() + b"\0" + network._model.SerializeToString())

    @staticmethod
    def _watched(monitor: Any) -> bool:
        if monitor is None:
            return True
        go_on = True
        for phase, parent in (("Building Engine", None), ("Tactic selection", "Building Engine")):
            _called_back(monitor, "IProgressMonitor", "phase_start", phase, parent, 2)
            if world.interrupt_at == phase:
                import signal

                signal.raise_signal(signal.SIGINT)
            for step in range(2):
                go_on = go_on and _called_back(monitor, "IProgressMonitor", "step_complete", phase, step)
        for phase in ("Tactic selection", "Building Engine"):
            _called_back(monitor, "IProgressMonitor", "phase_finish", phase)
        return go_on


class IExecutionContext(metaclass=_Recording):
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine, self._shapes, self._addresses, self._scratch = engine, {}, {}, (0, 0)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert isinstance(shape, tuple)
        smallest, _, largest = self._engine._profile[name]
        inside = len(shape) == len(smallest) and all(
            low <= length <= high for low, length, high in zip(smallest, shape, largest, strict=True)
        )
        if inside:
            self._shapes[name] = shape
        return inside

    def get_tensor_shape(self, name: str) -> Dims:
        return Dims(self._engine._output_shapes(self._shapes)[name])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return name in self._engine._types and memory % 256 == 0

    def update_device_memory_size_for_shapes(self) -> int:
        assert set(self._shapes) == {tensor._name for tensor in self._engine._inputs}, "every input has a shape"
        return world.scratch * max(shape[0] for shape in self._shapes.values())

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0
        self._scratch = (memory, size)

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert set(self._addresses) == {tensor._name for tensor in self._engine._tensors}, "every tensor has an address"
        shapes, addresses, (scratch, size) = dict(self._shapes), dict(self._addresses), self._scratch
        if size < self.update_device_memory_size_for_shapes():
            _say(self._engine._logger, "ERROR", "Error Code 1: the scratch memory is too small")
            return False

        def work(timeline: race_detector.Timeline) -> None:
            def memory(name: str, shape: tuple[int, ...], write: bool) -> np.ndarray:
                array = _memory(addresses[name], shape, self._engine._types[name])
                bounds = np.lib.array_utils.byte_bounds(array)
                race_detector.touch(timeline, *bounds, write=write, what=f"engine with {name!r}")
                return array

            race_detector.touch(timeline, scratch, scratch + size, write=True, what="engine with its scratch memory")
            feeds = {name: memory(name, shape, False) for name, shape in shapes.items()}
            for name, result in self._engine._run(feeds).items():
                memory(name, result.shape, True)[...] = result

        stream_at(stream_handle).do("engine", work)
        return True


def _memory(address: int, shape: tuple[int, ...], kind: str) -> np.ndarray:
    dtype = np.dtype({"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64}[kind])
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape)


class ICudaEngine(metaclass=_Recording):
    def __init__(self, header: dict[str, Any], model: bytes, logger: Any) -> None:
        graph = onnx.load_from_string(model).graph
        stored = {tensor.name for tensor in graph.initializer}
        self._inputs = [ITensor(value) for value in graph.input if value.name not in stored]
        self._tensors = [*self._inputs, *(ITensor(value) for value in graph.output)]
        self._types = {tensor._name: tensor._type for tensor in self._tensors}
        self._profile, self._logger = header["profile"], logger
        self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

    def _run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [value.name for value in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, feeds), strict=True))

    def _output_shapes(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        kinds = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64}
        feeds = {name: np.zeros(shape, kinds[self._types[name]]) for name, shape in shapes.items()}
        return {name: result.shape for name, result in self._run(feeds).items()}

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return self._tensors[index]._name

    def get_tensor_mode(self, name: str) -> Any:
        inputs = {tensor._name for tensor in self._inputs}
        return TensorIOMode.__dict__["INPUT" if name in inputs else "OUTPUT"]

    def get_tensor_dtype(self, name: str) -> Any:
        return DataType.__dict__[self._types[name]]

    def create_execution_context(self, strategy: _Member) -> IExecutionContext | None:
        assert strategy.name == "USER_MANAGED"
        if world.contexts < 1:
            _say(self._logger, "ERROR", "Error Code 2: OutOfMemory (Requested size was 99 bytes.)")
            return None
        world.contexts -= 1
        return IExecutionContext(self)


class Runtime(metaclass=_Recording):
    def __init__(self, logger: Any) -> None:
        if not world.starts:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._logger, self._host_code = logger, False

    @property
    def engine_host_code_allowed(self) -> bool:
        return self._host_code

    @engine_host_code_allowed.setter
    def engine_host_code_allowed(self, allowed: bool) -> None:
        self._host_code = allowed

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        header, _, model = bytes(serialized_engine).partition(b"\0")
        plan = json.loads(header)
        if "VERSION_COMPATIBLE" in plan["flags"] and not self._host_code:
            _say(self._logger, "ERROR", "engine contains host code; allow it first")
            return None
        return ICudaEngine(plan, model, self._logger)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return world.version
    raise AttributeError(name)
