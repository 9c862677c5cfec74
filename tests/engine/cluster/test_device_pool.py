"""One process per device with the leases of one store; on processors here, which several devices look like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from maskmill.engine.cluster.device_pool import DevicePool
from maskmill.engine.cluster.runner import run_on
from maskmill.engine.labeling.progress import Progress
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.store.label_store import LabelStore
from maskmill.errors import SessionError, UsageError

from ...models import color_bundle
from ..corpus import write_photos

pytestmark = pytest.mark.usefixtures("short_pauses")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    (tmp_path / "seen").mkdir()
    return color_bundle(tmp_path)


def test_every_image_is_labeled_once_on_one_of_the_devices(jobs: Any, bundle: Bundle, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 40)
    for device in "35":  # a process that starts quickly leaves no work to the other one unless it waits
        (tmp_path / "seen" / "expected" / device).mkdir(parents=True)
    job = jobs.color_job(bundle, tmp_path / "photos", tmp_path / "store", seen=tmp_path / "seen")
    looks: list[Progress] = []
    progress = run_on(DevicePool(job, (3, 5), threads=1), job, observer=looks.append)
    assert (progress.images, progress.planned, progress.interrupted) == (40, 40, False)
    assert progress.kept.sum() == progress.pixels == 40 * 12 * 16
    assert {path.name for path in (tmp_path / "seen").iterdir()} == {"3", "5", "expected"}
    assert len(LabelStore.open(tmp_path / "store")) == 40
    assert looks[-1].images == 40
    assert {path.name for path in (tmp_path / "store" / "leases").rglob("*") if path.is_file()} == {"driver.json"}


def test_an_error_on_every_device_is_raised_and_named(jobs: Any, bundle: Bundle, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 2)
    job = jobs.color_job(bundle, tmp_path / "photos", tmp_path / "store", seen=tmp_path / "seen")
    with pytest.raises(SessionError, match="device 7: no such device"):
        run_on(DevicePool(job, (7,)), job)


def test_a_device_with_an_error_leaves_the_work_to_the_others(jobs: Any, bundle: Bundle, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 12)
    job = jobs.color_job(bundle, tmp_path / "photos", tmp_path / "store", seen=tmp_path / "seen")
    assert run_on(DevicePool(job, (7, 1)), job).images == 12


@pytest.mark.slow
def test_an_image_that_ends_every_worker_becomes_a_reject(jobs: Any, bundle: Bundle, tmp_path: Path) -> None:
    paths = write_photos(tmp_path / "photos", 30)
    (tmp_path / "photos" / "deadly.png").write_bytes(paths[0].read_bytes() + b"another file")
    job = jobs.color_job(bundle, tmp_path / "photos", tmp_path / "store")
    progress = run_on(DevicePool(job, (1,), threads=1), job)
    assert (progress.images, progress.rejects) == (30, {"crash": 1})
    (reject,) = LabelStore.open(tmp_path / "store").rejects()
    assert "3 workers died while they labeled" in (reject.message or "")


@pytest.mark.parametrize("devices", [(), (0, 0), (-1,)])
def test_devices_are_different_numbers(jobs: Any, bundle: Bundle, tmp_path: Path, devices: tuple[int, ...]) -> None:
    write_photos(tmp_path / "photos", 1)
    job = jobs.color_job(bundle, tmp_path / "photos", tmp_path / "store")
    with pytest.raises(UsageError, match="distinct device numbers"):
        DevicePool(job, devices)
