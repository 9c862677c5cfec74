"""Models that take class names: SAM 3 with texts at label time, detectors with texts frozen at export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.predictors.texts import TextPredictor, encode_texts, tokenize
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.errors import UsageError
from maskmill.export.pretrained.checkpoint import fetch
from maskmill.export.pretrained.families import Choices, fold

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from ..checkpoints import CHECKPOINTS  # noqa: E402
from .test_families import CLASSES, MAX_ERROR, exported, images  # noqa: E402


def photos() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    small = [rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), rng.integers(0, 256, (9, 5, 3), dtype=np.uint8)]
    return [np.kron(image, np.ones((20, 20, 1), np.uint8)) for image in small]


@pytest.mark.slow
@pytest.mark.timeout(1500)  # two exports
@pytest.mark.parametrize("family", ["sam3", "sam3_lite_text"])
def test_texts_at_label_time_give_the_scores_of_texts_frozen_at_export(tmp_path: Path, family: str) -> None:
    names = (*CLASSES, "person", "red car", "tree", "house", "road", "sky")  # two chunks
    bundle, model = exported(tmp_path, family, Choices(instances=4))
    assert (bundle.task, bundle.classes) == ("text", ())
    frozen, _ = exported(tmp_path / "frozen", family, Choices(classes=names, instances=4))
    encoder, text, decoder = (OnnxSession(bundle, role=role) for role in ("encoder", "text", "decoder"))
    named = TextPredictor(bundle, encoder, decoder, encode_texts(bundle, text, names), batch=2)
    fixed = SemanticPredictor(frozen, OnnxSession(frozen), batch=2)
    assert named.bundle.classes == frozen.classes
    prepared = [named.prepare(photo) for photo in photos()]
    maps, expected = (predictor.run(prepared_of) for predictor, prepared_of in (
        (named, prepared), (fixed, [fixed.prepare(photo) for photo in photos()])
    ))  # fmt: skip
    assert (named.encoder_calls, named.decoder_calls) == (1, 2)
    for score_map, reference in zip(maps, expected, strict=True):
        np.testing.assert_allclose(score_map.scores, reference.scores, atol=1e-5)
        assert (score_map.scores.argmax(0) == reference.scores.argmax(0)).mean() >= 0.9999
        assert score_map.objects is not None
        assert reference.objects is not None
        np.testing.assert_allclose(score_map.objects.scores, reference.objects.scores, atol=1e-5)
        assert score_map.objects.classes.tolist() == reference.objects.classes.tolist()
    # each image and class alone through the model's own forward
    tokenizer = fetch(str(tmp_path / family)).tokenizer()
    for image, score_map in zip(prepared, maps, strict=True):
        for channel in (0, 4):
            tokens = tokenizer(names[channel], padding="max_length", max_length=32, return_tensors="pt")
            with torch.no_grad():
                output = model(pixel_values=torch.from_numpy(image.tensor)[None], **tokens)
            queries = output.pred_logits.sigmoid() * output.presence_logits.sigmoid()
            own = (queries[..., None, None] * output.pred_masks.sigmoid()).amax(1)[0]
            np.testing.assert_allclose(score_map.scores[1 + channel], own.numpy(), atol=MAX_ERROR)


def test_the_tokenizer_of_the_bundle_is_that_of_transformers(tmp_path: Path) -> None:
    folder = CHECKPOINTS["sam3"](tmp_path)
    folded = fold(fetch(str(folder)), Choices(template="a {}"), family="sam3")
    assert folded.text is not None

    class Files:
        path, text = tmp_path, folded.text

        def model_path(self, role: str) -> Path:
            return tmp_path / "of-the-bundle.json"

    (tmp_path / "of-the-bundle.json").write_text(folded.tokenizer)
    names = ("cat", "a very long name with more letters than there are tokens", "CAT, sofa")
    ids, present = tokenize(Files(), names)  # type: ignore[arg-type]
    expected = fetch(str(folder)).tokenizer()(
        [f"a {name}" for name in names], padding="max_length", max_length=32, truncation=True, return_tensors="np"
    )
    np.testing.assert_array_equal(ids, expected.input_ids)
    np.testing.assert_array_equal(present, expected.attention_mask)


def own_boxes(family: str, model: Any, tokenizer: Any, image: Any) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and class scores of the model's own forward, as its post-processing reads them."""
    from transformers.image_transforms import center_to_corners_format

    num = len(image)
    if "dino" in family:
        tokens = tokenizer(". ".join(CLASSES) + ".", return_tensors="pt")
        inputs = {name: value.expand(num, -1) for name, value in tokens.items()}
    else:
        texts = [f"a photo of a {name}" for name in CLASSES]
        tokens = tokenizer(texts, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
        inputs = {name: value.repeat(num, 1) for name, value in tokens.items() if name != "token_type_ids"}
    with torch.no_grad():
        output = model(pixel_values=image, **inputs)
    scores = output.logits.sigmoid()
    if "dino" in family:
        ends = (tokens["input_ids"][0] == 1012).nonzero()[:, 0].tolist()
        starts = [1, *(end + 1 for end in ends)]
        parts = [scores[..., start:end].amax(-1) for start, end in zip(starts, ends, strict=False)]
        scores = torch.stack(parts, dim=-1)
    return center_to_corners_format(output.pred_boxes).numpy(), scores.numpy()


@pytest.mark.slow
@pytest.mark.timeout(1500)  # the exporter takes a minute of processor time for Grounding DINO
@pytest.mark.parametrize("family", ["owlvit", "owlv2", "grounding_dino", "mm_grounding_dino"])
def test_detectors(tmp_path: Path, family: str) -> None:
    bundle, model = exported(tmp_path, family, Choices(classes=CLASSES))
    assert (bundle.task, bundle.classes, bundle.input.height) == ("detector", CLASSES, 96)
    assert (bundle.input.resize == "longest-side") == (family == "owlv2")
    tokenizer = fetch(str(tmp_path / family)).tokenizer()
    session = OnnxSession(bundle)
    for num in (1, 4):
        batch = images(bundle, num)
        boxes, scores = session.run(batch)
        expected_boxes, expected_scores = own_boxes(family, model, tokenizer, torch.from_numpy(batch))
        assert scores.shape[2] == len(CLASSES)
        assert scores.max() > 0.6
        assert scores.std() > 0.01
        np.testing.assert_allclose(boxes, expected_boxes, atol=MAX_ERROR)
        np.testing.assert_allclose(scores, expected_scores, atol=MAX_ERROR)


@pytest.mark.parametrize("family", ["grounding_dino", "owlv2"])
def test_the_folded_detector_gives_its_own_boxes(tmp_path: Path, family: str) -> None:
    """As the slow test, without the export."""
    folder = CHECKPOINTS[family](tmp_path)
    checkpoint = fetch(str(folder))
    folded = fold(checkpoint, Choices(classes=CLASSES), family=family)
    torch.manual_seed(0)
    image = torch.nn.functional.interpolate(torch.randn(2, 3, 9, 9), size=(96, 96), mode="bicubic")
    with torch.no_grad():
        boxes, scores = folded.module(image)
    kind = "GroundingDinoForObjectDetection" if family == "grounding_dino" else "Owlv2ForObjectDetection"
    expected = own_boxes(family, checkpoint.load(kind), checkpoint.tokenizer(), image)
    np.testing.assert_allclose(boxes, expected[0], atol=1e-5)
    np.testing.assert_allclose(scores, expected[1], atol=1e-5)
    for choices, message in (
        (Choices(), "give the class names with --classes"),
        (Choices(classes=("a", "b"), background="a"), "a detector has no background"),
    ):
        with pytest.raises(UsageError, match=message):
            fold(checkpoint, choices, family=family)
    if family == "grounding_dino":
        with pytest.raises(UsageError, match=r"separates class names by '\.' and '\?'; rename the class 'b\. c'"):
            fold(checkpoint, Choices(classes=("a", "b. c")), family=family)
        with pytest.raises(UsageError, match="the class names have 85 tokens in all, the model reads 64"):
            fold(checkpoint, Choices(classes=("a" * 80, "b")), family=family)
