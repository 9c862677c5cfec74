"""The live page: access, filters, reviews, and the page in a headless Chromium."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from maskmill.engine.model.png import decode_png
from maskmill.engine.report.server import live_store
from maskmill.engine.report.server.access import is_loopback
from maskmill.engine.report.server.answers import Answers
from maskmill.engine.report.server.app import make_app
from maskmill.engine.report.server.live_store import LiveStore, Query
from maskmill.engine.report.server.reviewing import save_review
from maskmill.engine.store.label_store import LabelStore, ReviewRow
from maskmill.errors import UsageError

from ...browser import Browser, find_browser
from ..labeling.test_export_labels import make_store
from .test_browser import picture_store

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")


@contextmanager
def serving(store: LabelStore, **options: Any) -> Iterator[str]:
    """The address of a live page of the store, served by a thread."""
    app = make_app(LiveStore(store.path), **options)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def ask(url: str, body: Any = None, **headers: str) -> tuple[int, str]:
    """Status and text of an answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def key_of(url: str) -> str:
    """The key that the page holds."""
    _, page = ask(url)
    return json.loads(page.split('id="page-data">')[1].split("</script>")[0])["key"]


def corrected_map(values: NDArray[Any], decided: NDArray[Any]) -> str:
    """A corrected map as the page sends it."""
    pixels = np.dstack([values, np.where(decided, 255, 0), np.zeros_like(values)]).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def test_loopback_addresses_are_told_apart() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "::1", "localhost", "127.9.9.9")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.3", "example.org", "localhost.example.org", "")))


def test_pages_of_other_hosts_are_refused(tmp_path: Path) -> None:
    with serving(make_store(tmp_path, 2)) as url:
        assert ask(url)[0] == 200
        assert ask(url, Host="evil.example:80")[0] == 403
        assert ask(url, Host="[::1")[0] == 403
        assert ask(url + "api/images", Host="127.0.0.1.evil.example")[0] == 403


def test_with_a_token_every_request_needs_it(tmp_path: Path) -> None:
    with serving(make_store(tmp_path, 2), token="secret") as url:
        assert ask(url)[0] == 401
        assert ask(url + "?token=wrong")[0] == 401
        assert ask(url, Cookie="maskmill-token=secret")[0] == 200
        jar = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with jar.open(url + "?token=secret") as answer:
            assert answer.url == url
            assert answer.status == 200


def test_without_review_nothing_can_be_written(tmp_path: Path) -> None:
    store = make_store(tmp_path, 2)
    with serving(store) as url:
        status, _ = ask(url + f"api/reviews/{store.ids()[0]}", {"verdict": "accepted"}, **{"X-Maskmill": key_of(url)})
        assert status == 404
    assert not LabelStore.open(store.path).current_reviews()


def test_a_correction_needs_the_key_of_the_page(tmp_path: Path) -> None:
    store = make_store(tmp_path, 2)
    id = store.ids()[0]
    with serving(store, reviewer="ana") as url:
        assert ask(url + f"api/reviews/{id}", {"verdict": "accepted"})[0] == 403
        assert ask(url + f"api/reviews/{id}", {"verdict": "accepted"}, **{"X-Maskmill": key_of(url)})[0] == 200
        assert ask(url + f"api/reviews/{id}", {"verdict": "nonsense"}, **{"X-Maskmill": key_of(url)})[0] == 400
        assert ask(url + f"api/reviews/{id}", ["x"], **{"X-Maskmill": key_of(url)})[0] == 400
        assert ask(url + "api/reviews/unknown", {"verdict": "accepted"}, **{"X-Maskmill": key_of(url)})[0] == 400
        assert ask(url + f"api/reviews/{'0' * 32}", {"verdict": "accepted"}, **{"X-Maskmill": key_of(url)})[0] == 400
    (review,) = LabelStore.open(store.path).current_reviews().values()
    assert (review.verdict, review.reviewer, review.origin) == ("accepted", "ana", "maskmill serve")


def test_malformed_questions_get_a_message(tmp_path: Path) -> None:
    with serving(make_store(tmp_path, 2)) as url:
        for path in ("api/images?low=x", "api/images?offset=inf", "api/images?target=99", "api/images?order=best",
                     "api/pictures/..%2Frun.json", "api/pictures/abc"):  # fmt: skip
            status, text = ask(url + path)
            assert status in (400, 404), path
            assert "Traceback" not in text


