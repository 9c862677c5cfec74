"""Run the command line: ``maskmill``, or ``python -m maskmill``."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command line; an interrupt while it is loaded ends the process without a traceback."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .cli import main as run
    from .engine.cli.interrupts import watch_interrupts

    signal.signal(signal.SIGINT, handler)
    watch_interrupts()
    run()


if __name__ == "__main__":
    main()
