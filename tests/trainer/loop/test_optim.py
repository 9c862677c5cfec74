from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from maskmill.trainer.loop.optim import learning_rate, make_optimizer, set_learning_rate  # noqa: E402
from maskmill.trainer.recipes import supervised  # noqa: E402
from maskmill.trainer.students.models import build_model  # noqa: E402


def test_poly_falls_with_the_power_of_nine_tenths() -> None:
    recipe = supervised(steps=100, lr=0.5)
    assert [learning_rate(recipe, step) for step in (0, 50, 99)] == pytest.approx(
        [0.5, 0.5 * 0.5**0.9, 0.5 * 0.01**0.9]
    )


def test_cosine_falls_to_zero() -> None:
    recipe = supervised(steps=100, lr=0.5, schedule="cosine")
    assert [learning_rate(recipe, step) for step in (0, 25, 50)] == pytest.approx(
        [0.5, 0.25 * (1 + math.cos(math.pi / 4)), 0.25]
    )


def test_the_rate_rises_evenly_during_warm_up() -> None:
    recipe = supervised(steps=100, lr=0.5, warmup=4)
    assert [learning_rate(recipe, step) for step in range(4)] == pytest.approx([0.125, 0.25, 0.375, 0.5])


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_heads_learn_faster_by_their_multiple(name: str) -> None:
    student = build_model("tiny", 3)
    optimizer = make_optimizer(student, supervised(optimizer=name, lr=0.1, head_lr=10))
    set_learning_rate(optimizer, 0.01)
    backbone, head = optimizer.param_groups
    assert (backbone["lr"], head["lr"]) == pytest.approx((0.01, 0.1))
    assert {id(parameter) for group in (backbone, head) for parameter in group["params"]} == {
        id(parameter) for parameter in student.parameters()
    }
