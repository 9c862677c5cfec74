"""A process that labels images whose label maps hold the image's number, and one that reads them::

python -m tests.trainer.data.label_writer write STORE FOLDER START COMMITS
python -m tests.trainer.data.label_writer read PICKLED_IMAGES      # prints images, and how many labels are wrong
"""

from __future__ import annotations

import io
import os
import pickle
import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from maskmill.engine.model.png import encode_png
from maskmill.engine.store import label_store
from maskmill.engine.store.label_store import InputRow, LabelRow, LabelStore, content_id
from maskmill.trainer.data.parts import StoredImages

SIZE = (8, 8)


def number_image(number: int) -> bytes:
    """A PNG that no other number has."""
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = number % 251, number // 251
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def expected_label(uri: str) -> int:
    """The class that every pixel of an image's label map has."""
    return int(os.path.basename(uri)[:5]) % 200


def write(store_path: str, folder: str, start: int, commits: int) -> None:
    """Label 2 to 12 images per commit."""
    store, draw, number = LabelStore.open(store_path), random.Random(start), start
    for _ in range(commits):
        labels, inputs = [], []
        for _ in range(draw.randint(2, 12)):
            path, data = f"{folder}/{number:05d}.png", number_image(number)
            with open(path, "wb") as file:
                file.write(data)
            png, status, id = encode_png(np.full(SIZE, number % 200, np.uint8)), os.stat(path), content_id(data)
            labels.append(
                LabelRow(id=id, width=8, height=8, label=png, weight=png, counts=[64], kept=1.0, confidence=1.0)
            )
            stamp = str(status.st_mtime_ns)
            inputs.append(InputRow(uri=path, size=status.st_size, stamp=stamp, id=id, error=None, message=None))
            number += 1
        store.commit(labels, inputs)


def num_wrong(images: StoredImages, step: int = 1) -> int:
    """Count the images, every ``step``-th, whose label map is not their own."""
    indices = range(0, len(images.uris), step)
    pairs = zip(indices, images.read_all(indices), strict=True)
    return sum(int(image.label[0, 0]) != expected_label(images.uris[index]) for index, image in pairs)


if __name__ == "__main__":
    label_store.COMPACT_EVERY = 4
    if sys.argv[1] == "write":
        write(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        pickled = pickle.loads(Path(sys.argv[2]).read_bytes())
        print(len(pickled.uris), num_wrong(pickled))
