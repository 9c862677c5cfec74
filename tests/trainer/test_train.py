"""The loop: what it computes, and that it goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from maskmill.errors import TrainingError, UsageError  # noqa: E402
from maskmill.trainer.data.corpus import Corpus, open_corpus  # noqa: E402
from maskmill.trainer.log import read_log  # noqa: E402
from maskmill.trainer.recipes import RECIPES, Recipe, with_settings  # noqa: E402
from maskmill.trainer.run import Run, read_checkpoint  # noqa: E402
from maskmill.trainer.students.models import load_run  # noqa: E402
from maskmill.trainer.train import TrainingProgress, train  # noqa: E402

from .builders import make_store, write_labeled  # noqa: E402
from .plain_network import plain  # noqa: E402

GOLDEN = Path(__file__).parent / "golden.json"
SETTINGS = {
    "supervised": [],
    "weighted": ["labeled=2", "optimizer=adamw", "schedule=cosine", "warmup=2", "clip=0.5"],
    "conformalsam": ["method.initial=0.25", "ema=0.5"],
    "csl": ["labeled=2", "method.cell=8", "method.cover_probability=1", "method.cutmix=1"],
    "calibrated": ["labeled=2", "method.recalibrate=3", "method.calibration_share=0.5", "method.alpha=0.6"],
    "unimatch": [
        "labeled=2",
        "method.threshold=0.4",
        "method.partners=second",
        "labeled_loss=ohem",
        "ohem_pixels=500",
    ],  # fmt: skip
    "unimatch-v2": ["labeled=2", "method.threshold=0.4", "method.cutmix=1", "head_lr=1"],
    "allspark": ["labeled=2", "model=allspark:tiny", "method.memory_start=0.5"],
}


def recipe_of(name: str, *settings: str) -> Recipe:
    common = ["model=tiny", "model.width=4", "crop=32", "batch=4", "steps=8", "lr=0.01", "log_every=1"]
    # settings of a name override those before it
    return with_settings(RECIPES[name](), [*common, *SETTINGS[name], *settings])


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    photos = write_labeled(tmp_path / "photos", range(8))
    make_store(tmp_path / "store", photos, range(2, 6), weight=128)
    return open_corpus(
        stores=[tmp_path / "store"], labeled=photos, ids=["0", "1"], validation=photos, validation_ids=["6", "7"]
    )


def run(folder: Path, recipe: Recipe, corpus: Corpus, **options: Any) -> TrainingProgress:
    return train(folder, recipe, corpus, device="cpu", workers=0, **options)


def logged(folder: Path, *names: str) -> list[list[str]]:
    """Columns of the log that do not depend on the clock."""
    return [[row.get(name, "") for name in ("step", "lr", "loss", "miou", *names)] for row in read_log(folder)]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_losses_are_those_on_record(name: str, tmp_path: Path, corpus: Corpus) -> None:
    # after a change that is meant to change them: MASKMILL_WRITE_GOLDEN=1 writes the record anew
    run(tmp_path / "run", recipe_of(name), corpus)
    losses = [float(row["loss"]) for row in read_log(tmp_path / "run")]
    record = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("MASKMILL_WRITE_GOLDEN") == "1":
        GOLDEN.write_text(json.dumps({**record, name: losses}, indent=1) + "\n")
        return
    np.testing.assert_allclose(losses, record[name], rtol=2e-4)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(name: str, tmp_path: Path, corpus: Corpus) -> None:
    recipe = recipe_of(name, "save_every=3", "validate_every=4", "accumulate=2")
    run(tmp_path / "whole", recipe, corpus)

    def stop(progress: TrainingProgress) -> None:
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    stopped = run(tmp_path / "parts", recipe, corpus, observer=stop)
    assert stopped.interrupted
    assert read_checkpoint(tmp_path / "parts" / "last.pt")["step"] == stopped.step == 5
    finished = run(tmp_path / "parts", recipe, corpus)
    assert not finished.interrupted
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    first, second = (read_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "parts"))
    for key in ("model", "ema"):
        for name, value in (first[key] or {}).items():
            assert torch.equal(value, second[key][name]), name


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path, corpus: Corpus) -> None:
    recipe = recipe_of("csl", "save_every=3", "validate_every=100")
    run(tmp_path / "whole", recipe, corpus)

    def die(progress: TrainingProgress) -> None:
        if progress.step == 5:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "parts", recipe, corpus, observer=die)
    assert [row["step"] for row in read_log(tmp_path / "parts")] == ["1", "2", "3", "4", "5"]
    run(tmp_path / "parts", recipe, corpus)
    assert logged(tmp_path / "parts", "strong", "masked", "reliable") == logged(
        tmp_path / "whole", "strong", "masked", "reliable"
    )


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, corpus: Corpus) -> None:
    recipe = recipe_of("supervised")
    first = run(tmp_path / "run", recipe, corpus)
    before = (tmp_path / "run" / "last.pt").read_bytes()
    again = run(tmp_path / "run", recipe, corpus)
    assert (again.step, again.best) == (first.step, first.best)
    assert (tmp_path / "run" / "last.pt").read_bytes() == before


def test_training_learns_the_classes(tmp_path: Path, corpus: Corpus) -> None:
    recipe = recipe_of("weighted", "steps=40", "lr=0.03", "log_every=10", "validate_every=10")
    progress = run(tmp_path / "run", recipe, corpus)
    losses = [float(row["loss"]) for row in read_log(tmp_path / "run")]
    assert losses[-1] < 0.6 * losses[0]
    assert progress.best is not None
    assert progress.best > 0.6
    assert progress.only_class is None


def test_the_best_student_is_the_one_that_is_loaded(tmp_path: Path, corpus: Corpus) -> None:
    progress = run(tmp_path / "run", recipe_of("weighted", "validate_every=2"), corpus)
    mious = {int(row["step"]): float(row["miou"]) for row in read_log(tmp_path / "run") if row["miou"]}
    best = read_checkpoint(tmp_path / "run" / "best.pt")
    assert mious[best["step"]] == max(mious.values()) == progress.best
    student = load_run(tmp_path / "run")
    for name, value in student.module.state_dict().items():
        assert torch.equal(value, best["model"][name])


def test_the_moving_average_is_the_student_where_there_is_one(tmp_path: Path, corpus: Corpus) -> None:
    run(tmp_path / "run", recipe_of("supervised", "ema=0.9", "validate_every=100"), corpus)
    state = read_checkpoint(tmp_path / "run" / "best.pt")
    student = load_run(tmp_path / "run").module.state_dict()
    assert any(not torch.equal(state["model"][name], state["ema"][name]) for name in student)
    assert all(torch.equal(student[name], state["ema"][name]) for name in student)


def test_parts_of_a_batch_add_up_to_the_batch(tmp_path: Path, corpus: Corpus) -> None:
    # crops differ in how much of them is padding: a mean of the parts' means would not be the mean
    common = [f"model={plain.__module__}:plain", "crop=64", "batch=4", "steps=6", "lr=0.1", "log_every=1"]
    for folder, accumulate in (("whole", 1), ("parts", 4)):
        recipe = with_settings(RECIPES["supervised"](), [*common, f"accumulate={accumulate}"], allow_code=True)
        run(tmp_path / folder, recipe, corpus)
    whole, parts = ([float(row["loss"]) for row in read_log(tmp_path / name)] for name in ("whole", "parts"))
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run_with_the_images_of_its_step(tmp_path: Path, corpus: Corpus) -> None:
    recipe = with_settings(recipe_of("supervised"), [f"model={plain.__module__}:never_finite"], allow_code=True)
    recipe = Recipe(**{**vars(recipe), "model_options": {}})
    with pytest.raises(TrainingError, match=r"loss of step 0 is not finite \(loss nan\).*Its images: .*\.png, .*\.png"):
        run(tmp_path / "run", recipe, corpus)


def test_bf16_trains_with_losses_in_float32(tmp_path: Path, corpus: Corpus) -> None:
    for precision in ("fp32", "bf16"):
        run(tmp_path / precision, recipe_of("csl", f"precision={precision}", "validate_every=100"), corpus)
    full, half = ([float(row["loss"]) for row in read_log(tmp_path / name)] for name in ("fp32", "bf16"))
    assert full != half
    np.testing.assert_allclose(half, full, rtol=0.1)


def test_fp16_scales_its_gradients(tmp_path: Path, corpus: Corpus) -> None:
    run(tmp_path / "run", recipe_of("supervised", "precision=fp16", "validate_every=100"), corpus)
    assert read_checkpoint(tmp_path / "run" / "last.pt")["scaler"]["scale"] > 1


@pytest.mark.slow
def test_a_compiled_student_gives_the_same_losses(tmp_path: Path, corpus: Corpus) -> None:
    for compiled in ("false", "true"):
        run(tmp_path / compiled, recipe_of("supervised", f"compile={compiled}", "validate_every=100"), corpus)
    plain, compiled = ([float(row["loss"]) for row in read_log(tmp_path / name)] for name in ("false", "true"))
    np.testing.assert_allclose(compiled, plain, rtol=1e-3)


def test_the_record_says_what_was_trained_on(tmp_path: Path, corpus: Corpus) -> None:
    recipe = recipe_of("csl")
    run(tmp_path / "run", recipe, corpus)
    found = Run.load(tmp_path / "run")
    assert found.recipe == recipe
    assert found.data["labeled"]["images"] == 2
    assert found.data["images"] == {"stored": 4}
    assert found.classes == ("red", "green", "blue")
    assert (found.input.height, found.input.width) == (32, 32)


def test_a_crop_that_does_not_fit_the_student_is_refused_before_anything_is_written(
    tmp_path: Path, corpus: Corpus
) -> None:
    with pytest.raises(UsageError, match="multiple of 4"):
        run(tmp_path / "run", recipe_of("supervised", "crop=30"), corpus)
    assert not (tmp_path / "run").exists()


def test_a_warm_start_begins_with_the_student_of_another_run(tmp_path: Path, corpus: Corpus) -> None:
    run(tmp_path / "first", recipe_of("supervised"), corpus)
    run(tmp_path / "warm", recipe_of("csl", "steps=1", "lr=1e-12"), corpus, init=tmp_path / "first")
    first, warm = (load_run(tmp_path / name).module.state_dict() for name in ("first", "warm"))
    for name, value in first.items():
        if "running" not in name and value.is_floating_point():
            torch.testing.assert_close(warm[name], value, rtol=1e-6, atol=1e-6)
    assert Run.load(tmp_path / "warm").data["init"]["path"] == str(tmp_path / "first")
    with pytest.raises(UsageError, match="another run"):
        run(tmp_path / "warm", recipe_of("csl", "steps=1", "lr=1e-12"), corpus)


def test_a_warm_start_with_another_network_is_refused(tmp_path: Path, corpus: Corpus) -> None:
    run(tmp_path / "first", recipe_of("supervised"), corpus)
    with pytest.raises(UsageError, match="use the same model"):
        run(tmp_path / "warm", recipe_of("csl", "model.width=8"), corpus, init=tmp_path / "first")
    assert not (tmp_path / "warm").exists()


def test_validation_logs_confidence_beside_accuracy_and_the_selected_labels(tmp_path: Path, corpus: Corpus) -> None:
    run(tmp_path / "run", recipe_of("csl", "validate_every=4"), corpus)
    rows = [row for row in read_log(tmp_path / "run") if row["miou"]]
    assert [row["step"] for row in rows] == ["4", "8"]
    for row in rows:
        for name in ("accuracy", "confidence", "ece", "pseudo_sampling", "pseudo_accuracy", "pseudo_recall"):
            assert 0 <= float(row[name]) <= 1, name
        assert float(row["temperature"]) > 0


def test_epochs_become_steps_when_the_images_are_known(tmp_path: Path, corpus: Corpus) -> None:
    # 2 labeled and 4 stored images, 4 per step
    progress = run(tmp_path / "run", recipe_of("weighted", "labeled=none", "epochs=2"), corpus)
    assert progress.steps == 3
    assert Run.load(tmp_path / "run").recipe.steps == 3
    assert run(tmp_path / "run", recipe_of("weighted", "labeled=none", "epochs=2"), corpus).step == 3


def test_the_first_updates_do_not_weigh_on_an_average_with_warm_up(tmp_path: Path, corpus: Corpus) -> None:
    run(tmp_path / "run", recipe_of("supervised", "ema=0.999", "ema_warmup=true", "steps=2", "save_every=1"), corpus)
    state = read_checkpoint(tmp_path / "run" / "last.pt")
    run(tmp_path / "one", recipe_of("supervised", "ema=0.999", "ema_warmup=true", "steps=2", "lr=1e-9"), corpus)
    # update 0 copies, update 1 averages with 1/2
    assert state["num_averaged"] == 2
    assert any(not torch.equal(state["model"][name], state["ema"][name]) for name in state["model"])


def test_a_student_that_predicts_one_class_everywhere_is_reported(tmp_path: Path, corpus: Corpus) -> None:
    recipe = recipe_of("supervised", "steps=1", "lr=1e-9")
    assert run(tmp_path / "run", recipe, corpus).only_class in corpus.taxonomy.targets
