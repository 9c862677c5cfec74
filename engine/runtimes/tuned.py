"""The runtime and precision that ``maskmill tune`` chose for a bundle on a machine; ``--provider auto`` reads it.

The choices are stored in ``tuned.json`` beside the manifest, one per machine. A choice is valid for the machine's
processor, its number of usable processors, and the file that was measured.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import BundleError, UsageError
from ...kernels.processors import usable_processors
from ..model.bundle import Bundle
from ..model.publishing import write_atomically
from ..model.schema import read_json_object, read_value
from .open import Provider, ProviderChoice

FILE = "tuned.json"


@dataclass(frozen=True, kw_only=True)
class TunedChoice:
    """The fastest runtime and precision of a bundle that passed the gate on a machine."""

    machine: str
    """Processor and number of usable processors, see :func:`machine_name`."""
    provider: Provider
    """Runtime."""
    precision: str
    """Precision of the file."""
    artifact: str
    """Hash of the file."""
    images_per_second: float
    """Measured speed of the model alone."""
    ratio: float
    """Speed relative to the original in ONNX Runtime on the processor."""


def machine_name() -> str:
    """Return the processor's model and the number of usable processors of this machine."""
    return f"{_processor()}, {usable_processors()} processor(s)"


def read_choice(bundle: Bundle) -> TunedChoice:
    """Return the choice for this machine.

    Raises :class:`UsageError` if there is none, or if the file that was measured has changed since.
    """
    again = f"run `maskmill tune {bundle.location} --images PHOTOS`"
    choices = _read(bundle.path / FILE)
    machine = machine_name()
    choice = next((choice for choice in choices if choice.machine == machine), None)
    if choice is None:
        known_machines = f" (it knows: {'; '.join(choice.machine for choice in choices)})" if choices else ""
        raise UsageError(f"{bundle.location} has not been tuned on this machine, {machine}{known_machines}; {again}")
    if choice.artifact not in {file.sha256 for file in bundle.files}:
        raise UsageError(f"the {choice.precision} file of {bundle.location} has changed since it was tuned; {again}")
    return choice


def resolve(bundle: Bundle, provider: ProviderChoice, precision: str | None = None) -> tuple[Provider, str | None]:
    """Return runtime and precision: those given, or for ``auto`` those that ``maskmill tune`` chose.

    Raises :class:`UsageError` as :func:`read_choice` does, and for a precision beside ``auto``.
    """
    if provider != "auto":
        return provider, precision
    if precision is not None:
        raise UsageError("--provider auto chooses the precision, too; leave --precision out, or name the runtime")
    choice = read_choice(bundle)
    return choice.provider, choice.precision


def write_choice(bundle: Bundle, choice: TunedChoice) -> None:
    """Record a choice, in place of an earlier one for the same machine."""
    kept = [entry for entry in _read(bundle.path / FILE) if entry.machine != choice.machine]
    raw = {"choices": [asdict(entry) for entry in (*kept, choice)]}
    write_atomically(bundle.path / FILE, (json.dumps(raw, indent=2) + "\n").encode())


def _read(path: Path) -> list[TunedChoice]:
    if not path.is_file():
        return []
    try:
        return read_value(list[TunedChoice], read_json_object(path).get("choices"), "choices")
    except UsageError as error:
        raise BundleError(f"{path} is damaged ({error}); delete it and run `maskmill tune` again") from error


def _processor() -> str:
    """Return the processor's name from Linux, or on other systems from Python."""
    try:
        lines: Any = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()
