"""Memory that a long run returns to the operating system."""

from __future__ import annotations

import re
import threading
from pathlib import Path

from maskmill.engine.store.waiting.memory import WORTHWHILE_BYTES, release_memory

SIZE, COUNT = 60_000, 2_000


def resident_bytes() -> int:
    return 1024 * int(re.findall(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[0])


def test_freed_memory_of_a_thread_is_returned() -> None:
    kept: list[bytes] = []

    def work() -> None:
        blocks = [b"x" * SIZE for _ in range(COUNT)]
        kept.extend(blocks[::50])  # so that the C library can cut no large piece by itself

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    before = resident_bytes()
    release_memory(WORTHWHILE_BYTES - 1)
    assert resident_bytes() > before - SIZE * COUNT // 4
    release_memory(WORTHWHILE_BYTES)
    assert resident_bytes() < before - SIZE * COUNT // 2
