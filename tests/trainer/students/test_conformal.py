"""Thresholds of a student, against order statistics of its scores written out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from maskmill.trainer.data.parts import LabeledImages  # noqa: E402
from maskmill.trainer.recipes import calibrated  # noqa: E402
from maskmill.trainer.run import Run  # noqa: E402
from maskmill.trainer.students.conformal import fit_student_thresholds  # noqa: E402
from maskmill.trainer.students.models import build_model  # noqa: E402
from maskmill.trainer.students.prediction import predict_scores, run_taxonomy  # noqa: E402

from ...models import COLORS  # noqa: E402
from ..builders import write_labeled  # noqa: E402

CLASSES = (*COLORS, "never seen")


def student(background: int | None = 0) -> tuple[torch.nn.Module, Run]:
    torch.manual_seed(0)
    module = build_model("tiny", len(CLASSES), width=4).eval()
    return module, Run(
        recipe=calibrated(model="tiny"), model_options=module.options, classes=CLASSES, background=background,
        labels={index: index for index in range(len(CLASSES))}, input=module.input_spec(32, 32), data={}, versions={},
    )  # fmt: skip


def test_thresholds_are_order_statistics_of_each_class(tmp_path: Path) -> None:
    module, run = student()
    images = LabeledImages.open(write_labeled(tmp_path, range(4)), run_taxonomy(run))
    samples = [(sample.image, sample.label) for sample in map(images.read, range(4))]
    thresholds = fit_student_thresholds(module, samples, run, alpha=0.3)
    scores: dict[int, list[float]] = {}
    for image, label in samples:
        logits = torch.from_numpy(np.array(predict_scores(module, image, run).scores, np.float32))[None]
        shares = torch.nn.functional.interpolate(logits, size=label.shape, mode="bilinear")[0].softmax(dim=0)
        for target in np.unique(label[label < len(CLASSES)]):
            values = 1 - shares[int(target)].numpy()[label == target]
            scores.setdefault(int(target), []).extend(values.tolist())
    for target in range(len(CLASSES)):
        if target not in scores:
            assert thresholds[target] == -np.inf
            continue
        rank = int(np.ceil((len(scores[target]) + 1) * 0.7))
        assert thresholds[target] == pytest.approx(sorted(scores[target])[rank - 1], abs=1e-5)
