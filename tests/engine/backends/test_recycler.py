"""Recycled buffers are handed out when the device is done with them."""

from __future__ import annotations

import subprocess
import sys

from maskmill.engine.backends.recycler import Recycler


class Event:
    """An event that is done when the test says so."""

    def __init__(self, done: bool = False) -> None:
        self.done, self.waited = done, 0

    def wait(self) -> None:
        self.waited += 1


def test_a_buffer_is_reused_when_all_its_events_are_done() -> None:
    recycler: Recycler[str] = Recycler(limit=4)
    first, second = Event(), Event(done=True)
    recycler.put("buffer", first, second)  # type: ignore[arg-type]
    assert recycler.take(Event.wait) is None  # type: ignore[arg-type]
    first.done = True
    assert recycler.take(Event.wait) == "buffer"  # type: ignore[arg-type]
    assert recycler.take(Event.wait) is None  # type: ignore[arg-type]


def test_at_the_limit_the_oldest_buffer_is_waited_for() -> None:
    recycler: Recycler[int] = Recycler(limit=2)
    events = [Event(), Event()]
    for number, event in enumerate(events):
        recycler.put(number, event)  # type: ignore[arg-type]
    assert recycler.take(Event.wait) == 0  # type: ignore[arg-type]
    assert [event.waited for event in events] == [1, 0]
    assert recycler.take(Event.wait) is None  # type: ignore[arg-type]


def test_the_true_cupy_keeps_an_owner_until_the_last_view_is_dropped() -> None:
    script = (
        "import weakref, cupy, numpy\n"
        "class Owner: pass\n"
        "owner, dropped = Owner(), []\n"
        "weakref.finalize(owner, dropped.append, True)\n"
        "memory = cupy.cuda.UnownedMemory(4096, 1 << 16, owner, 0)\n"
        "array = cupy.ndarray((4, 8, 3), numpy.uint8, cupy.cuda.MemoryPointer(memory, 0))\n"
        "del memory, owner\n"
        "view = array[1:, ::-1]\n"
        "del array\n"
        "assert view.data.mem.ptr == 4096 and not dropped\n"
        "del view\n"
        "assert dropped\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
