"""Calibration on Ray: equal to that of one process, bit for bit."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskmill.engine.calibration.calibrate import calibrate
from maskmill.engine.cluster.calibration.collect import calibrate_on_ray, work_folder
from maskmill.engine.cluster.calibration.worker import ObservationJob
from maskmill.engine.cluster.ray_pool import RaySettings
from maskmill.engine.inputs.labels import LabelFolder
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.model.bundle import Bundle
from maskmill.errors import CalibrationError

from ....models import color_bundle
from .photos import write_labeled_photos

pytest.importorskip("ray")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return color_bundle(tmp_path, size=(16, 24), gain=6.0)


def calibrated(jobs: Any, bundle: Bundle, photos: Path, output: Path) -> tuple[Any, Any]:
    """Function that fits, and the calibration that two workers on Ray make."""
    predictor, classes = jobs.opening_of(bundle)()
    source, labels = open_source(photos / "images"), LabelFolder(photos / "labels")
    fit = partial(calibrate, predictor, source, labels, classes, alpha="0.1", min_images=5)
    job = ObservationJob(
        opening=jobs.opening_of(bundle), pairing=partial(jobs.pair_labels, photos), store=work_folder(output)
    )
    settings = RaySettings(min_workers=2, max_workers=2, cpus_per_worker=1)
    return fit, lambda: calibrate_on_ray(fit, output, job, settings)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("cluster")
class TestRay:
    """Tests that share one cluster."""

    def test_two_workers_give_the_calibration_of_one_process(self, jobs: Any, bundle: Bundle, tmp_path: Path) -> None:
        photos = write_labeled_photos(tmp_path, 100)
        fit, share = calibrated(jobs, bundle, photos, tmp_path / "shared.json")
        share()
        fit().save(tmp_path / "local.json")
        assert (tmp_path / "shared.json").read_bytes() == (tmp_path / "local.json").read_bytes()
        assert not Path(work_folder(tmp_path / "shared.json")).exists()

    def test_an_image_that_cannot_be_used_is_named(self, jobs: Any, bundle: Bundle, tmp_path: Path) -> None:
        photos = write_labeled_photos(tmp_path, 8)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(photos / "labels" / "2.png")
        _, share = calibrated(jobs, bundle, photos, tmp_path / "shared.json")
        with pytest.raises(CalibrationError, match=r"2\.png is 4x4 px and its image"):
            share()
