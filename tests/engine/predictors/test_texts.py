"""Class names at label time: encoded once, the image once for all of them, and part of a store's identity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from maskmill.cli import app
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.predictors.open import ModelOptions, load_taxonomy, open_predictor
from maskmill.engine.predictors.texts import TextPredictor, encode_texts, parse_texts, tokenize
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.engine.store.label_store import LabelStore
from maskmill.errors import UsageError

from ...models import color_bundle, color_image, text_bundle

LABEL = np.arange(24)[None].repeat(16, axis=0) // 8


def predictor_of(bundle: Bundle, names: tuple[str, ...], batch: int = 1) -> TextPredictor:
    encoder, text, decoder = (OnnxSession(bundle, role=role) for role in ("encoder", "text", "decoder"))
    return TextPredictor(bundle, encoder, decoder, encode_texts(bundle, text, names), batch=batch)


def test_a_named_class_gets_its_scores_and_the_background_the_rest(tmp_path: Path) -> None:
    predictor = predictor_of(text_bundle(tmp_path), ("green", "red"))
    score_map = predictor.predict(color_image(LABEL))
    assert predictor.bundle.classes == ("background", "green", "red")
    np.testing.assert_allclose(score_map.scores[:, 4, [1, 6, 11]], [[0, 0, 1], [0, 1, 0], [1, 0, 0]], atol=1e-6)
    assert score_map.region == (0, 0, 8, 12)
    named = predictor_of(text_bundle(tmp_path, name="second"), ("red", "background"))
    assert (named.bundle.classes, named.bundle.background) == (("red", "background"), 1)


@pytest.mark.parametrize(("batch", "encoder_calls"), [(1, 3), (2, 2)])
def test_images_are_encoded_once_and_classes_in_chunks(tmp_path: Path, batch: int, encoder_calls: int) -> None:
    names = ("red", "green", "blue", "dark", "red red", "green green", "blue blue", "dark dark", "red dark", "dark red")
    predictor = predictor_of(text_bundle(tmp_path), names, batch)
    images = [color_image(LABEL), color_image(LABEL[:, ::-1]), color_image(LABEL * 0)]
    maps = predictor.run([predictor.prepare(image) for image in images])
    assert (predictor.encoder_calls, predictor.decoder_calls) == (encoder_calls, 2 * encoder_calls)
    for image, score_map in zip(images, maps, strict=True):
        np.testing.assert_allclose(score_map.scores, predictor.predict(image).scores, atol=1e-6)


def test_objects_of_all_chunks_compete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskmill.engine.predictors.texts.CHUNK", 2)
    predictor = predictor_of(text_bundle(tmp_path, objects=2), ("dark", "green", "dark dark", "red"))
    image = color_image(LABEL)
    image[:, :8] //= 2  # red is weaker than green
    objects = predictor.predict(image).objects
    assert objects is not None
    assert objects.classes.tolist() == [2, 4]  # the background is class 0
    assert objects.scores.tolist() == pytest.approx([1, 127 / 255], abs=1e-3)
    assert (objects.masks[0] > 0).sum() == 8 * 4


def test_the_names_are_part_of_a_stores_identity(tmp_path: Path) -> None:
    bundle = text_bundle(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.fromarray(color_image(LABEL)).save(tmp_path / "photos" / "a b.png")
    arguments = ["label", str(bundle.path), str(tmp_path / "photos"), "-o", str(tmp_path / "store")]
    result = CliRunner().invoke(app, [*arguments, "--text", "red, blue"])
    assert result.exit_code == 0, result.output
    store = LabelStore.open(tmp_path / "store")
    assert store.classes["targets"] == ["background", "red", "blue"]
    assert store.run["text"]["names"] == ["red", "blue"]
    (row,) = store.inputs()
    assert row.id is not None
    assert (store.maps(store.take([row.id])[0])[0] == np.array([1, 0, 2])[LABEL]).mean() > 0.9
    again = CliRunner().invoke(app, [*arguments, "--text", "red, blue"])
    assert again.exit_code == 0, again.output
    other = CliRunner().invoke(app, [*arguments, "--text", "red, green"])
    assert other.exit_code != 0


def test_the_tokenizer_pads_in_the_template(tmp_path: Path) -> None:
    ids, present = tokenize(text_bundle(tmp_path), ("red", "dark green"))
    assert ids.tolist() == [[2, 0, 0, 0, 0, 0], [5, 3, 0, 0, 0, 0]]
    assert present.sum(axis=1).tolist() == [1, 2]


def test_names_that_cannot_be_told_apart_and_other_bundles_are_refused(tmp_path: Path) -> None:
    bundle, colors = text_bundle(tmp_path), color_bundle(tmp_path, name="colors")
    with pytest.raises(UsageError, match="'cat' and 'dog' have the same tokens"):
        tokenize(bundle, ("cat", "dog"))
    with pytest.raises(UsageError, match="takes its classes as text; name them: --text"):
        load_taxonomy(bundle.path)
    with pytest.raises(UsageError, match="is a semantic bundle with classes of its own; leave --text out"):
        open_predictor(colors.path, options=ModelOptions(text=("red",)))
    with pytest.raises(UsageError, match="--tile does not apply to --text"):
        open_predictor(bundle.path, options=ModelOptions(text=("red",), tile=64))
    assert parse_texts("person, big car") == ("person", "big car")
    with pytest.raises(UsageError, match="class 1 has the name ''"):
        parse_texts("person,, car")
