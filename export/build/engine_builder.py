"""Build TensorRT engines from a bundle's ONNX files, for the GPU of this machine.

::

    built = build_engine(Bundle.load("deeplab"), precision="fp16", options=BuildOptions(batch=(1, 8, 32)))
    built.bundle, built.engine, built.reused

Networks are strongly typed: precision is what the graph says, so an fp16 engine comes from an fp16 file of the bundle,
and float32 is not rounded to TF32 on the way. An engine is found again by a hash of everything that it was asked for
with (ONNX bytes, GPU, TensorRT version, options) and built anew only when that changes.
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
from typing import Any, Protocol

from ...engine.model.bundle import Bundle, ModelFile
from ...engine.model.engine_records import Engine, Gpu, engines_of, read_engine, with_engine
from ...engine.model.publishing import write_atomically
from ...engine.runtimes.nvidia import OUT_OF_MEMORY, load_tensorrt, message_log, this_gpu
from ...errors import ExportError, SessionError, UsageError

FOLDER = "engines"
"""Folder of engines and timing caches, inside the bundle."""

Range = tuple[int, int, int]
"""Smallest, best (what is made fast) and largest."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What an engine is made for. Ranges are smallest, best and largest; the best is what TensorRT makes fast."""

    batch: Range = (1, 8, 32)
    """Images, or prompts of a decoder, in one call."""
    height: Range | None = None
    """Rows of a dynamic input, in pixels; the bundle's alone where None."""
    width: Range | None = None
    """Columns of a dynamic input, in pixels; the bundle's alone where None."""
    points: Range = (1, 2, 16)
    """Points of a prompt of a decoder."""
    workspace: int | None = None
    """Most bytes of scratch memory on the device; TensorRT's own limit, the whole device, where None."""
    hardware_compatible: bool = False
    """Run on every architecture from Ampere on, more slowly."""
    version_compatible: bool = False
    """Run with later versions of the same major TensorRT version, more slowly."""

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
    """Whether it was there already."""


class BuildObserver(Protocol):
    """Told of TensorRT's phases, which nest, from its own threads."""

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase of ``steps`` steps begins, inside ``parent`` where there is one."""
        ...

    def step(self, phase: str, done: int) -> None:
        """So many of its steps are done."""
        ...

    def finish(self, phase: str) -> None:
        """The phase ended, whether all steps were done or not."""
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
    """Build the engine for ``role`` in ``precision``, the first file listed where None, and add it to the bundle.

    Where the device runs out of memory, half the batch is tried, and ``say`` is told. Raises :class:`ExportError` with
    what TensorRT said, :class:`SessionError` without a GPU, :class:`MissingPackageError`.
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
    # a build takes minutes: what another command added to the manifest meanwhile must stay
    saved = with_engine(Bundle.load(bundle.path), engine)
    saved.save()
    return Built(bundle=saved, engine=engine, reused=False)


def _key(bundle: Bundle, file: ModelFile, gpu: Gpu, version: str, options: BuildOptions) -> str:
    """Hash of everything that decides an engine."""
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
                return None  # damaged or gone: built again, under the same name
            return engine
    return None


def _run(build: _Build, batch: Range, say: Callable[[str], None]) -> tuple[bytes, Mapping[str, list[list[int]]]]:
    """The engine's bytes and its profile, for the largest batch that the device has the memory to build."""
    while True:
        try:
            return build.run(batch)
        except _OutOfMemory as error:
            if batch[2] == 1 or not build.free_batch:
                raise ExportError(f"{build.gpu} has too little memory to build {build.file.path}: {error}") from error
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
    """TensorRT ran out of device memory; holds its message."""


class _Build:
    """One network and everything that TensorRT is asked while an engine is made from it."""

    def __init__(
        self, trt: Any, bundle: Bundle, file: ModelFile, gpu: Gpu, options: BuildOptions, observer: BuildObserver | None
    ) -> None:
        self._trt, self._bundle, self._options = trt, bundle, options
        self.file, self.gpu = file, gpu
        self._observer = observer
        self._canceled = threading.Event()
        self._timings = bundle.path / FOLDER / f"timing-{gpu.architecture}-{trt.__version__}.cache"
        self._messages = message_log(trt)
        try:
            self._builder = trt.Builder(self._messages)
        except TypeError as error:  # how the bindings report that the library gave no builder
            raise ExportError(f"TensorRT cannot start: {self._messages.last() or error}") from error
        self._network = self._parsed()
        self._inputs = [self._network.get_input(index) for index in range(self._network.num_inputs)]

    @property
    def free_batch(self) -> bool:
        """Whether the graph leaves the batch open."""
        return any(tuple(tensor.shape)[:1] == (-1,) for tensor in self._inputs)

    def run(self, batch: Range) -> tuple[bytes, dict[str, list[list[int]]]]:
        """The engine's bytes and its profile. Raises :class:`_OutOfMemory` or :class:`ExportError`."""
        trt, options = self._trt, self._options
        config = self._builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)  # fp32 is what the graph says
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
        # one from another driver or GPU is of no use and does no harm
        if not config.set_timing_cache(timings, False):
            config.set_timing_cache(config.create_timing_cache(b""), False)
        if self._observer is not None:
            # named, so that it lives until the build is done whatever the bindings hold on to
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
        # the network's weights are the parser's: it must live until the engine is built
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
        """Smallest, best and largest shape of one input: every free axis (-1) by what it means."""
        spec, options = self._bundle.input, self._options
        free: dict[int, Range] = {0: batch}
        if name == spec.name:
            rows, columns = (2, 3) if spec.layout == "NCHW" else (1, 2)
            free[rows] = options.height or (spec.height, spec.height, spec.height)
            free[columns] = options.width or (spec.width, spec.width, spec.width)
        elif self.file.role == "decoder":
            free[1] = options.points
        unknown = [axis for axis, length in enumerate(shape) if length == -1 and axis not in free]
        if unknown:
            raise ExportError(
                f"axis {unknown[0]} of the input {name!r} {tuple(shape)} has no fixed length; TensorRT needs a range "
                "for it: export the model with that axis fixed"
            )
        return tuple(
            tuple(free[axis][which] if length == -1 else length for axis, length in enumerate(shape))
            for which in range(3)
        )


def _progress_monitor(trt: Any, observer: BuildObserver, canceled: threading.Event) -> Any:
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
    """Ctrl-C sets ``flag``: an exception must not cross TensorRT, which asks between its steps."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: flag.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
