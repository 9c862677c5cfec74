"""The report in a headless Chromium: gallery, slider, filter, keyboard, zoom, and nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import maskmill
from maskmill.engine.model.png import encode_png
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.store.label_store import InputRow, LabelRow, LabelStore, content_id

from ...browser import Browser, find_browser
from ...builders import encoded

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium on this machine")
CLASSES = Taxonomy(targets=("ground", "cow <b>", "sky"), background=0, model=(0, 1, 2))
HEIGHT, WIDTH = 40, 60


def picture_store(folder: Path, num: int = 6) -> LabelStore:
    """A store of photos with a third of ground, of cow, and of pixels without a label; odd ones show sky as well."""
    store = LabelStore.create(folder / "store", {"classes": CLASSES.to_json(), "select": "argmax"})
    (folder / "photos").mkdir()
    labels, inputs = [], []
    for index in range(num):
        data = encoded(np.full((HEIGHT, WIDTH, 3), 40 * index % 251, np.uint8), "PNG")
        path = folder / "photos" / f"photo {index}.png"
        path.write_bytes(data)
        label = np.repeat(np.array([[0, 1, 255]], np.uint8), 20, axis=1).repeat(HEIGHT, axis=0)
        if index % 2:
            label[:10, :20] = 2
        weight = np.where(label == 255, 0, 200).astype(np.uint8)
        labels.append(
            LabelRow(
                id=content_id(data),
                width=WIDTH,
                height=HEIGHT,
                label=encode_png(label),
                weight=encode_png(weight),
                counts=np.bincount(label[label != 255], minlength=3),
                kept=float((label != 255).mean()),
                confidence=0.5 + index / 200,
            )
        )
        inputs.append(InputRow(uri=str(path), size=1, stamp="", id=content_id(data), error=None, message=None))
    store.commit(labels, inputs)
    return store


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Browser]:
    """A browser that shows a report; it must end without an error and without a request to anywhere."""
    path = maskmill.report(picture_store(tmp_path), tmp_path / "report.html")
    browser.resize(1280, 900)
    browser.open(path.as_uri())
    browser.wait("maskmill.state.picture !== null")
    browser.run("maskmill.find('stage').scrollIntoView({ block: 'center', behavior: 'instant' })")
    yield browser
    assert not browser.errors
    assert [url for url in browser.requests if not url.startswith("data:")] == [path.as_uri()]


def color_at(page: Browser, x: float, y: float) -> list[int]:
    """The color of the stage at a place given in shares of the picture."""
    return page.run(
        "(() => { const {view, picture} = maskmill.state, copy = document.createElement('canvas')"
        ".getContext('2d', {willReadFrequently: true});"
        f" copy.drawImage(maskmill.find('canvas'), -Math.round(view.left + {x} * picture.width * view.scale),"
        f" -Math.round(view.top + {y} * picture.height * view.scale));"
        " return [...copy.getImageData(0, 0, 1, 1).data.slice(0, 3)]; })()"
    )


def test_the_slider_fades_from_the_photo_to_labels_and_weights(page: Browser) -> None:
    assert page.run("[...maskmill.find('layer-names').children].map((button) => button.textContent)") == [
        "Photo",
        "Labels",
        "Weights",
    ]
    colors = []
    for level in (0, 0.5, 1, 2):
        page.run(
            f"(() => {{ const slider = maskmill.find('slider'); slider.value = {level};"
            " slider.dispatchEvent(new Event('input')); })()"
        )
        colors.append(color_at(page, 0.5, 0.5))
    photo, half, labels, weights = (np.array(color) for color in colors)
    assert np.ptp(photo) == 0
    cow = np.array([0x00, 0x72, 0xB2])
    assert np.abs(labels - (0.38 * photo + 0.62 * cow)).max() < 4
    assert np.abs(half - (photo + labels) / 2).max() < 4
    assert np.abs(weights - labels).max() > 20


def test_a_class_is_hidden_and_shown_again(page: Browser) -> None:
    shown = color_at(page, 0.5, 0.5)
    chip = "[...maskmill.find('chips').children].find((chip) => chip.textContent.startsWith('cow <b>'))"
    page.run(f"{chip}.click()")
    hidden = color_at(page, 0.5, 0.5)
    assert np.ptp(hidden) == 0
    page.run(f"{chip}.click()")
    assert color_at(page, 0.5, 0.5) == shown


def test_the_filter_leaves_images_with_the_class(page: Browser) -> None:
    before = page.run("maskmill.find('thumbs').children.length")
    page.run(
        "(() => { const filter = maskmill.find('class-filter'); filter.value = '2';"
        " filter.dispatchEvent(new Event('change')); })()"
    )
    names = page.run("[...maskmill.find('thumbs').children].map((thumb) => thumb.getAttribute('aria-label'))")
    assert before == 6
    assert sorted(names) == ["photo 1.png", "photo 3.png", "photo 5.png"]


def test_groups_and_thumbnails_choose_the_picture(page: Browser) -> None:
    page.run("document.querySelector('[data-group=best]').click()")
    page.run("maskmill.find('thumbs').children[2].click()")
    name = page.run("maskmill.find('thumbs').children[2].getAttribute('aria-label')")
    page.wait(f"maskmill.find('name').textContent === {name!r}")
    assert page.run("maskmill.find('thumbs').children[2].getAttribute('aria-current')") == "true"


def test_keys_move_through_images_layers_and_sizes(page: Browser) -> None:
    page.run("maskmill.find('thumbs').children[0].click()")
    page.wait("maskmill.state.picture === maskmill.page.images[maskmill.page.groups[0].images[0]]")
    page.run("maskmill.find('stage').focus()")
    page.press("ArrowRight")
    page.wait("maskmill.state.picture === maskmill.page.images[maskmill.page.groups[0].images[1]]")
    page.press("1")
    assert page.run("maskmill.state.level") == 0
    page.press("+")
    assert page.run("maskmill.state.zoom") == 1.5
    page.press("0")
    assert page.run("maskmill.state.zoom") == 1


def test_a_larger_picture_follows_the_mouse(page: Browser) -> None:
    page.run("maskmill.zoomBy(4)")
    left, top = page.run(
        "(() => { const box = maskmill.find('canvas').getBoundingClientRect(); return [box.left, box.top]; })()"
    )
    page.drag((left + 300, top + 200), (left + 360, top + 240))
    assert page.run("[maskmill.state.x, maskmill.state.y]") == [60, 40]


def test_the_class_under_the_pointer_is_named(page: Browser) -> None:
    box = page.run(
        "(() => { const box = maskmill.find('canvas').getBoundingClientRect();"
        " return [box.left + box.width / 2, box.top + box.height / 2, box.right - 60]; })()"
    )
    page.drag((box[0], box[1]), (box[0] + 1, box[1]))
    assert page.run("maskmill.find('under').textContent") == "cow <b>, weight 0.78"
    page.drag((box[2], box[1]), (box[2] + 1, box[1]))
    assert page.run("maskmill.find('under').textContent") == "no label"


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_no_width_needs_sideways_scrolling(page: Browser, width: int) -> None:
    page.resize(width, 844)
    assert page.run("document.documentElement.scrollWidth") <= width


def test_both_color_schemes_have_readable_text(page: Browser) -> None:
    for scheme, is_dark in (("light", False), ("dark", True)):
        page.use_scheme(scheme)
        colors = page.run(
            "(() => { const style = getComputedStyle(document.body);"
            " return [style.color, style.backgroundColor].map((color) => color.match(/\\d+/g).map(Number)); })()"
        )
        ink, paper = (np.mean(color) for color in colors)
        assert (ink > paper) == is_dark
        assert abs(ink - paper) > 150
    page.use_scheme("light")


def test_the_report_of_100000_images_is_as_short_as_one_of_a_few(browser: Browser, tmp_path: Path) -> None:
    store = picture_store(tmp_path)
    (example,) = store.take(store.ids()[:1])
    ids = [content_id(str(number).encode()) for number in range(100_000)]
    for start in range(0, len(ids), 50_000):
        part = ids[start : start + 50_000]
        labels = [LabelRow(**{**vars(example), "id": id}) for id in part]
        inputs = [InputRow(uri=f"/gone/{id}.jpg", size=1, stamp="", id=id, error=None, message=None) for id in part]
        store.commit(labels, inputs)
    path = maskmill.report(store, tmp_path / "report.html")
    assert path.stat().st_size < 5e6
    browser.open(path.as_uri())
    assert browser.run("document.querySelectorAll('*').length") < 5000
    assert "100,006 images" in browser.run("document.querySelector('h1').textContent")