def test_images_are_filtered_and_ordered(tmp_path: Path) -> None:
    store = picture_store(tmp_path)
    live = LiveStore(store.path)
    snapshot = live.snapshot()
    names = [Path(uri).stem for uri in snapshot.overview.uris]

    def found(**query: Any) -> list[str]:
        return [names[number] for number in live.find(snapshot, Query(**query))]

    assert found(order="doubt") == [f"photo {index}" for index in range(6)]
    assert sorted(found(target=2)) == ["photo 1", "photo 3", "photo 5"]
    assert found(low=0.9) == []
    assert found(score=0.507) == ["photo 0", "photo 1"]
    assert found(name="PHOTO 4") == ["photo 4"]
    with pytest.raises(UsageError, match="order"):
        found(order="best")  # type: ignore[arg-type]


def test_the_page_follows_a_store_that_is_written_to(tmp_path: Path) -> None:
    store = picture_store(tmp_path, 4)
    seconds = [0.0]
    live = LiveStore(store.path, clock=lambda: seconds[0])
    before = live.snapshot()
    store.commit_reviews([ReviewRow(id=store.ids()[0], reviewer="ana", time=1, verdict="accepted")])
    assert live.snapshot() is before
    seconds[0] = 10
    after = live.snapshot()
    assert after.version != before.version
    assert len(after.overview.reviews) == 1


def test_a_correction_changes_the_decided_pixels_alone(tmp_path: Path) -> None:
    store = make_store(tmp_path, 1)
    (id,) = store.ids()
    before, _ = store.read_id(id)
    values, decided = np.full(before.shape, 1, np.uint8), np.zeros(before.shape, bool)
    decided[0, :3] = True
    values[0, 2] = 255
    save_review(store, id, "corrected", reviewer="ana", picture=corrected_map(values, decided))
    label, weight = LabelStore.open(store.path).read_id(id)
    assert label[0, :3].tolist() == [1, 1, 255]
    np.testing.assert_array_equal(label[~decided], before[~decided])
    assert weight[0, :3].tolist() == [255, 255, 0]
    # a second correction keeps the pixels of the first
    again = np.zeros(before.shape, bool)
    again[5, 5] = True
    save_review(store, id, "corrected", reviewer="ben", picture=corrected_map(np.zeros_like(values), again))
    label, weight = LabelStore.open(store.path).read_id(id)
    assert label[0, :3].tolist() == [1, 1, 255]
    assert (label[5, 5], weight[5, 5]) == (0, 255)
    (review,) = LabelStore.open(store.path).current_reviews().values()
    assert review.region is not None
    assert (decode_png(review.region) == 255).sum() == 4


def test_a_correction_goes_to_the_store_that_holds_the_image(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    paths = [make_store(tmp_path / "a", 2).path, make_store(tmp_path / "b", 4).path]  # two images are in both
    live = LiveStore(paths)
    answers = Answers(live, reviewer="ana")
    listed = answers.images({})
    assert listed["total"] == 4
    first, last = (LabelStore.open(paths[1]).find(name).id or "" for name in ("0.png", "3.png"))
    for id in (first, last):
        assert answers.review(id, json.dumps({"verdict": "accepted"}).encode())["review"] == "accepted"
    assert [set(LabelStore.open(path).current_reviews()) for path in paths] == [{first}, {first, last}]
    assert live.snapshot(fresh=True).overview.reviews == {first: "accepted", last: "accepted"}


def test_a_correction_of_another_size_or_with_unknown_classes_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path, 1)
    (id,) = store.ids()
    everywhere = np.ones((6, 9), bool)
    for picture, text in (
        (corrected_map(np.zeros((3, 3)), np.ones((3, 3))), "3x3 px"),
        (corrected_map(np.full((6, 9), 7), everywhere), "holds 7"),
        ("data:image/png;base64,AAAA", "PNG data URL"),
        ("data:image/png;base64,***", "PNG data URL"),
        (None, "PNG data URL"),
    ):
        with pytest.raises(UsageError, match=text):
            save_review(store, id, "corrected", reviewer="ana", picture=picture)
    assert not store.current_reviews()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if find_browser() is None:
        pytest.skip("no Chromium on this machine")
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def stage_point(browser: Browser, x: float, y: float) -> tuple[float, float]:
    """A place of the picture, in shares of its size, as a place of the window."""
    return tuple(
        browser.run(
            "(() => { const box = maskmill.find('canvas').getBoundingClientRect(), {view, picture} = maskmill.state,"
            " ratio = maskmill.find('canvas').width / box.width;"
            f" return [box.left + (view.left + {x} * picture.width * view.scale) / ratio,"
            f" box.top + (view.top + {y} * picture.height * view.scale) / ratio]; }})()"
        )
    )


