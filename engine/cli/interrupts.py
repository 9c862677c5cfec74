"""Ends of the process by Ctrl-C, whatever its main thread does: it may be in native code, or wait for a server."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress

from ..reading.retries import note_interrupt

_GRACE_SECONDS = 0.5
"""Time after which a process ends that was interrupted twice and has not ended by itself."""
_FIRST_LOOK_SECONDS = 0.7
_ANSWER_SECONDS = 1.0


def watch_interrupts() -> None:
    """Watch SIGINT and SIGTERM from a thread, as far as Python handles them; call it on the main thread.

    The first signal ends the repetitions of requests, and the process after about two seconds if a bucket that it
    writes to does not answer: nothing could be written any more. The second one ends the process.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=_forget)
    threading.Thread(target=_watch, args=(reader, writer), name="interrupts", daemon=True).start()


def _forget() -> None:
    with suppress(ValueError):
        signal.set_wakeup_fd(-1)  # a child's signals are its own


def _watch(reader: socket.socket, _writer: socket.socket) -> None:
    num_signals = 0
    while True:
        try:
            received = reader.recv(64)
        except TimeoutError:
            if _is_silent():
                _end("; the storage does not answer: run the same command again to continue")
            continue
        num_signals += sum(number in (signal.SIGINT, signal.SIGTERM) for number in received)
        if num_signals > 1:
            time.sleep(_GRACE_SECONDS)
            _end("")
        elif num_signals:
            note_interrupt()
            reader.settimeout(_FIRST_LOOK_SECONDS)


def _is_silent() -> bool:
    storage = sys.modules.get("maskmill.engine.model.storage")
    return storage is not None and storage.storage_is_silent(_ANSWER_SECONDS)


def _end(reason: str) -> None:
    with suppress(OSError, ValueError):
        cursor = "\x1b[?25h" if os.isatty(2) else ""  # a display of progress hides it
        os.write(2, f"{cursor}maskmill: interrupted{reason}\n".encode())
    os._exit(130)
