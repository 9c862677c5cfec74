"""Build TensorRT engines from a bundle's ONNX files, for the GPU of this machine.

::

    built = build_engine(Bundle.load("deeplab"), precision="fp16", options=BuildOptions(batch=(1, 8, 32)))
    built.bundle, built.engine, built.reused

Networks are strongly typed: the graph decides the precision, so an fp16 engine is built from an fp16 file of the
bundle, and float32 is not rounded to TF32. The key of an engine is a hash of everything that determines it (ONNX bytes,
GPU, TensorRT version, options); an engine is built only if the bundle has none with its key.
"""

from __future__ import annotations

import hashlib
import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from ...engine.model.bundle import Bundle, ModelFile
from ...engine.model.engine_records import Engine, Gpu, engines_of, read_engine, with_engine
from ...engine.model.publishing import write_atomically
from ...engine.runtimes.nvidia import OUT_OF_MEMORY, load_tensorrt, message_log, this_gpu
from ...errors import ExportError, SessionError, UsageError

FOLDER = "engines"
"""Folder of engines and timing caches, inside the bundle."""

Range = tuple[int, int, int]
"""Smallest, best (the one TensorRT optimizes for) and largest size."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Sizes and limits of an engine. Ranges are (smallest, best, largest); TensorRT optimizes for the best size."""

    batch: Range = (1, 8, 32)
    """Images per call, or prompts per call of a decoder. Sessions run batches of the best size."""
    height: Range | None = None
    """Rows of a dynamic input, in pixels; None allows the bundle's height only."""
    width: Range | None = None
    """Columns of a dynamic input, in pixels; None allows the bundle's width only."""
    points: Range = (1, 2, 16)
    """Points per prompt of a decoder."""
    workspace: int | None = None
    """Limit of scratch memory on the device, in bytes; None allows all memory of the device."""
    hardware_compatible: bool = False
    """Build an engine for every architecture from Ampere on, which is slower."""
    version_compatible: bool = False
    """Build an engine for later versions of the same major TensorRT version and for the lean runtime; slower."""

    def __post_init__(self) -> None:
        for name in ("batch", "height", "width", "points"):
            value = getattr(self, name)
            if value is not None and not 1 <= value[0] <= value[1] <= value[2]:
                raise UsageError(f"{name} must be smallest, best, largest, rising from at least 1, got {value}")
        if self.workspace is not None and self.workspace < 1:
            raise UsageError(f"the workspace must be at least 1 byte, got {self.workspace}")


@dataclass(frozen=True, kw_only=True)
class Built:
    """An engine and the bundle that lists it."""

    bundle: Bundle
    """The bundle as saved."""
    engine: Engine
    """The engine."""
    reused: bool
    """True if the bundle had this engine already."""


class BuildObserver(Protocol):
    """Observer of TensorRT's progress: nested phases, reported from TensorRT's threads."""

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """Start a phase of ``steps`` steps, inside ``parent`` if that is not None."""
        ...

    def step(self, phase: str, done: int) -> None:
        """Report the number of finished steps of a phase."""
        ...

    def finish(self, phase: str) -> None:
        """End a phase, finished or not."""
        ...


