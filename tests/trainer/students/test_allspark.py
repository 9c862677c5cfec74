"""The AllSpark block against channel-wise attention written out, and its memory."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from maskmill.errors import UsageError  # noqa: E402
from maskmill.trainer.students.allspark import channel_classes  # noqa: E402
from maskmill.trainer.students.models import build_model  # noqa: E402


def spark_student(**options: object):
    torch.manual_seed(0)
    return build_model("allspark:tiny", 3, width=4, crop=32, dropout=0.0, **options)


def norm(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / np.sqrt(values.var() + 1e-5)


def softmax(values: np.ndarray) -> np.ndarray:
    exponentials = np.exp(values - values.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_labeled_channels_attend_to_the_channels_of_all_unlabeled_images(temperature: float) -> None:
    block = spark_student(temperature=temperature).decoder.block
    attention = block.labeled
    labeled, unlabeled = torch.randn(2, 5, 8), torch.randn(3, 5, 8)
    with torch.no_grad():
        found = attention.across(labeled, unlabeled).numpy()
    query, key, value, out = (
        getattr(attention, name).weight.detach().numpy() for name in ("query", "key", "value", "out")
    )
    for number in range(2):
        queries = (labeled[number].numpy() @ query.T).T
        keys = np.concatenate([(image @ key.T).T for image in unlabeled.numpy()])
        values = np.concatenate([(image @ value.T).T for image in unlabeled.numpy()])
        weights = softmax(norm(queries @ keys.T) / temperature)
        np.testing.assert_allclose(found[number], (weights @ values).T @ out.T, atol=1e-5)


def test_the_memory_holds_the_latest_channels_of_each_class() -> None:
    block = spark_student().decoder.block
    before = block.memory.clone()
    channels, tokens = before.shape[1:]
    first, second = torch.randn(1, tokens, channels), torch.randn(1, tokens, channels)
    assigned = torch.tensor([[0, 1, 1, 0, 2, 1, 1, 1]])
    block.remember(first, assigned)
    assert torch.equal(block.memory[0, :2], first[0, :, [0, 3]].T)
    assert torch.equal(block.memory[0, 2:], before[0, 2:])
    assert block.position.tolist() == [2, 5, 1]
    block.remember(second, assigned)
    # the queue of class 1 has 8 places: its oldest entries are replaced
    assert torch.equal(block.memory[1, 5:], second[0, :, [1, 2, 5]].T)
    assert torch.equal(block.memory[1, :2], second[0, :, [6, 7]].T)
    assert torch.equal(block.memory[1, 2:5], first[0, :, [5, 6, 7]].T)


def test_a_channel_belongs_to_the_class_with_the_most_similar_map() -> None:
    maps = torch.eye(3).reshape(1, 3, 1, 3)
    embedding = torch.tensor([[[0.1, 5.0], [0.9, 0.0], [0.0, 1.0]]])
    assert channel_classes(maps, embedding).tolist() == [[1, 0]]


def test_an_image_alone_attends_to_itself_whatever_its_batch() -> None:
    student = spark_student().eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        both, alone = student(images), student(images[:1])
    assert torch.allclose(both[:1], alone, atol=1e-6)


def test_a_run_that_is_loaded_has_the_memory_of_its_training() -> None:
    student = spark_student().train()
    features = student.encode(torch.randn(4, 3, 32, 32))
    logits = student.decoder.spark(features, torch.randn(2, 3, 16, 16), memory=True)
    assert logits.shape == (4, 3, 16, 16)
    logits.sum().backward()
    again = build_model("allspark:tiny", 3, **student.options)
    again.load_state_dict(student.state_dict())
    assert torch.equal(again.decoder.block.memory, student.decoder.block.memory)


def test_another_crop_than_that_of_the_memory_is_refused() -> None:
    student = spark_student().train()
    with pytest.raises(UsageError, match=r"set model\.crop"):
        student.decoder.spark(student.encode(torch.randn(2, 3, 64, 64)), torch.randn(1, 3, 16, 16))
