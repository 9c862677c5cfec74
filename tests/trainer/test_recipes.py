from __future__ import annotations

import json

import pytest

from maskmill.errors import UsageError
from maskmill.trainer.recipes import (
    RECIPES,
    ConformalSam,
    conformalsam,
    csl,
    phases,
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
        ("corp=3", "no setting corp; this recipe knows .*crop"),
        ("method.corp=3", "no setting method.corp; this recipe knows method.selection"),
        ("crop=big", "crop must be an integer, got 'big'"),
        ("crop=0", "crop must be at least 1"),
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
    assert (method.labeled, method.strong, method.masked, method.features) == (0.5, 0.125, 0.125, 0.25)


def test_stages_draw_what_their_losses_are_over() -> None:
    assert phases(supervised(batch=4, steps=10))[0].draws == {"union": 4}
    assert phases(weighted(batch=4, labeled=1, steps=10))[0].draws == {"labeled": 1, "stored": 3}
    assert phases(csl(batch=16))[0].draws == {"labeled": 8, "unlabeled": 8}


def test_conformalsam_relies_on_itself_in_its_last_steps() -> None:
    first, second = phases(conformalsam(batch=4, steps=80, method=ConformalSam(self_reliance=0.25)))
    assert (first.objective, first.start, first.stop, first.draws) == ("labels", 0, 60, {"union": 4})
    assert (second.objective, second.start, second.stop) == ("self_reliance", 60, 80)
    assert second.draws == {"labeled": 2, "unlabeled": 2}


def test_a_batch_of_labeled_images_alone_is_no_batch_for_consistency() -> None:
    with pytest.raises(UsageError, match="labeled must be below the batch of 8"):
        phases(csl(batch=8, labeled=8))
