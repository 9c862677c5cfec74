"""A data set as a user brings it: names, colors and orientations, from the draft of a taxonomy to thresholds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ...models import color_bundle
from ...test_cli import maskmill, ok

COLORS = np.array([(220, 0, 0), (0, 220, 0), (0, 0, 220)], np.uint8)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of three colors, photos turned by their EXIF orientation, and label maps of the pixels as stored."""
    folder = tmp_path_factory.mktemp("home")
    color_bundle(folder)
    exif = Image.Exif()
    exif[0x112] = 3
    for index in range(12):
        classes = np.zeros((16, 24), np.uint8)
        classes[:5], classes[5:9, : 4 + index] = 1, 2
        for kind, pixels in (("photos", COLORS[classes]), ("labels", classes), ("colors", COLORS[classes])):
            (folder / kind).mkdir(exist_ok=True)
            image = Image.fromarray(pixels)
            if kind == "photos":
                image.save(folder / kind / f"{index}.png", exif=exif)
            else:
                image.save(folder / kind / f"{index}_mask.png")
    return folder


def test_a_draft_needs_names_for_the_label_values(home: Path) -> None:
    refused = maskmill("taxonomy", "bundle", "--labels", "labels", "-o", "refused.toml", cwd=home)
    assert refused.returncode == 2
    assert "hold 0, 1, 2, and no name is known for them; give the names" in refused.stderr
    assert not (home / "refused.toml").exists()
    (home / "names.txt").write_text("\ufeffred\ngreen\nblue\n", encoding="utf-8")
    output = ok(
        "taxonomy", "bundle", "--labels", "labels", "--label-names", "names.txt", "-o", "classes.toml", cwd=home
    )
    assert output.splitlines()[0] == "12 labeled images used"


def test_thresholds_come_with_a_line_about_what_was_read(home: Path) -> None:
    arguments = ("calibrate", "bundle", "--images", "photos", "--labels", "labels", "--alpha", "0.1", "-o")
    output = ok(*arguments, "c.json", cwd=home)
    assert "12 images used; label i assumed to be class i of the model" in output
    assert "paired by suffix _mask (12)" in output
    assert "12 photos turned by their EXIF orientation and their maps not" in output
    source = json.loads(ok(*arguments, "stored.json", "--labels-as-stored", "--json", cwd=home))["source"]
    assert source["images"] == source["turned"] == 12
    assert source["labels_as_stored"]
    refused = maskmill(*("colors" if word == "labels" else word for word in arguments), "no.json", cwd=home)
    assert refused.returncode == 2
    assert "holds colors, e.g." in refused.stderr