def build_engine(
    bundle: Bundle,
    *,
    role: str = "model",
    precision: str | None = None,
    options: BuildOptions | None = None,
    observer: BuildObserver | None = None,
    say: Callable[[str], None] = print,
) -> Built:
    """Build the engine for ``role`` and add it to the bundle, from the file in ``precision`` or the first one if None.

    If the device runs out of memory, the largest batch is halved, and ``say`` is called with a message. Raises
    :class:`ExportError` with TensorRT's message, :class:`SessionError` without a GPU, :class:`MissingPackageError`.
    """
    options = options or BuildOptions()
    trt = load_tensorrt("building TensorRT engines")
    gpu = this_gpu()
    file = bundle.file(role, precision)
    key = _key(bundle, file, gpu, trt.__version__, options)
    if (engine := _reusable(bundle, key)) is not None:
        return Built(bundle=bundle, engine=engine, reused=True)
    build = _Build(trt, bundle, file, gpu, options, observer)
    data, profile = _run(build, options.batch, say)
    path = Path(FOLDER) / f"{role}-{file.precision}-{gpu.architecture}-{key[:12]}.engine"
    _write(bundle.path / path, data)
    engine = Engine(
        path=path.as_posix(),
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        key=key,
        role=role,
        precision=file.precision,
        onnx=file.sha256,
        capability=gpu.capability,
        gpu=gpu.name,
        tensorrt=trt.__version__,
        profile=profile,
        hardware_compatible=options.hardware_compatible,
        version_compatible=options.version_compatible,
    )
    # a build takes minutes, in which other commands may have changed the manifest
    bundle_on_disk = with_engine(Bundle.load(bundle.path), engine)
    bundle_on_disk.save()
    return Built(bundle=bundle_on_disk, engine=engine, reused=False)


