"""Training images keep their own labels while several processes label and compact the same store."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from maskmill.engine.store import label_store  # noqa: E402
from maskmill.engine.store.label_store import LabelStore  # noqa: E402
from maskmill.engine.store.verify import verify  # noqa: E402
from maskmill.trainer.data.parts import StoredImages  # noqa: E402

from ...conftest import ROOT  # noqa: E402
from ..builders import TAXONOMY  # noqa: E402
from .label_writer import num_wrong, write  # noqa: E402


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tests.trainer.data.label_writer", *map(str, arguments)]


@pytest.mark.parametrize(
    "num_writers", [3, pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_every_image_reads_its_own_label_while_others_write(
    tmp_path: Path, num_writers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_store, "COMPACT_EVERY", 4)
    (tmp_path / "images").mkdir()
    store = LabelStore.create(tmp_path / "store", {"classes": TAXONOMY.to_json()})
    write(str(store.path), str(tmp_path / "images"), 0, 20)
    writers = [
        subprocess.Popen(command("write", store.path, tmp_path / "images", 6000 * number, 12), cwd=ROOT)
        for number in range(1, 1 + num_writers)
    ]
    images = StoredImages.open(store.path, pin="train-1")  # as a training run opens it
    (tmp_path / "images.pickle").write_bytes(pickle.dumps(images))
    sizes, wrong = set(), 0
    while any(writer.poll() is None for writer in writers):
        newest = StoredImages.open(store.path)
        wrong += num_wrong(images, step=7) + num_wrong(newest, step=7)
        sizes.add(len(newest.uris))
    assert [writer.returncode for writer in writers] == [0] * num_writers
    # as a data worker reads it, much later
    read = subprocess.run(command("read", tmp_path / "images.pickle"), cwd=ROOT, capture_output=True, check=True)
    assert read.stdout.decode().split() == [str(len(images.uris)), "0"]
    assert num_wrong(StoredImages.open(store.path)) == wrong == 0
    assert verify(store.path).damages == []
    assert len(sizes) > 1
    assert max(sizes) > len(images.uris)