def test_corrections_that_are_not_saved_are_left_only_if_the_person_agrees(browser: Browser, tmp_path: Path) -> None:
    store = picture_store(tmp_path)
    with serving(store, reviewer="Ada") as url:
        browser.open(url)
        browser.wait("maskmill.state.picture !== null")
        first = browser.run("maskmill.state.picture.id")
        other = "document.querySelector('.thumbs button[aria-current=false]')"
        browser.run("window.asked = []; window.confirm = (text) => { asked.push(text); return false; }")
        browser.run("maskmill.find('stage').scrollIntoView({ block: 'center', behavior: 'instant' })")
        browser.run("maskmill.find('stage').focus()")
        browser.run("maskmill.find('paint').value = '2'")
        browser.press("b")
        browser.drag(stage_point(browser, 0.75, 0.5), stage_point(browser, 0.9, 0.5))
        browser.run(f"{other}.click()")
        assert browser.run("asked") == ["The corrections of this image are not saved. Leave it without saving?"]
        assert browser.run("maskmill.state.picture.id") == first
        assert browser.run("dispatchEvent(new Event('beforeunload', { cancelable: true }))") is False
        browser.run("window.confirm = () => true")
        browser.run(f"{other}.click()")
        browser.wait(f"maskmill.state.picture.id !== '{first}'")
        assert browser.run("dispatchEvent(new Event('beforeunload', { cancelable: true }))") is True
        assert list(store.reviews()) == []


def test_a_person_corrects_an_image_in_the_browser(browser: Browser, tmp_path: Path) -> None:
    store = picture_store(tmp_path, 4)
    with serving(store, reviewer="ana") as url:
        browser.open(url)
        browser.wait("maskmill.state.picture !== null")
        browser.run("maskmill.find('stage').scrollIntoView({ block: 'center', behavior: 'instant' })")
        browser.run("maskmill.find('stage').focus()")
        browser.run("maskmill.find('paint').value = '2'")
        browser.press("b")
        browser.run("maskmill.find('brush-size').value = '6'")
        browser.drag(stage_point(browser, 0.75, 0.5), stage_point(browser, 0.9, 0.5))
        painted = browser.run("maskmill.state.maps.label.filter((value) => value === 2).length")
        assert painted > 40
        browser.press("z")
        assert browser.run("maskmill.state.maps.label.filter((value) => value === 2).length") == 0
        browser.press("f")
        browser.drag(stage_point(browser, 0.9, 0.5))
        assert browser.run("maskmill.state.maps.label.filter((value) => value === 2).length") == 20 * 40
        browser.press("e")
        browser.drag(stage_point(browser, 0.5, 0.5))
        browser.press("s")
        browser.wait("maskmill.find('said').textContent.startsWith('Saved')")
        assert browser.run("maskmill.state.picture.review") == "corrected"
        assert not browser.errors
        assert all(request.startswith((url, "data:")) for request in browser.requests)
    current = LabelStore.open(store.path)
    (review,) = current.current_reviews().values()
    assert review.reviewer == "ana"
    label, weight = current.read_id(review.id)
    assert (label[:, 40:] == 2).all()
    assert label[20, 30] == 255
    assert weight[20, 30] == 0
    assert (label[:, :20] == 0).all()
    assert (weight[:, 40:] == 255).all()


def test_the_browser_pages_and_filters_the_whole_store(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_store, "PAUSE", 0.0)  # the server looks at the store for every answer
    monkeypatch.setattr(live_store, "SHARE", float("inf"))
    store = picture_store(tmp_path, 70)
    with serving(store) as url:
        browser.open(url)
        browser.wait("maskmill.state.picture !== null")
        assert browser.run("maskmill.find('thumbs').children.length") == 60
        browser.run("maskmill.find('forward').click()")
        browser.wait("maskmill.find('thumbs').children.length === 10")
        browser.run(
            "(() => { const filters = maskmill.find('filters'); filters.target.value = '2';"
            " filters.target.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )
        browser.wait("maskmill.find('range').textContent === '1 to 35 of 35'")
        assert browser.run("maskmill.find('review')") is None
        store.commit_reviews([ReviewRow(id=store.ids()[0], reviewer="ana", time=1, verdict="accepted")])
        browser.run("live.follow()")
        assert "Reviewed by people" in browser.run("maskmill.find('summary').textContent")
        assert not browser.errors
