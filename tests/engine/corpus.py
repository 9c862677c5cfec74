"""A corpus of small photos with a model that labels them, and a process that does it and can be killed."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling import writer
from maskmill.engine.labeling.label_run import label
from maskmill.engine.labeling.progress import Progress
from maskmill.engine.labeling.selection import Selection
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.engine.store.waiting import waiting_rows


def write_photos(folder: Path, num: int, *, size: tuple[int, int] = (12, 16), seed: int = 0) -> list[Path]:
    """Photos that all differ, as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = [folder / f"{index:05d}.png" for index in range(num)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path, compress_level=1)
    return paths


def write_damaged_shards(folder: Path) -> None:
    """Four tar archives of four photos each: sound, a damaged header, a damaged photo, cut short in the last photo."""
    folder.mkdir()
    photos = [path.read_bytes() for path in write_photos(folder.with_name("unpacked"), 16)]
    for number in range(4):
        path = folder / f"s-{number}.tar"
        offsets = []
        with tarfile.open(path, "w") as tar:
            for place, photo in enumerate(photos[4 * number : 4 * number + 4]):
                member = tarfile.TarInfo(f"{place}.png")
                member.size = len(photo)
                offsets.append(tar.offset)
                tar.addfile(member, io.BytesIO(photo))
        data = bytearray(path.read_bytes())
        if number == 1:
            data[offsets[2] : offsets[2] + 512] = bytes(range(256)) * 2
        elif number == 2:
            data[offsets[1] + 512 + 40 : offsets[1] + 512 + 90] = bytes(50)
        elif number == 3:
            del data[offsets[3] + 512 + 20 :]
        path.write_bytes(data)


def label_folder(bundle: Bundle, photos: Path | str, store: Path, **options) -> Progress:
    """Label a source with the model's own classes."""
    predictor = SemanticPredictor(bundle, OnnxSession(bundle))
    selection = options.pop("selection", Selection(weight="pcos"))
    return label(predictor, open_source(photos), store, Taxonomy.of_model(bundle), selection, **options)


if __name__ == "__main__":
    # bundle, photos, store, rows a commit: what the tests start and kill
    writer.COMMIT_ROWS, waiting_rows.COMMIT_SHARE, waiting_rows.CHEAP_SECONDS = int(sys.argv[4]), 1e9, 1e9
    label_folder(Bundle.load(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), workers=2)
