from __future__ import annotations

import json

import pytest

from maskmill.errors import UsageError
from maskmill.trainer.methods import ConformalSam, Consistency
from maskmill.trainer.phases import num_steps, phases, with_epochs
from maskmill.trainer.provenance import provenance
from maskmill.trainer.recipes import (
    RECIPES,
    conformalsam,
    csl,
    recipe_from_json,
    supervised,
    weighted,
    with_settings,
)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_the_way_through_its_record(name: str) -> None:
    recipe = with_settings(RECIPES[name](), ["model.width=8", "model.weights=some text", "scale=0.25,1.5"])
    assert recipe_from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_settings_are_read_as_the_types_of_their_fields_say() -> None:
    settings = ["crop=64", "lr=1e-2", "compile=true", "labeled=none", "method.selection=threshold", "model.width=8"]
    recipe = with_settings(csl(), settings)
    assert (recipe.crop, recipe.lr, recipe.compile, recipe.labeled) == (64, 0.01, True, None)
    assert recipe.method.selection == "threshold"
    assert recipe.model_options == {"width": 8}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("crop", "KEY=VALUE"),
        ("corp=3", r"no setting corp; did you mean crop\? This recipe has .*crop"),
        ("method.corp=3", r"no setting method.corp; .* recipe has method.selection"),
        ("crop=big", "crop must be an integer, got 'big'"),
        ("crop=0", "crop must be from 1"),
        ("compile=yes", "true or false"),
        ("scale=1", "numbers with commas"),
        ("scale=2,1", "lower one first"),
        ("precision=int8", "one of fp32, bf16, fp16"),
        ("method.cover=1.5", "from 0 to 1"),
        ("labeled=17", "from 1 to the batch of 16"),
        ("method=x", "cannot be set"),
        ("lr=nan", "lr must be above 0"),
    ],
)
def test_a_wrong_setting_is_named(setting: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        with_settings(csl(), [setting])


def test_the_loss_weights_of_csl_are_those_of_the_authors() -> None:
    method = csl().method
    # 1/2 [L_x + 1/4 L_s + 1/4 L_m + 1/2 L_fp]
    assert (method.labeled, method.strong, method.second, method.features) == (0.5, 0.125, 0.125, 0.25)


def test_stages_draw_what_their_losses_are_over() -> None:
    assert phases(supervised(batch=4, steps=10))[0].draws == {"union": 4}
    assert phases(weighted(batch=4, labeled=1, steps=10))[0].draws == {"labeled": 1, "stored": 3}
    assert phases(csl(batch=16))[0].draws == {"labeled": 8, "unlabeled": 8}


def test_conformalsam_adds_phase_two_after_the_steps_of_phase_one() -> None:
    first, second = phases(conformalsam(batch=4, steps=60, method=ConformalSam(self_reliance=0.25)))
    assert (first.objective, first.start, first.stop, first.draws) == ("labels", 0, 60, {"union": 4})
    assert (second.objective, second.start, second.stop) == ("self_reliance", 60, 80)
    assert second.draws == {"labeled": 2, "unlabeled": 2}


@pytest.mark.parametrize(("labeled", "share"), [(92, 0.398), (732, 0.383)])
def test_epochs_of_conformalsam_give_the_shares_of_the_paper(labeled: int, share: float) -> None:
    # VOC has 10,582 training images
    sizes = {"union": 10582, "labeled": labeled, "unlabeled": 10582 - labeled}
    recipe = with_epochs(conformalsam(epochs=60), sizes)
    assert recipe.steps == 60 * 10582 / 4
    assert num_steps(recipe) - recipe.steps == -(-20 * (10582 - labeled) // 2)
    assert recipe.method.self_reliance == pytest.approx(share, abs=0.002)
    assert abs(conformalsam().method.self_reliance - share) < 0.01


def test_an_epoch_is_a_pass_over_the_unlabeled_images() -> None:
    assert with_epochs(csl(epochs=80), {"unlabeled": 10490, "labeled": 92}).steps == 104_900
    assert with_epochs(supervised(epochs=3, batch=4), {"union": 10}).steps == 8
    assert with_epochs(csl(steps=7), {}).steps == 7
    with pytest.raises(UsageError, match="images are missing"):
        with_epochs(csl(epochs=1), {"unlabeled": 0})


@pytest.mark.parametrize("name", RECIPES)
def test_every_value_of_a_recipe_has_a_source(name: str) -> None:
    sources = provenance(RECIPES[name]())
    method = RECIPES[name]().method
    assert {key for key in sources if key.startswith("method.")} == {f"method.{field}" for field in vars(method)}
    assert set(sources.values()) <= {"paper", "code", "guess", "ours"}


def test_a_changed_value_is_ours_and_a_missing_one_a_guess() -> None:
    assert provenance(conformalsam())["method.decay"] == "guess"
    assert provenance(csl())["method.cover"] == "code"
    assert provenance(csl(method=Consistency(cover=0.5)))["method.cover"] == "ours"


def test_a_batch_of_labeled_images_alone_is_no_batch_for_consistency() -> None:
    with pytest.raises(UsageError, match="labeled must be below the batch of 8"):
        phases(csl(batch=8, labeled=8))
