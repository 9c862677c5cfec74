"""Fuzz every target, or some: ``python -m tests.fuzz [--minutes M | --inputs N] [--keep-going] [NAME ...]``."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.fuzz.more_targets import ALL as TARGETS
from tests.fuzz.runner import Report, only_files_of, run_input


def main() -> int:
    """Run the targets one after another; returns 1 if an input failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="targets; all of them without names")
    parser.add_argument("--minutes", type=float, help="time for all targets together")
    parser.add_argument("--inputs", type=int, default=5000, help="inputs per target without --minutes")
    parser.add_argument("--first", type=int, default=0, help="first seed; new inputs at every run with --minutes")
    parser.add_argument("--keep-going", action="store_true", help="go on after an input that fails")
    options = parser.parse_args()
    names = options.names or list(TARGETS)
    failures = 0
    first = options.first or (int(time.time()) << 8 if options.minutes else 0)
    for name in names:
        report = Report()
        with tempfile.TemporaryDirectory() as place:
            target = TARGETS[name](Path(place))
            target.read(target.original)
            deadline = time.monotonic() + 60 * (options.minutes or 0) / len(names)
            seed = first
            while time.monotonic() < deadline if options.minutes else seed < first + options.inputs:
                try:
                    with only_files_of(Path(place)):
                        run_input(target, seed, report)
                except AssertionError as error:
                    failures += 1
                    print(f"FAILED {name}: {error}", flush=True)
                    if not options.keep_going:
                        traceback.print_exc()
                        return 1
                seed += 1
        print(report.line(name), flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