def _key(bundle: Bundle, file: ModelFile, gpu: Gpu, version: str, options: BuildOptions) -> str:
    """Hash everything that determines an engine."""
    decisive = {
        "onnx": [file.sha256, *sorted(entry.sha256 for entry in bundle.files if entry.role == "external-data")],
        "input": [bundle.input.height, bundle.input.width],
        "gpu": [gpu.name, gpu.capability],
        "tensorrt": version,
        "options": asdict(options),
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _reusable(bundle: Bundle, key: str) -> Engine | None:
    for engine in engines_of(bundle):
        if engine.key == key:
            try:
                read_engine(bundle, engine)
            except SessionError:
                return None  # damaged or missing: it is built again under the same name
            return engine
    return None


def _run(build: _Build, batch: Range, say: Callable[[str], None]) -> tuple[bytes, Mapping[str, list[list[int]]]]:
    """Build an engine for the largest batch that fits into the device's memory; returns its bytes and profile."""
    while True:
        try:
            return build.run(batch)
        except _OutOfMemory as error:
            if batch[2] == 1 or not build.free_batch:
                raise ExportError(
                    f"{build.gpu} has too little memory to build {build.file.path}: {error}; "
                    "close other programs on the GPU, or limit scratch memory with --workspace"
                ) from error
            smallest, best, largest = batch
            batch = (min(smallest, largest // 2), min(best, largest // 2), largest // 2)
            say(f"out of memory with batches of up to {largest} ({error}); trying {batch[2]}")


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, data, sync=True)
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror}; free some space and build again") from error


class _OutOfMemory(Exception):
    """TensorRT ran out of device memory; the text is its message."""


class _Build:
    """One network, and the TensorRT objects that an engine is built with."""

    def __init__(
        self,
        trt: ModuleType,
        bundle: Bundle,
        file: ModelFile,
        gpu: Gpu,
        options: BuildOptions,
        observer: BuildObserver | None,
    ) -> None:
        self._trt, self._bundle, self._options = trt, bundle, options
        self.file, self.gpu = file, gpu
        self._observer = observer
        self._canceled = threading.Event()
        self._timings = bundle.path / FOLDER / f"timing-{gpu.architecture}-{trt.__version__}.cache"
        self._messages = message_log(trt)
        try:
            self._builder = trt.Builder(self._messages)
        except TypeError as error:  # the bindings raise it if the library returns no builder
            raise ExportError(f"TensorRT cannot start: {self._messages.last() or error}") from error
        self._network = self._parsed()
        self._inputs = [self._network.get_input(index) for index in range(self._network.num_inputs)]

    @property
    def free_batch(self) -> bool:
        """True if the graph accepts any batch size."""
        return any(tuple(tensor.shape)[:1] == (-1,) for tensor in self._inputs)

    def run(self, batch: Range) -> tuple[bytes, dict[str, list[list[int]]]]:
        """Build an engine; returns its bytes and profile. Raises :class:`_OutOfMemory` or :class:`ExportError`."""
        trt, options = self._trt, self._options
        config = self._builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)  # the graph says float32
        if options.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
        if options.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        profile = self._builder.create_optimization_profile()
        shapes = {tensor.name: self._shapes(tensor.name, tuple(tensor.shape), batch) for tensor in self._inputs}
        for name, (smallest, best, largest) in shapes.items():
            profile.set_shape(name, smallest, best, largest)
        config.add_optimization_profile(profile)
        timings = config.create_timing_cache(self._timings.read_bytes() if self._timings.is_file() else b"")
        # TensorRT refuses a cache of another driver or GPU
        if not config.set_timing_cache(timings, False):
            config.set_timing_cache(config.create_timing_cache(b""), False)
        if self._observer is not None:
            # this local variable keeps it alive until the build is done
            monitor = _progress_monitor(trt, self._observer, self._canceled)
            config.progress_monitor = monitor
        self._messages.clear()
        with _interrupt_sets(self._canceled):
            plan = self._builder.build_serialized_network(self._network, config)
        if self._canceled.is_set():
            raise KeyboardInterrupt
        if plan is None:
            if (memory := self._messages.first(OUT_OF_MEMORY)) is not None:
                raise _OutOfMemory(memory)
            raise ExportError(
                f"TensorRT {trt.__version__} cannot build {self.file.path}: "
                f"{self._messages.last() or 'it gave no reason'}"
            )
        _write(self._timings, bytes(config.get_timing_cache().serialize()))
        return bytes(plan), {name: [list(shape) for shape in three] for name, three in shapes.items()}

    def _parsed(self) -> Any:
        trt = self._trt
        network = self._builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        # the parser owns the network's weights, so it must live until the engine is built
        self._parser = parser = trt.OnnxParser(network, self._messages)
        if not parser.parse_from_file(str(self._bundle.path / self.file.path)):
            errors = [parser.get_error(index) for index in range(parser.num_errors)]
            reasons = "; ".join(
                f"node {error.node()} {error.node_name()!r} ({error.node_operator()}): {error.desc()}"
                for error in errors
            )
            raise ExportError(
                f"TensorRT {trt.__version__} cannot read {self.file.path}: {reasons or self._messages.last()}"
            )
        return network

    def _shapes(self, name: str, shape: Sequence[int], batch: Range) -> tuple[tuple[int, ...], ...]:
        """Return smallest, best and largest shape of an input, with the range of every free axis (-1) filled in."""
        spec, options = self._bundle.input, self._options
        ranges: dict[int, Range] = {0: batch}
        if name == spec.name:
            rows, columns = (2, 3) if spec.layout == "NCHW" else (1, 2)
            ranges[rows] = options.height or (spec.height, spec.height, spec.height)
            ranges[columns] = options.width or (spec.width, spec.width, spec.width)
        elif self.file.role == "decoder":
            ranges[1] = options.points
        unknown = [axis for axis, length in enumerate(shape) if length == -1 and axis not in ranges]
        if unknown:
            raise ExportError(
                f"axis {unknown[0]} of the input {name!r} {tuple(shape)} has no fixed length, and TensorRT needs a "
                "range for it; export the model with this axis fixed"
            )
        return tuple(
            tuple(ranges[axis][which] if length == -1 else length for axis, length in enumerate(shape))
            for which in range(3)
        )


def _progress_monitor(trt: ModuleType, observer: BuildObserver, canceled: threading.Event) -> Any:
    class Relay(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            observer.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            observer.step(phase_name, step + 1)
            return not canceled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            observer.finish(phase_name)

    return Relay()


@contextmanager
def _interrupt_sets(flag: threading.Event) -> Iterator[None]:
    """Make Ctrl-C set ``flag``, which TensorRT reads between steps: an exception must not cross its frames."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old_handler = signal.signal(signal.SIGINT, lambda *_: flag.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old_handler)
