"""Run inputs of a target: every one is accepted or refused by an error of ours, soon, and touches no other file."""

from __future__ import annotations

import os
import random
import resource
import sys
import sysconfig
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskmill.errors import MaskmillError
from tests.fuzz.targets import Target

MAX_SECONDS = 2.0
MAX_BYTES = 1 << 30
"""Most memory that one input may take."""
SOUND_SHARE = 0.7
"""Share of the inputs that are sound documents with other contents, or nearly so."""
_SYSTEM = (
    "/proc/",
    "/sys/",
    "/dev/",
    "/usr/",
    "/etc/",
    "/lib/",
    sys.prefix,
    sys.base_prefix,
    sysconfig.get_path("stdlib"),
)


@dataclass
class Report:
    """Outcome of the inputs of one target."""

    inputs: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    changed: Counter[Any] = field(default_factory=Counter)
    slowest: float = 0.0
    longest: float = 0.0
    """Longest time on the wall, of which other work on the machine is a part."""
    largest: int = 0
    """Most bytes of memory that one input took."""

    def line(self, name: str) -> str:
        """Return the counts in one line."""
        kinds = ", ".join(f"{kind} {number}" for kind, number in self.refused.most_common(4))
        field, fewest = min(self.changed.items(), key=lambda pair: pair[1])
        return (
            f"{name}: {self.inputs} inputs, {self.accepted / self.inputs:.1%} read, refused as {kinds}; "
            f"{len(self.changed)} fields changed, {'.'.join(map(str, field))} least often ({fewest} times); "
            f"slowest {self.slowest:.2f} s ({self.longest:.2f} s on the wall), most memory {self.largest >> 20} MB"
        )


_PEAK = "/proc/self/clear_refs"
"""File that starts a new peak of memory."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_allowed: list[str] = []
_touched: list[str] = []


_OUTSIDE = ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")
"""Events that no input may cause: connections and other programs."""
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
"""Events with paths that an input may change in its own folder only."""


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not _allowed:
        return
    if event in _OUTSIDE:
        _touched.append(f"{event} {arguments!r:.200}")
    elif event == "open" and isinstance(arguments[0], str | bytes):
        mode, flags = arguments[1:3]
        writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else bool(flags & _WRITING)
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if not _is_inside(path) and (writes or not path.startswith(_SYSTEM)) and not path.endswith((".py", ".pyc")):
            _touched.append(path)
    elif event in _CHANGES:
        paths = [os.path.abspath(os.fsdecode(value)) for value in arguments if isinstance(value, str | bytes)]
        _touched.extend(f"{event} {path}" for path in paths if not _is_inside(path))


def _is_inside(path: str) -> bool:
    return path in (_allowed[0], _PEAK) or path.startswith(f"{_allowed[0]}/")


sys.addaudithook(_watch)


@contextmanager
def only_files_of(folder: Path) -> Iterator[None]:
    """Raise AssertionError for what leaves ``folder``: files but those of Python and the system, connections, programs.

    What Python's own functions do is seen, and not what C libraries do.
    """
    _touched.clear()
    _allowed.append(str(folder.resolve()))
    try:
        yield
    finally:
        _allowed.clear()
    assert not _touched, f"opened {_touched[:3]}"


def run_input(target: Target, seed: int, report: Report) -> None:
    """Change the target's document with the random numbers of ``seed`` and read it."""
    chance = random.Random(seed)
    if target.variant is not None and chance.random() < SOUND_SHARE:
        document, place = target.variant(target.original, chance)
    else:
        document, place = target.change(target.original, chance)
        if not isinstance(target.original, bytes) and chance.randrange(4) == 0:
            document, _ = target.change(document, chance) if document else (document, ())
    report.inputs += 1
    report.changed[place] += 1
    # processor time, so that other work on the machine does not count
    started, entered, before = time.process_time(), time.monotonic(), _start_of_peak()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            target.read(document)
        report.accepted += 1
    except MaskmillError as error:
        report.refused[type(error).__name__] += 1
    except Exception as error:
        raise AssertionError(f"seed {seed}: {type(error).__name__}: {str(error)[:300]}") from error
    seconds = time.process_time() - started
    report.slowest = max(report.slowest, seconds)
    report.longest = max(report.longest, time.monotonic() - entered)
    assert seconds < MAX_SECONDS, f"seed {seed} took {seconds:.1f} s"
    taken = _peak() - before
    report.largest = max(report.largest, taken)
    assert taken < MAX_BYTES, f"seed {seed} took {taken:,} bytes"


def _start_of_peak() -> int:
    """Return the bytes that the process has now, and start a new peak if Linux allows it."""
    with suppress(OSError):
        file = os.open(_PEAK, os.O_WRONLY)
        try:
            os.write(file, b"5")
        finally:
            os.close(file)
    return _peak()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
