"""Handling of Ctrl-C even if the main thread is in native code or waits for a server."""

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
"""Seconds after a second interrupt at which a process that has not exited is ended."""
_FIRST_LOOK_SECONDS = 0.7
_ANSWER_SECONDS = 1.0


def watch_interrupts() -> None:
    """Watch SIGINT and SIGTERM from a thread, if Python handles them; call it on the main thread.

    The first signal ends retries of requests. If a bucket that the process writes to does not answer, so that nothing
    could be saved, it also ends the process after about two seconds. The second signal ends the process.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=_forget)
    threading.Thread(target=_watch, args=(reader, writer), name="interrupts", daemon=True).start()


def _forget() -> None:
    with suppress(ValueError):
        signal.set_wakeup_fd(-1)  # a child process handles its own signals


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
