"""Registers and memory of the compiled kernels, compiled by NVRTC, which needs neither a device nor a driver."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .device import INSTANTIATIONS, OPTIONS, SOURCES, arrays

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
"""Compute capabilities, without the point, for which every kernel compiles: Turing to Blackwell."""

CUPY_OPTIONS = ("--device-as-default-execution-space", "-ftz=true")
"""Options that CuPy adds to every compilation."""


@dataclass(frozen=True)
class Resources:
    """Registers and memory of one kernel."""

    registers: int
    """Registers per thread."""
    shared: int
    """Shared memory per block in bytes."""
    spilled: int
    """Bytes per thread of registers stored to and loaded from local memory."""
    stack: int
    """Bytes per thread of local memory, spills included."""


def compiled_resources(source: str, architecture: int, names: tuple[str, ...] | None = None) -> dict[str, Resources]:
    """Compile kernels of ``cuda/<source>.cu`` (default: all) for ``sm_<architecture>`` and return their resources.

    Raises:
        RuntimeError: a kernel does not compile; the message is the compiler's.
        MissingPackageError: CuPy is not installed.
    """
    arrays()
    from cupy.cuda import nvrtc

    names = INSTANTIATIONS[source] if names is None else names
    program = nvrtc.createProgram((SOURCES / f"{source}.cu").read_text(), f"{source}.cu", (), ())
    try:
        for name in names:
            nvrtc.addNameExpression(program, name)
        options = (*OPTIONS, *CUPY_OPTIONS, f"-arch=sm_{architecture}", "-Xptxas", "-v")
        try:
            nvrtc.compileProgram(program, options)
        except nvrtc.NVRTCError as error:
            log = nvrtc.getProgramLog(program)
            raise RuntimeError(f"{source}.cu does not compile for sm_{architecture}:\n{log}") from error
        log = nvrtc.getProgramLog(program)
        return {name: _resources_in(log, nvrtc.getLoweredName(program, name)) for name in names}
    finally:
        nvrtc.destroyProgram(program)


def _resources_in(log: str, lowered: str) -> Resources:
    """Read the resources of one kernel from the report of ptxas."""
    report = log.split(f"Compiling entry function '{lowered}'", 1)[1].split("Compiling entry function", 1)[0]

    def number(pattern: str) -> int:
        match = re.search(pattern, report)
        return int(match[1]) if match else 0

    return Resources(
        registers=number(r"Used (\d+) registers"),
        shared=number(r"(\d+) bytes smem"),
        spilled=number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        stack=number(r"(\d+) bytes stack frame"),
    )
