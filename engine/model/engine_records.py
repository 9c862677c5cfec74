"""TensorRT engines of a bundle: their records, and the choice of the one that runs on this machine.

An engine belongs to a GPU architecture and a TensorRT version, and running one runs code from its file. It is chosen by
its record in the manifest, and its bytes are checked before TensorRT reads them::

    engine = choose_engine(bundle, role="model", precision="fp16", gpu=this_gpu(), tensorrt="11.4.0")
    data = read_engine(bundle, engine)
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import BundleError, SessionError, UsageError
from .bundle import Bundle, ModelFile
from .schema import read_value

AMPERE = 80
"""Lowest compute capability that a hardware-compatible engine runs on."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One engine, as the manifest records it."""

    path: str
    """Name relative to the bundle's folder."""
    sha256: str
    """Hash of the file's bytes."""
    bytes: int
    """Size of the file."""
    key: str
    """Hash of every build option; the same key is never built twice."""
    role: str
    """Role of the ONNX file it was built from."""
    precision: str
    """Precision of that file."""
    onnx: str
    """Hash of that file."""
    capability: int
    """Compute capability of the GPU it was built on, times ten."""
    gpu: str
    """Name of that GPU."""
    tensorrt: str
    """TensorRT version that built it."""
    profile: Mapping[str, list[list[int]]]
    """Smallest, best and largest shape of each input."""
    hardware_compatible: bool = False
    """True if it runs on every architecture from Ampere on."""
    version_compatible: bool = False
    """True if later versions of the same major TensorRT version run it."""

    def obstacle(self, gpu: Gpu, tensorrt: str, lean: bool = False) -> str:
        """Return the reason why it cannot run on ``gpu`` with this TensorRT version; empty if it can."""
        if self.hardware_compatible and min(gpu.capability, self.capability) < AMPERE:
            return f"it needs sm_{AMPERE} or newer, this is {gpu}"
        if not self.hardware_compatible and gpu.capability != self.capability:
            return f"it was built for sm_{self.capability} ({self.gpu}), this is {gpu}"
        if lean and not self.version_compatible:
            return "the lean runtime runs engines of `maskmill build --version-compatible` only"
        if tensorrt == self.tensorrt:
            return ""
        major = self.tensorrt.split(".")[0] == tensorrt.split(".")[0]
        if self.version_compatible and major and _numbers(tensorrt) >= _numbers(self.tensorrt):
            return ""
        return f"it was built by TensorRT {self.tensorrt}, this is {tensorrt}"


def engines_of(bundle: Bundle) -> list[Engine]:
    """Return the bundle's engines, the latest first; raises :class:`BundleError` if a record is damaged."""
    try:
        return [read_value(Engine, entry, "engine") for entry in reversed(bundle.engines)]
    except UsageError as error:
        raise BundleError(f"{bundle.location} lists a damaged engine ({error}); run maskmill build again") from error


def with_engine(bundle: Bundle, engine: Engine) -> Bundle:
    """Return the bundle with ``engine`` added, in place of one with the same key."""
    others = tuple(entry for entry in bundle.engines if entry.get("key") != engine.key)
    return dataclasses.replace(bundle, engines=(*others, dataclasses.asdict(engine)))


def choose_engine(
    bundle: Bundle, *, role: str, precision: str | None, gpu: Gpu, tensorrt: str, lean: bool = False
) -> Engine:
    """Return the latest engine for ``role`` that runs here, in ``precision`` if it is given.

    Raises :class:`SessionError`, with the reason, if none of them does.
    """
    entry = bundle.file(role, precision)
    name = f"{role} in {precision}" if precision else role
    engines = [engine for engine in engines_of(bundle) if engine.role == role]
    engines = [engine for engine in engines if precision in (None, engine.precision)]
    current = [engine for engine in engines if engine.onnx in {file.sha256 for file in bundle.files}]
    build = f"`maskmill build {bundle.location}`"
    if not engines:
        raise SessionError(f"{bundle.location} has no engine for its {name}; run {build} on this machine")
    if not current:
        raise SessionError(
            f"the engines of {bundle.location} were built from other files than {entry.path}; run {build}"
        )
    for engine in current:
        if not engine.obstacle(gpu, tensorrt, lean):
            return engine
    raise SessionError(
        f"no engine of {bundle.location} for its {name} runs here: {current[0].path}: "
        f"{current[0].obstacle(gpu, tensorrt, lean)}; run {build} on this machine"
    )


def read_engine(bundle: Bundle, engine: Engine) -> bytes:
    """Read an engine whose bytes have the recorded hash; raises :class:`SessionError` if they do not."""
    path = bundle.path / engine.path
    build = f"run `maskmill build {bundle.location}` again"
    try:
        ModelFile(path=engine.path, sha256=engine.sha256, bytes=engine.bytes)  # refuses paths outside the bundle
        data = path.read_bytes()
    except OSError as error:
        raise SessionError(f"cannot read the engine {path}: {error.strerror}; {build}") from error
    if len(data) < engine.bytes:
        raise SessionError(f"the engine {path} is cut short: {len(data):,} of {engine.bytes:,} bytes; {build}")
    if hashlib.sha256(data).hexdigest() != engine.sha256:
        raise SessionError(
            f"the engine {path} is not the one that was built (its hash differs), and running an engine runs code "
            f"from its file: refused; {build}"
        )
    return data


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdecimal()]


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One NVIDIA device."""

    name: str
    """Name that the driver reports."""
    capability: int
    """Compute capability times ten: 90 for 9.0."""
    memory: int
    """Bytes of memory."""

    @property
    def architecture(self) -> str:
        """Name of the architecture that code is compiled for, e.g. ``sm_90``."""
        return f"sm_{self.capability}"

    def __str__(self) -> str:
        return f"{self.name} {self.architecture}"
