"""Lease events for the log of a run, each reported once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..labeling.run_log import RunLog
from .leases import Finished


class LeaseLog:
    """Logs the lease events since the previous call."""

    def __init__(self, run: RunLog) -> None:
        self.run = run
        """Log of the run."""
        self._claimed: set[str] = set()
        self._finished: set[str] = set()
        self._num_warnings = 0

    def note(self, claims: Mapping[str, str], finished: Sequence[Finished], warnings: Sequence[str]) -> None:
        """Compare the claims (lease to worker), finished leases and warnings with those of the previous call."""
        for lease in claims.keys() - self._claimed:
            self.run.write("lease claimed", lease=lease, worker=claims[lease])
        for outcome in finished:
            if outcome.lease not in self._finished:
                self.run.write("lease finished", lease=outcome.lease, worker=outcome.worker, inputs=outcome.num_rows)
        for warning in warnings[self._num_warnings :]:
            self.run.write("warning", message=warning)
        self._claimed, self._finished = set(claims), {done.lease for done in finished}
        self._num_warnings = len(warnings)
