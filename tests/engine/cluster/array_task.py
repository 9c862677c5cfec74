"""One process of an array, which the tests start several times and kill: photos, store, bundle, pause, rows."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "opening"))

from lease_jobs import color_job  # noqa: E402  # pyright: ignore[reportMissingImports]

from maskmill.engine.cluster import committer, driver, runner, worker  # noqa: E402
from maskmill.engine.cluster.runner import run_array  # noqa: E402
from maskmill.engine.labeling.run_log import RunLog  # noqa: E402
from maskmill.engine.model.bundle import Bundle  # noqa: E402
from maskmill.engine.store.label_store import LabelStore  # noqa: E402
from maskmill.engine.store.waiting import presence  # noqa: E402


def hold_commits(seconds: float) -> None:
    """Wait in each commit, after the labels and before their inputs, and note it in the folder of the store."""
    commit = LabelStore.commit_tables

    def slow(self: LabelStore, labels, inputs) -> None:
        commit(self, labels, inputs.slice(0, 0))
        (self.path.parent / "committing").touch()
        time.sleep(seconds)
        commit(self, labels.slice(0, 0), inputs)

    LabelStore.commit_tables = slow


if __name__ == "__main__":
    photos, store, bundle, pause, rows = sys.argv[1:6]
    committer.COMMIT_ROWS = int(rows)
    driver.FIRST_LEASE = driver.SMALLEST_LEASE = driver.LARGEST_LEASE = 16
    presence.BEAT_SECONDS = driver.BEAT_SECONDS = worker.BEAT_SECONDS = 0.5
    worker.POLL_SECONDS = runner.TURN_SECONDS = 0.05
    if os.environ.get("HOLD_COMMITS"):
        hold_commits(float(os.environ["HOLD_COMMITS"]))
    seen = Path(store).parent / "seen"
    options = {"seen": seen} if seen.exists() else {}
    job = color_job(Bundle.load(bundle), Path(photos), Path(store), pause=float(pause), **options)
    print(run_array(job, threads=1, log=RunLog(f"{store}-{os.getpid()}.log")).images)
