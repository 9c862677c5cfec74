from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from maskmill import kernels  # noqa: E402
from maskmill.errors import TrainingError, UsageError  # noqa: E402
from maskmill.trainer.data.corpus import open_corpus  # noqa: E402
from maskmill.trainer.data.datasets import TrainingImages  # noqa: E402
from maskmill.trainer.data.loading import Plan, open_loader  # noqa: E402
from maskmill.trainer.phases import num_steps, phases  # noqa: E402
from maskmill.trainer.recipes import conformalsam, csl, supervised  # noqa: E402

from ..builders import make_store, write_labeled  # noqa: E402

SIZES = {"union": 10, "labeled": 3, "stored": 7, "unlabeled": 7}


def plan(recipe=None, **options) -> Plan:
    recipe = recipe or csl(steps=20, batch=8, labeled=4)
    return Plan(phases=phases(recipe), sizes=SIZES, seed=recipe.seed, **options)


def test_every_image_is_drawn_once_before_any_is_drawn_again() -> None:
    draws = [draw for batch in plan(supervised(steps=10, batch=4)) for draw in batch]
    assert [draw.position for draw in draws] == list(range(40))
    for epoch in range(4):
        assert sorted(draw.image for draw in draws[epoch * 10 : epoch * 10 + 10]) == list(range(10))
    assert [draw.image for draw in draws[:10]] != [draw.image for draw in draws[10:20]]


@pytest.mark.parametrize(("world", "accumulate"), [(1, 4), (2, 1), (2, 2), (4, 1)])
def test_processes_and_parts_share_out_the_same_global_batch(world: int, accumulate: int) -> None:
    whole = plan()
    for step in range(20):
        parts = [
            draw
            for rank in range(world)
            for part in range(accumulate)
            for draw in plan(world=world, accumulate=accumulate, rank=rank).draws(step, part)
        ]
        assert Counter(parts) == Counter(whole.draws(step))


def test_a_run_that_goes_on_draws_what_it_would_have_drawn() -> None:
    recipe = conformalsam(steps=20, batch=4)
    whole = list(plan(recipe, accumulate=2))
    for start in (1, 14, 15, 19):
        assert list(plan(recipe, accumulate=2, start=start)) == whole[2 * start :]


def test_a_phase_continues_the_order_of_the_previous_one() -> None:
    recipe = conformalsam(steps=8, batch=4, labeled=2)
    steps = num_steps(recipe)
    positions = [draw.position for batch in plan(recipe) for draw in batch if draw.stream == "labeled"]
    assert positions == list(range(2 * steps))


def test_another_seed_is_another_order() -> None:
    first, second = (plan(supervised(steps=5, batch=4, seed=seed)) for seed in (0, 1))
    assert [draw.image for batch in first for draw in batch] != [draw.image for batch in second for draw in batch]


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (csl(batch=8, labeled=3), {"world": 2}, "3 labeled images per step cannot be divided among 2 processes"),
        (supervised(batch=8), {"accumulate": 3}, "with 3 parts each; choose a multiple of 3"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused(recipe, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(recipe, **options)


def test_a_recipe_without_its_images_says_which_it_needs() -> None:
    with pytest.raises(UsageError, match="unlabeled images: give a STORE or --unlabeled"):
        Plan(phases=phases(csl()), sizes={"labeled": 3, "unlabeled": 0}, seed=0)


@pytest.fixture
def data(tmp_path: Path) -> TrainingImages:
    photos = write_labeled(tmp_path / "photos", range(6))
    make_store(tmp_path / "store", photos, range(2, 6))
    corpus = open_corpus(stores=[tmp_path / "store"], labeled=photos, ids=["0", "1"])
    return TrainingImages(corpus.streams(), crop=32, ignore=255, scale=(0.5, 2), flip=0.5)


def batches(data: TrainingImages, workers: int) -> list[dict]:
    recipe = csl(steps=3, batch=4, labeled=2)
    return list(open_loader(data, Plan(phases=phases(recipe), sizes=data.sizes(), seed=0), workers=workers))


def test_two_workers_after_a_kernel_call_give_the_batches_of_the_loop_itself(data: TrainingImages) -> None:
    # a kernel that has started threads here, and a store that is open here: neither survives fork
    kernels.class_stats(np.random.default_rng(0).normal(size=(8, 300, 300)).astype(np.float32), (600, 600))
    alone = batches(data, 0)
    together = batches(data, 2)
    assert len(alone) == len(together) == 3
    for first, second in zip(alone, together, strict=True):
        for role in ("labeled", "unlabeled"):
            assert first[role]["uri"] == second[role]["uri"]
            assert (first[role]["image"] == second[role]["image"]).all()
        assert (first["labeled"]["label"] == second["labeled"]["label"]).all()


def test_an_image_that_cannot_be_read_ends_the_batches_with_its_name(data: TrainingImages, tmp_path: Path) -> None:
    for seed in range(6):
        (tmp_path / "photos" / "images" / f"{seed}.png").write_bytes(b"no image")
    with pytest.raises(TrainingError, match=r"\.png cannot be trained on: no image format"):
        batches(data, 0)
