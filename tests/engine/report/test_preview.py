from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from maskmill.cli import app
from maskmill.engine.report.preview import read_photo, write_preview
from maskmill.errors import UsageError

from ...models import color_bundle, color_image


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Red on the left, blue on the right."""
    label = np.zeros((16, 24), np.int64)
    label[:, 12:] = 2
    Image.fromarray(color_image(label)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_the_preview_shows_the_models_labels(tmp_path: Path, photo: Path) -> None:
    bundle = color_bundle(tmp_path)
    with Image.open(write_preview(bundle, read_photo(photo), tmp_path / "preview.png")) as picture:
        left, right = picture.getpixel((2, 8)), picture.getpixel((21, 8))
    # class 0 is drawn black over red, class 2 dark green over blue
    assert left[0] < 130
    assert left[1] < 20
    assert right[1] > 60


def test_a_photo_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    for name in ("text.jpg", "none.jpg"):
        with pytest.raises(UsageError, match=f"cannot read the image .*{name}"):
            read_photo(tmp_path / name)


def test_show_draws_what_a_model_sees(tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = color_bundle(tmp_path)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["show", str(bundle.path), str(photo)])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "photo-labels.png").is_file()
    result = CliRunner().invoke(app, ["show", str(bundle.path)])
    assert isinstance(result.exception, UsageError) or result.exit_code == 2
