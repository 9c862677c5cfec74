"""Take the screenshots of docs/report.md: the report and the live page of the demo's Earth, in a headless Chromium.

    maskmill demo --no-student
    python benchmarks/screenshots.py demo-output/earth

The pictures show NASA's Blue Marble alone, which is free to use. The browser is driven by ``tests/browser.py``.
"""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import maskmill
from maskmill.engine.calibration.calibration import Calibration
from maskmill.engine.report.server.app import make_app
from maskmill.engine.report.server.live_store import LiveStore

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from browser import Browser  # noqa: E402

QUALITY = 60
PAUSE = "new Promise((done) => setTimeout(done, 900))"


@contextmanager
def live_page(store: Path, calibration: Path) -> Iterator[str]:
    """Yield the address of a live page with corrections."""
    import uvicorn

    app = make_app(LiveStore(store, Calibration.load(calibration)), reviewer="ana")
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


def show(browser: Browser, part: str, above: int = 28) -> None:
    """Scroll to a part of the page and let it be drawn."""
    browser.run(f"scrollTo({{top: document.querySelector('{part}').offsetTop - {above}, behavior: 'instant'}})")
    browser.run(PAUSE)


def take(browser: Browser, path: Path) -> None:
    browser.screenshot(path, format="webp", quality=QUALITY)
    print(f"{path} {path.stat().st_size / 1000:.0f} kB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("earth", type=Path, help="Folder that `maskmill demo` wrote.")
    parser.add_argument("--store", type=Path, default=None, help="Label store; that of the demo by default.")
    parser.add_argument("--calibration", type=Path, default=None)
    parser.add_argument("--output", type=Path, default=Path("docs/pictures"))
    options = parser.parse_args()
    earth, output = options.earth, options.output
    store = options.store or earth / "labels" / "conformal"
    calibration = options.calibration or earth / "calibration.json"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, Browser(Path(name) / "profile") as browser:
        page = maskmill.report(
            store,
            Path(name) / "report.html",
            labels=earth / "scored" / "labels",
            calibration=calibration,
            model=earth / "bundle",
        )
        browser.resize(1120, 760)
        browser.use_scheme("light")
        browser.open(page.as_uri())
        browser.wait("maskmill.state.picture !== null")
        browser.run("document.querySelector('[data-group=classes]').click()")
        browser.run(PAUSE)
        take(browser, output / "report-top.webp")
        show(browser, "#coverage")
        take(browser, output / "report-coverage.webp")
        browser.use_scheme("dark")
        browser.run("maskmill.setLevel(2)")
        show(browser, "#gallery")
        take(browser, output / "report-gallery.webp")
        browser.resize(390, 780, phone=True)
        browser.run("scrollTo(0, 0)")
        browser.run(PAUSE)
        take(browser, output / "report-phone.webp")
        browser.resize(1120, 760)
        browser.use_scheme("light")
        with live_page(store, calibration) as url:
            browser.open(url)
            browser.wait("maskmill.state.picture !== null")
            browser.run("maskmill.find('stage').focus({preventScroll: true})")
            browser.press("b")
            show(browser, "form.filter", 20)
            take(browser, output / "serve-review.webp")
        if browser.errors:
            print(browser.errors)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
