"""Write the report of a store: figures, pictures and scripts in one HTML file that loads nothing.

::

    calibration = Calibration.load("calibration.json")
    write_report(LabelStore.open("labels"), Path("report.html"), calibration=calibration)
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ....checks import check_count
from ....errors import UsageError
from ...calibration.calibration import Calibration
from ...inputs.labels import LabelSource
from ...inputs.ordered_map import ordered_map
from ...labeling.certificate import check_same
from ...labeling.drift import StoredWatch, watch_store
from ...labeling.history import read_history
from ...model.publishing import write_atomically
from ...model.taxonomy import Taxonomy
from ...predictors.semantic import SemanticPredictor
from ...store.label_store import LabelStore
from ..contents import describe_store
from ..evaluate import Quality, evaluate_store
from . import sections
from .gallery import PICTURES, Group, Reader, choose_groups, picture
from .model_view import ModelView, view_kept_scores, view_model
from .overview import Overview, read_overview
from .palette import class_palette
from .wording import headline, notices

MODEL_IMAGES = 64
"""Number of images in the random sample on which the model runs again."""


def write_report(
    store: LabelStore,
    output: Path,
    *,
    labels: LabelSource | None = None,
    taxonomy: Taxonomy | None = None,
    calibration: Calibration | None = None,
    predictor: SemanticPredictor | None = None,
    num_pictures: int = PICTURES,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the report of a store to ``output``, and return it.

    Parameters
    ----------
    store, output
        The label store, and the file to write.
    labels, taxonomy
        True labels of some of the images, and the class mapping that reads them (the store's own if None).
    calibration
        The calibration that the labels were made with.
    predictor
        The model that made them, run again on a sample: labels before selection, set sizes, PCOS' plane.
    num_pictures, workers
        Images of each kind in the gallery; images in progress at the same time.
    progress
        Called with the number of pictures finished, and of all.

    Raises :class:`UsageError` if ``calibration`` is another one or ``labels`` match no image, :class:`StoreError`.
    """
    check_count("pictures", num_pictures, least=1)
    classes = Taxonomy.from_json(store.classes)
    if calibration is not None:
        check_same(store.run, calibration)
    overview = read_overview(store)
    if not overview.num_images:
        raise UsageError(f"{store.path} holds no labeled image, so there is nothing to report; run `maskmill label`")
    quality = None if labels is None else evaluate_store(store, labels, taxonomy or classes, workers=workers)
    accuracy = {} if quality is None else image_accuracy(store, overview, quality)
    groups = choose_groups(
        overview,
        classes,
        size=num_pictures,
        accuracy=accuracy,
    )
    reader = Reader(store, overview)
    numbers = list(dict.fromkeys(number for group in groups for number in group.images))
    sample = [overview.ids[number] for number in choose_groups(overview, classes, size=MODEL_IMAGES)[0].images]
    if predictor is None:
        view = view_kept_scores(reader, sample, classes, workers=workers)
    else:
        pictured = [overview.ids[number] for number in numbers]
        view = view_model(predictor, reader, sample, pictured, classes, calibration, workers=workers)

    def encode(number: int) -> dict[str, Any]:
        id = overview.ids[number]
        raw = None if view is None else view.maps.get(id)
        return picture(reader, id, classes, raw=raw, accuracy=accuracy.get(id), review=overview.reviews.get(id))

    pictures = []
    for entry in ordered_map(encode, numbers, workers):
        pictures.append(entry)
        if progress is not None:
            progress(len(pictures), len(numbers))
    context = page_context(store, overview, calibration=calibration, quality=quality, view=view)
    data = page_data(classes, pictures=pictures, groups=groups, numbers=numbers)
    html = render("report.html", ("viewer.js", "gallery.js"), data, num_pictures=len(pictures), **context)
    try:
        write_atomically(output, html.encode())
    except OSError as error:
        raise UsageError(f"cannot write the report {output}: {error}") from error
    return output


def page_context(
    store: LabelStore,
    overview: Overview,
    *,
    calibration: Calibration | None = None,
    quality: Quality | None = None,
    view: ModelView | None = None,
) -> dict[str, Any]:
    """Compute the sections of the page, by the names that the template uses."""
    classes = Taxonomy.from_json(store.classes)
    coverage = None if calibration is None else sections.coverage_section(calibration)
    truth = sections.truth_section(quality)
    drift = sections.drift_section(overview, StoredWatch.of(store.run), watch_store(store))
    speed = sections.speed_section([run for folder in store.folders for run in read_history(folder)])
    lines = [line.partition(": ")[::2] for line in describe_store(store)]
    hidden = ("classes, share of the labeled pixels", *(() if coverage is None else ("promise",)), "drift")
    return {
        "title": ", ".join(folder.absolute().name for folder in store.folders),
        "headline": headline(overview, calibration, coverage, truth, store.run),
        "notices": notices(overview, coverage, truth, drift),
        "facts": _facts(overview, coverage, truth, speed),
        "num_images": overview.num_images,
        "coverage": coverage,
        "risk": None if calibration is None else sections.risk_section(calibration),
        "kept": sections.kept_section(overview),
        "sets": sections.sets_section(view),
        "plane": sections.plane_section(view),
        "balance": sections.balance_section(overview, classes, view, calibration),
        "truth": truth,
        "drift": drift,
        "rejects": sections.rejects_section(overview),
        "speed": speed,
        "record": [(name[0].upper() + name[1:], text) for name, text in lines if name not in hidden],
        "hints": {"raw": view is None, "calibration": calibration is None, "truth": quality is None},
        "palette": class_palette(classes.num_targets, classes.background),
    }


