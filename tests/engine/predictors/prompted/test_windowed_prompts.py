"""Prompts of large files that are read by windows: as prompts of the windows alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from maskmill.cli import app
from maskmill.engine.predictors.prompted.given_prompts import boxes_of, masks_of, points_of
from maskmill.engine.store.label_store import LabelStore
from maskmill.errors import UsageError

from ....models import sam_bundle
from ...inputs.rasters.test_geotiff import write_tiff
from .test_given_prompts import GREEN, RED, maps_of, picture

pytest.importorskip("rasterio")


def uri(row: int, column: int, height: int = 16, width: int = 24) -> str:
    return f"/scenes/large.tif::window={row},{column},{height},{width}"


def test_boxes_are_cut_to_windows(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text("image,label,x0,y0,x1,y1\nlarge.tif,cow,20,10,40,30\nlarge.tif,horse,2,3,4,5\n")
    prompts = boxes_of(tmp_path / "boxes.csv")

    def corners(row: int, column: int) -> list[tuple[int, list[list[float]]]]:
        return [(target.target, target.prompts[0].points.tolist()) for target in prompts.targets_of(uri(row, column))]

    assert corners(0, 0) == [(0, [[20, 10], [24, 16]]), (1, [[2, 3], [4, 5]])]
    assert corners(16, 24) == [(0, [[0, 0], [16, 14]])]
    assert corners(32, 0) == []
    assert prompts.targets_of("/scenes/large.tif")[0].prompts[0].points.tolist() == [[20, 10], [40, 30]]
    assert prompts.condition(uri(0, 0)) != prompts.condition(uri(16, 24))
    assert prompts.condition(uri(32, 0)) == ""
    assert prompts.check([uri(0, 0), uri(32, 0)]) == []


def test_a_box_may_name_a_window_itself(tmp_path: Path) -> None:
    name = "large.tif::window=16,24,16,24"
    (tmp_path / "boxes.csv").write_text(f'image,label,x0,y0,x1,y1\n"{name}",cow,2,3,4,5\n')
    (target,) = boxes_of(tmp_path / "boxes.csv").targets_of(uri(16, 24))
    assert target.prompts[0].points.tolist() == [[2, 3], [4, 5]]
    assert boxes_of(tmp_path / "boxes.csv").targets_of(uri(0, 0)) == []
    assert boxes_of(tmp_path / "boxes.csv").targets_of("/scenes/large.tif") == []


def test_a_row_of_a_window_adds_to_the_rows_of_its_file(tmp_path: Path) -> None:
    rows = 'large.tif,cow,2,3,4,5\n"large.tif::window=0,0,16,24",horse,6,7,8,9\n'
    (tmp_path / "boxes.csv").write_text(f"image,label,x0,y0,x1,y1\n{rows}")
    prompts = boxes_of(tmp_path / "boxes.csv")
    corners = [target.prompts[0].points.tolist() for target in prompts.targets_of(uri(0, 0))]
    assert sorted(corners) == [[[2, 3], [4, 5]], [[6, 7], [8, 9]]]
    assert prompts.check([uri(0, 0)]) == []


def test_a_point_on_a_border_is_in_one_window(tmp_path: Path) -> None:
    write_tiff(tmp_path / "large.tif", np.zeros((3, 32, 48), np.uint8))
    (tmp_path / "points.csv").write_text(
        "image,label,x,y,object\nlarge,cow,24,8,a\nlarge,cow,8,16,b\nlarge,cow,48,8,c\nlarge,cow,30,32,d\n"
    )
    prompts = points_of(tmp_path / "points.csv")

    def points(row: int, column: int) -> list[list[float]]:
        targets = prompts.targets_of(f"{tmp_path / 'large.tif'}::window={row},{column},16,24")
        return [point for target in targets for point in target.prompts[0].points.tolist()]

    assert points(0, 0) == []
    assert points(0, 24) == [[0, 8], [24, 8]]
    assert points(16, 0) == [[8, 0]]
    assert points(16, 24) == [[6, 16]]


def test_points_outside_of_a_window_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text(
        "image,label,x,y,positive,object\nlarge,cow,30,20,1,a\nlarge,cow,5,5,0,a\nlarge,cow,26,18,0,a\n"
    )
    prompts = points_of(tmp_path / "points.csv")
    (target,) = prompts.targets_of(uri(16, 24))
    assert target.prompts[0].points.tolist() == [[6, 4], [2, 2]]
    assert target.prompts[0].labels.tolist() == [1, 0]
    assert prompts.targets_of(uri(0, 0)) == [], "a point off the object alone says nothing"


def test_coarse_masks_of_a_file_give_each_window_its_part(tmp_path: Path) -> None:
    write_tiff(tmp_path / "large.tif", np.zeros((3, 40, 48), np.uint8))
    mask = np.zeros((40, 48), np.uint8)
    mask[10:30, 20:40] = 1
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks" / "large.png")
    (tmp_path / "masks" / "classes.txt").write_text("background\ncow\n")
    prompts = masks_of(tmp_path / "masks")
    window = f"{tmp_path / 'large.tif'}::window=16,24,16,24"
    (target,) = prompts.targets_of(window)
    assert target.coarse is not None
    assert np.array_equal(target.coarse, mask[16:32, 24:48] == 1)
    Image.fromarray(mask[:20, :24]).save(tmp_path / "masks" / "large.png")
    with pytest.raises(UsageError, match=r"large is 24x20 px, and large.tif, .* 48x40; they must be of the same size"):
        masks_of(tmp_path / "masks").targets_of(window)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A scene of four pictures, each with a red and a green object, and their boxes."""
    square = np.pad(picture(), ((0, 16), (0, 0), (0, 0)), constant_values=90)
    write_tiff(tmp_path / "scenes" / "large.tif", np.moveaxis(np.tile(square, (2, 2, 1)), -1, 0))
    rows = ["image,label,x0,y0,x1,y1"]
    for top in (0, 48):
        for left in (0, 48):
            for name, (row, column) in (("red", RED), ("green", GREEN)):
                box = (left + column.start, top + row.start, left + column.stop, top + row.stop)
                rows.append(f"large.tif,{name},{','.join(map(str, box))}")
    (tmp_path / "boxes.csv").write_text("\n".join(rows) + "\n")
    Image.fromarray(square).save(tmp_path / "alone.png")
    (tmp_path / "alone.csv").write_text("\n".join([rows[0], *rows[1:3]]).replace("large.tif", "alone.png") + "\n")
    sam_bundle(tmp_path)
    return tmp_path


