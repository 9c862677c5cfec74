"""Phases of a training run: steps with the same losses, and the images that each step draws."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from .methods import AllSpark, ConformalSam, Consistency, S2c, check
from .recipes import Recipe

ObjectiveName = Literal["labels", "self_reliance", "allspark", "consistency", "segments"]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A range of steps with the same losses."""

    objective: ObjectiveName
    """Function of :mod:`maskmill.trainer.objectives.steps` that computes the losses."""
    start: int
    """First step."""
    stop: int
    """Step after the last one."""
    draws: Mapping[str, int]
    """Images per step, over all processes, from each stream of :data:`maskmill.trainer.data.datasets.STREAMS`."""


def phases(recipe: Recipe) -> tuple[Phase, ...]:
    """Return the phases of a recipe, in order and without gaps from step 0 to the last."""
    method, half = recipe.method, recipe.labeled or max(1, recipe.batch // 2)
    halves = {"labeled": half, "unlabeled": recipe.batch - half}
    if isinstance(method, ConformalSam | AllSpark | Consistency):
        check(half < recipe.batch, "labeled", f"below the batch of {recipe.batch}, the rest is unlabeled", half)
    if recipe.labeled is None:
        with_labels = {"union": recipe.batch}
    else:
        with_labels = {"labeled": recipe.labeled, "stored": recipe.batch - recipe.labeled}
    if isinstance(method, Consistency):
        partner_draws = {"partners": halves["unlabeled"]} if method.partners == "second" else {}
        return (Phase(objective="consistency", start=0, stop=recipe.steps, draws=halves | partner_draws),)
    if isinstance(method, AllSpark):
        check(2 * half == recipe.batch, "labeled", f"half of the batch of {recipe.batch}", half)
        return (Phase(objective="allspark", start=0, stop=recipe.steps, draws=halves),)
    if isinstance(method, S2c):
        return (Phase(objective="segments", start=0, stop=recipe.steps, draws=with_labels),)
    if isinstance(method, ConformalSam):
        stop = round(recipe.steps / (1 - method.self_reliance))
        return (
            Phase(objective="labels", start=0, stop=recipe.steps, draws=with_labels),
            Phase(objective="self_reliance", start=recipe.steps, stop=stop, draws=halves),
        )
    return (Phase(objective="labels", start=0, stop=recipe.steps, draws=with_labels),)


def num_steps(recipe: Recipe) -> int:
    """Return the number of steps over all phases."""
    return phases(recipe)[-1].stop


def with_epochs(recipe: Recipe, sizes: Mapping[str, int]) -> Recipe:
    """Return the recipe with ``steps`` computed from its ``epochs`` and the number of images of each stream.

    An epoch is a pass over the unlabeled images if the recipe draws them, as in the semi-supervised papers, otherwise
    over the images with labels. The epochs of ConformalSAM are those of phase I; phase II lasts a third as many, as in
    the paper (20 after 60 on VOC, 10 after 30 on ADE20K).
    """
    if recipe.epochs is None:
        return recipe
    first, *later_phases = phases(recipe)
    stream = next(name for name in ("unlabeled", "union", "stored", "labeled") if first.draws.get(name))
    steps = math.ceil(recipe.epochs * sizes.get(stream, 0) / first.draws[stream])
    check(steps >= 1, "epochs", "at least one step: the training images are missing", recipe.epochs)
    method = recipe.method
    if later_phases and isinstance(method, ConformalSam):
        second = math.ceil(recipe.epochs / 3 * sizes.get("unlabeled", 0) / later_phases[0].draws["unlabeled"])
        method = replace(method, self_reliance=max(second, 1) / (steps + max(second, 1)))
    return replace(recipe, steps=steps, method=method)
