"""Draw one image of a store: its labels over the photo, or the steps that made them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ...errors import MaskmillError, StoreError, UsageError
from ..inputs.names import image_id
from ..model.files import refuse_overwriting
from ..predictors.open import PromptedOptions, open_prompted
from ..predictors.prompted.predictor import PromptedPredictor
from ..predictors.prompted.setting_texts import format_settings
from ..reading.geotiff import split_window
from ..store.label_store import SEGMENTS, LabelStore
from .overlay import overlay, save_picture, segment_overlay
from .photos import PhotoReader
from .prompted_picture import prompted_picture


def write_overlay(store: LabelStore, name: str, output: Path | None) -> Path:
    """Draw the labels of one image over its photo; the default file is ``NAME-labels.png`` in the current folder.

    A gray image replaces a photo that no longer exists.
    """
    uri = store.find(name).uri
    path = _picture_path(output, uri, "labels")
    label, _ = store.read(uri)
    try:
        image = PhotoReader(store.run).read(uri, label.shape)
    except StoreError:
        raise
    except MaskmillError:
        image = np.full((*label.shape, 3), 128, np.uint8)
    if store.run.get("maps") == SEGMENTS:
        save_picture(segment_overlay(image, label), path)
    else:
        classes = store.classes
        save_picture(overlay(image, label, classes["targets"], background=classes["background"]), path)
    return path


def write_steps(store: LabelStore, name: str, output: Path | None, options: PromptedOptions) -> Path:
    """Draw the steps that made one image's labels; the default file is ``NAME-steps.png`` in the current folder.

    The steps are computed again with the store's settings and the models of ``options``; :class:`UsageError` if these
    are not the models that the store was made with.
    """
    settings = store.run.get("prompts")
    if settings is None:
        raise UsageError(f"{store.path} was not labeled with --cam and --sam, so there are no steps to show")
    uri = store.find(name).uri
    path = _picture_path(output, uri, "steps")
    label, _ = store.read(uri)
    image = PhotoReader(store.run).read(uri, label.shape)
    predictor, _ = open_prompted(replace(options, prompt=format_settings(settings)))
    if not isinstance(predictor, PromptedPredictor):
        raise UsageError(f"{store.path} was not labeled with --cam and --sam, so there are no steps to show")
    for what, recorded_hash, opened_hash in (
        ("classifier", store.run["bundle"], predictor.cam.bundle.fingerprint),
        ("promptable model", store.run["promptable"]["bundle"], predictor.sam.fingerprint),
    ):
        if recorded_hash != opened_hash:
            raise UsageError(f"{store.path} was labeled with another {what} than the one given")
    (steps,) = predictor.steps([predictor.prepare(image, uri)])
    classes = store.classes
    picture = prompted_picture(
        image,
        steps,
        label,
        classes["targets"],
        predictor.bundle.classes,
        first=predictor.first,
        background=classes["background"],
        cell=predictor.cell,
    )
    save_picture(picture, path)
    return path


def _picture_path(output: Path | None, uri: str, kind: str) -> Path:
    """Return the file of a picture; raises :class:`UsageError` if it is the photo itself."""
    path = output or Path(f"{image_id(uri)}-{kind}.png")
    refuse_overwriting(path, [(split_window(uri) or (uri,))[0]])
    return path