def page_data(
    classes: Taxonomy,
    *,
    pictures: Sequence[Mapping[str, Any]] = (),
    groups: Sequence[Group] = (),
    numbers: Sequence[int] = (),
    **more: Any,
) -> dict[str, Any]:
    """Return the data of the page's scripts; groups name their pictures by position."""
    position = {number: index for index, number in enumerate(numbers)}
    return {
        "classes": list(classes.targets),
        "background": classes.background,
        "colors": class_palette(classes.num_targets, classes.background),
        "images": list(pictures),
        "groups": [
            {
                "key": group.key,
                "title": group.title,
                "note": group.note,
                "images": [position[number] for number in group.images],
            }
            for group in groups
        ],
        **more,
    }


def render(
    template: str, scripts: Sequence[str], data: Mapping[str, Any], *, connect: bool = False, **context: Any
) -> str:
    """Fill a template; its Content-Security-Policy allows this style, this script and images in the page alone.

    With ``connect`` the page may also talk to the server that it came from.
    """
    palette = "".join(f".k{index}{{--c:{color}}}" for index, color in enumerate(context.pop("palette", ())))
    style = Markup(_source("style.css") + palette)
    script = Markup("\n".join(_source(name) for name in scripts))
    server = "connect-src 'self'; " if connect else ""
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:; {server}"
        "base-uri 'none'; form-action 'none'"
    )
    return (
        _environment()
        .get_template(template)
        .render(
            style=style,
            script=script,
            policy=policy,
            data=_json(data),
            version=version("maskmill"),
            date=_clock(),
            percent=sections.percent,
            decimal=_decimal,
            duration=_duration,
            **context,
        )
    )


def render_part(template: str, **context: Any) -> str:
    """Fill a template that is a part of the page, or the text of one."""
    environment = _environment()
    is_file = template.endswith(".html")
    part = environment.get_template(template) if is_file else environment.from_string(template)
    return part.render(percent=sections.percent, decimal=_decimal, duration=_duration, clock=_clock(), **context)


def image_accuracy(store: LabelStore, overview: Overview, quality: Quality) -> dict[str, float]:
    """Return the share of right labels of each measured image by id; images without a kept pixel are left out."""
    if quality.tally is None:
        return {}
    id_of = {uri: id for uri, id in zip(overview.uris, overview.ids, strict=True) if uri}
    kept_pixels, hits = quality.tally.kept.sum(axis=1), quality.tally.hits.sum(axis=1)
    return {
        id_of[uri]: float(hits[index] / kept_pixels[index])
        for index, uri in enumerate(quality.uris)
        if kept_pixels[index] and uri in id_of
    }


def _facts(
    overview: Overview,
    coverage: Mapping[str, Any] | None,
    truth: Mapping[str, Any] | None,
    speed: Mapping[str, Any] | None,
) -> list[dict[str, Any]]:
    """List the figures that are not in the headline."""
    num_duplicates = overview.num_duplicates
    duplicates = (
        f"{num_duplicates:,} duplicate{'' if num_duplicates == 1 else 's'}" if num_duplicates else "no duplicates"
    )
    inputs = f"{overview.num_inputs:,} inputs, {duplicates}"
    facts: list[dict[str, Any]] = [
        {"name": "Images", "value": f"{overview.num_images:,}", "note": inputs},
        {"name": "Labeled pixels", "value": _short(float(overview.counts.sum())), "note": _short_of(overview)},
    ]
    before = "" if coverage is None else f"{_decimal(coverage['total']['raw_iou'])} before selection, held-out"
    if truth is not None:
        facts.append({"name": "mIoU of the labels", "value": _decimal(truth["miou"]), "note": ""})
    elif coverage is not None and coverage["total"]["iou"] is not None:
        value = _decimal(coverage["total"]["iou"])
        facts.append({"name": "mIoU of the labels, held-out", "value": value, "note": before})
    if coverage is not None:
        value = f"{coverage['total']['set_size']:.2f}"
        facts.append({"name": "Classes per prediction set", "value": value, "note": "on held-out images"})
    if speed is not None:
        stages = max(speed["stages"], key=lambda stage: stage["share"], default=None)
        note = "" if stages is None else f"most of the time: {stages['name']}"
        facts.append({"name": "Images per second", "value": f"{speed['rate']:.3g}", "note": note})
    if overview.reviews:
        note = f"of {overview.num_images:,} images"
        facts.append({"name": "Reviewed by people", "value": f"{len(overview.reviews):,}", "note": note})
    return facts


def _short(number: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def _short_of(overview: Overview) -> str:
    return f"of {_short(float(overview.pixels.sum()))}"


def _decimal(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}".removeprefix("0")


def _clock() -> str:
    now = datetime.now()
    return f"{now.day} {now:%B %Y, %H:%M}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"


def _json(data: Mapping[str, Any]) -> Markup:
    """Write JSON that may stand inside a script element: no text in it can end the element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _source(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")