def run(*command: str) -> str:
    result = CliRunner().invoke(app, list(command))
    assert result.exit_code == 0, result.output
    return result.output


def test_a_scene_labeled_by_windows_has_the_labels_of_its_parts(scene: Path) -> None:
    sam = str(scene / "sam")
    run("label-prompted", str(scene / "alone.png"), "--sam", sam, "--boxes", str(scene / "alone.csv"),
        "-o", str(scene / "alone"))  # fmt: skip
    run("label-prompted", str(scene / "scenes"), "--sam", sam, "--boxes", str(scene / "boxes.csv"), "--windows", "48",
        "-o", str(scene / "by windows"))  # fmt: skip
    (alone,) = maps_of(LabelStore.open(scene / "alone")).values()
    by_windows = maps_of(LabelStore.open(scene / "by windows"))
    names = {f"large.tif::window={row},{column},48,48" for row in (0, 48) for column in (0, 48)}
    assert set(by_windows) == names
    assert all(np.array_equal(label, alone) for label in by_windows.values())
    assert set(np.unique(alone).tolist()) == {0, 1, 2}
    run("export-labels", str(scene / "by windows"), "--format", "geotiff", "-o", str(scene / "maps"))
    assert [path.name for path in (scene / "maps").rglob("*.tif")] == ["large.tif"]


def test_segments_are_made_by_windows_and_image_level_labels_are_not(scene: Path) -> None:
    run("segment", str(scene / "scenes"), "--sam", str(scene / "sam"), "--windows", "48", "--set", "side=4",
        "-o", str(scene / "segments"))  # fmt: skip
    assert LabelStore.open(scene / "segments").num_inputs == 4
    (scene / "labels.csv").write_text("image,labels\nlarge.tif,red\n")
    command = ["label-prompted", str(scene / "scenes"), "--sam", str(scene / "sam"), "--cam", str(scene / "sam")]
    command += ["--image-labels", str(scene / "labels.csv"), "--windows", "48", "-o", str(scene / "refused")]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, UsageError)
    assert "describe whole files" in str(result.exception)
