"""Counts of true class against label: what is counted where, merging, and the CPU form against the specification."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmill import kernels
from maskmill.errors import UsageError
from maskmill.kernels.cpu import confusion as cpu_module
from maskmill.kernels.cpu.confusion import confusion_counts as cpu
from maskmill.kernels.reference.confusion import confusion_counts as reference

FORMS = pytest.mark.parametrize("form", [reference, cpu], ids=["reference", "cpu"])

TRUTH = np.array([[0, 0, 0, 1], [1, 1, 2, 255]], np.uint8)
LABEL = np.array([[0, 0, 1, 255], [1, 2, 3, 0]], np.uint8)


@FORMS
def test_rows_are_the_truth_and_columns_the_label(form):
    # Label 255 and, among three classes, label 3 are no class; truth 255 is left out.
    found = form(LABEL, TRUTH, num_classes=3)
    assert found.tolist() == [[2, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 1]]
    assert found.dtype == np.int64


@FORMS
def test_truth_that_is_ignored_or_no_class_is_left_out(form):
    assert form(LABEL, TRUTH, num_classes=3, ignore=0).tolist() == [[0, 0, 0, 0], [0, 1, 1, 1], [0, 0, 0, 1]]
    assert form(LABEL, TRUTH, num_classes=1).tolist() == [[2, 1]]


@FORMS
def test_indices_beyond_one_byte(form):
    truth, label = np.array([[300, 300, 65535, 0]], np.uint16), np.array([[300, 65535, 0, 44]], np.uint16)
    expected = np.zeros((301, 302), np.int64)
    expected[300, [300, 301]] = expected[0, 44] = 1
    np.testing.assert_array_equal(form(label, truth, num_classes=301, ignore=65535), expected)


@FORMS
def test_negative_indices_are_no_class(form):
    truth, label = np.array([-1, 0, 1, 1]), np.array([0, -1, 1, -100])
    assert form(label, truth, num_classes=2).tolist() == [[0, 0, 1], [0, 1, 1]]


@FORMS
def test_images_add_up_in_out(form):
    total = np.zeros((3, 4), np.int64)
    for row in range(2):
        assert form(LABEL[row], TRUTH[row], num_classes=3, out=total) is total
    np.testing.assert_array_equal(total, form(np.stack([LABEL]), np.stack([TRUTH]), num_classes=3))


@FORMS
def test_no_pixels(form):
    assert form(LABEL[:0], TRUTH[:0], num_classes=2).tolist() == [[0, 0, 0], [0, 0, 0]]


@FORMS
def test_maps_that_cannot_be_compared_are_refused(form):
    with pytest.raises(UsageError, match=r"the same shape, got \(2, 4\) and \(4, 2\)"):
        form(LABEL, TRUTH.T, num_classes=3)
    with pytest.raises(UsageError, match="label must hold integers, got float32"):
        form(LABEL.astype(np.float32), TRUTH, num_classes=3)
    with pytest.raises(UsageError, match="num_classes must be at least 1, got 0"):
        form(LABEL, TRUTH, num_classes=0)


def test_an_array_that_cannot_be_added_to_is_refused():
    for out in (np.zeros((3, 3), np.int64), np.zeros((3, 4), np.int32), np.zeros((4, 3), np.int64).T):
        with pytest.raises(UsageError, match=r"out must be C-contiguous int64 of shape \(3, 4\)"):
            cpu(LABEL, TRUTH, num_classes=3, out=out)


def test_threads_add_up_to_what_one_thread_counts(monkeypatch):
    rng = np.random.default_rng(0)
    label, truth = (rng.choice([0, 1, 2, 3, 255], (3, 41, 37)).astype(np.uint8) for _ in range(2))
    expected = reference(label, truth, num_classes=3)
    used = []
    monkeypatch.setattr(cpu_module, "num_threads", lambda work, worth: 3)
    share = cpu_module.share
    monkeypatch.setattr(cpu_module, "share", lambda *arguments: used.append(arguments[2]) or share(*arguments))
    total = expected.copy()
    np.testing.assert_array_equal(cpu(label, truth, num_classes=3), expected)
    np.testing.assert_array_equal(cpu(label, truth, num_classes=3, out=total), 2 * expected)
    assert used == [3, 3]


def test_a_call_on_another_thread_stays_on_it(monkeypatch):
    monkeypatch.setattr(cpu_module, "_WORTH_THREADS", 1)
    monkeypatch.setattr(cpu_module, "share", lambda *_: pytest.fail("shared out"))
    found = []
    worker = threading.Thread(target=lambda: found.append(cpu(LABEL, TRUTH, num_classes=3)))
    worker.start()
    worker.join()
    np.testing.assert_array_equal(found[0], reference(LABEL, TRUTH, num_classes=3))


def test_tensors_give_a_tensor():
    found = kernels.confusion_counts(torch.from_numpy(LABEL), torch.from_numpy(TRUTH), num_classes=3)
    assert found.dtype == torch.int64
    assert found.tolist() == reference(LABEL, TRUTH, num_classes=3).tolist()


@settings(deadline=None, max_examples=80)
@given(
    shape=st.sampled_from([(1, 1), (3, 5), (2, 4, 7), (17, 33)]),
    num_classes=st.sampled_from([1, 2, 5, 21, 255, 300]),
    types=st.sampled_from([("u1", "u1"), ("u2", "u2"), ("u1", "u2")]),
    ignore=st.sampled_from([255, 65535, 0, 3]),
    runs=st.integers(1, 6),
    seed=st.integers(0, 999),
)
def test_cpu_form_is_the_reference(shape, num_classes, types, ignore, runs, seed):
    rng = np.random.default_rng(seed)
    values = np.unique([0, 1, 2, num_classes - 1, num_classes, 254, 255, 65535])
    count = int(np.prod(shape))
    label, truth = (
        np.repeat(rng.choice(values[values <= np.iinfo(kind).max], count), runs)[:count].astype(kind).reshape(shape)
        for kind in types
    )
    options = {"num_classes": num_classes, "ignore": ignore}
    expected = reference(label, truth, **options)
    assert expected.sum() == ((truth < num_classes) & (truth != ignore)).sum()
    np.testing.assert_array_equal(cpu(label, truth, **options), expected)
    np.testing.assert_array_equal(cpu(label.T, truth.T, **options), expected)
