"""Provenance of the values in recipes: a paper, the code of its authors, a guess for a missing value, or ours.

::

    provenance(csl())["method.cover"]       # "code"
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from .recipes import RECIPES, Recipe, RecipeName

Source = Literal["paper", "code", "guess", "ours"]
"""``paper``: text or supplement; ``code``: public code of the authors or, for values that CSL's text leaves open, of
UniMatch, which CSL builds on, and of AllSpark for ConformalSAM; ``guess``: stated in neither; ``ours``: a choice of
maskmill."""


def provenance(recipe: Recipe) -> dict[str, Source]:
    """Return the source of each field of a recipe and its method (``method.NAME``); changed values are ours."""
    default = RECIPES[recipe.name]()
    table = _SOURCES.get(recipe.name, {})
    sources: dict[str, Source] = {}
    for prefix, value, original in (("", recipe, default), ("method.", recipe.method, default.method)):
        for field in dataclasses.fields(value):
            if field.name in ("name", "method"):
                continue
            key = prefix + field.name
            unchanged = getattr(value, field.name) == getattr(original, field.name)
            sources[key] = table.get(key, "ours") if unchanged else "ours"
    return sources


def _table(groups: Mapping[Source, str]) -> dict[str, Source]:
    return {name: source for source, names in groups.items() for name in names.split()}


_GEOMETRY = "scale scaling flip padding optimizer weight_decay schedule clip warmup ema head_lr"
_VIEWS = "method.selection method.labeled method.strong method.second method.features method.second_view method.cutmix"
_UNIMATCH = f"batch labeled lr {_GEOMETRY} colors labeled_loss {_VIEWS} method.threshold method.teacher method.start"
_CSL = _table(
    {
        "paper": "method.selection method.second_view method.masked_images method.metrics method.groups method.dropout "
        "method.feature_dropout method.labeled method.strong method.second",
        "code": f"batch labeled lr {_GEOMETRY} colors labeled_loss method.pcos method.features method.cutmix "
        "method.mask_form method.cover_probability method.cover method.cell method.masked_colors method.masked_cutmix "
        "method.teacher method.strong_statistics method.start method.ramp",
    }
)
_SOURCES: Mapping[RecipeName, Mapping[str, Source]] = {
    "conformalsam": _table(
        {
            "paper": "batch lr method.self_reliance method.initial",
            "code": f"{_GEOMETRY} colors labeled_loss",
            "guess": "method.decay",
        }
    ),
    "allspark": _table(
        {"code": f"batch labeled lr {_GEOMETRY} colors labeled_loss model model_options method.labeled "
         "method.unlabeled method.memory_start"}
    ),
    "fixmatch": _table({"code": f"{_UNIMATCH} method.strong_statistics"}),
    "unimatch": _table({"code": f"{_UNIMATCH} method.dropout method.feature_dropout method.strong_statistics"}),
    "unimatch-v2": _table(
        {"code": f"{_UNIMATCH} crop model model_options ema_warmup method.dropout method.feature_dropout "
         "method.strong_statistics"}
    ),
    "csl": _CSL,
    "csl-dinov2": {
        **_CSL,
        **_table({"paper": f"batch labeled lr crop {_GEOMETRY} model model_options ema_warmup",
                  "guess": "method.teacher method.feature_dropout method.strong method.second method.features "
                  "method.strong_statistics"}),
    },
    "csl-segformer": {**_CSL, **_table({"paper": "model model_options", "guess": "batch labeled lr head_lr"})},
    "s2c": _table(
        {
            "paper": "batch method.segments method.prompted",
            "code": "crop scale scaling flip colors head_lr weight_decay schedule model_options method.warmup "
            "method.temperature",
        }
    ),
}  # fmt: skip
