"""Answers of the live page as plain values: the page, its figures, lists of images, pictures, and reviews."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from ....checks import check_choice
from ....errors import UsageError
from ...inputs.archives import split_member
from ...store.schema import Verdict
from ..page.gallery import picture
from ..page.render import page_context, page_data, render, render_part
from .live_store import LiveStore, Query, Snapshot
from .reviewing import MOST_CLASSES, save_review

PAGE = 60
"""Images per page."""
LARGEST_PICTURE = 1600
"""Longest side of a picture for viewing, in pixels; pictures to correct have full size."""
SECONDS = 5
"""Seconds between two polls of the page while the store is being written to."""

_ORDERS = (("doubt", "most doubtful"), ("least", "least labeled"), ("most", "most labeled"), ("stored", "as stored"))


class Answers:
    """Answers of one live page; any thread may call them.

    ``reviewer`` names the person whose corrections are saved; None: the page is read-only. Raises :class:`UsageError`
    for corrections of more classes than a map in the browser can hold.
    """

    def __init__(self, live: LiveStore, *, reviewer: str | None = None) -> None:
        if reviewer is not None and live.classes.num_targets > MOST_CLASSES:
            raise UsageError(
                f"corrections in the browser work for up to {MOST_CLASSES} classes, the store has "
                f"{live.classes.num_targets}; use `maskmill export-labels` and `import-labels` instead"
            )
        self.key = secrets.token_urlsafe(16)
        """Secret that each correction must contain; only the page knows it."""
        self._live = live
        self._reviewer = reviewer
        self._context_of: tuple[str, dict[str, Any]] | None = None

    def page(self) -> str:
        """Return the page."""
        snapshot, classes = self._live.snapshot(), self._live.classes
        scripts = ["viewer.js", "live.js", *(() if self._reviewer is None else ("review.js",))]
        data = page_data(classes, version=snapshot.version, size=PAGE, seconds=SECONDS, key=self.key)
        orders = [*_ORDERS]
        if "drift" in snapshot.store.run:
            orders.append(("unlike", "least like calibration"))
        return render(
            "live.html",
            scripts,
            data,
            connect=True,
            orders=orders,
            classes=classes.targets,
            review=self._reviewer is not None,
            reviewer=self._reviewer or "",
            **self._context(snapshot),
        )

    def state(self) -> dict[str, Any]:
        """Return the store's version and the figures of the page."""
        snapshot = self._live.snapshot()
        context = self._context(snapshot)
        return {
            "version": snapshot.version,
            "time": render_part("{{ clock }}"),
            "summary": render_part("summary.html", **context),
            "sections": render_part("figures.html", **context),
        }

    def images(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        """Return a page of the images that fit; the parameters are those of the page's form, and ``offset``."""
        snapshot = self._live.snapshot()
        query = Query(
            order=parameters.get("order") or "doubt",  # type: ignore[arg-type]
            target=int(_number(parameters, "target", 0)) if parameters.get("target") else None,
            low=_number(parameters, "low", 0) / 100,
            high=_number(parameters, "high", 100) / 100,
            score=_number(parameters, "score", 1),
            review=parameters.get("review", ""),
            name=parameters.get("name", ""),
        )
        numbers = self._live.find(snapshot, query)
        offset = max(0, int(_number(parameters, "offset", 0)))
        return {
            "total": len(numbers),
            "images": [self._entry(snapshot, int(number)) for number in numbers[offset : offset + PAGE]],
        }

    def picture(self, id: str, parameters: Mapping[str, str]) -> dict[str, Any]:
        """Return a picture; the parameter ``side`` limits its size."""
        return self._picture(id, int(_number(parameters, "side", 0)))

    def review(self, id: str, body: bytes) -> dict[str, Any]:
        """Save a decision, a JSON object with ``verdict`` and perhaps ``map``, and return the picture that results."""
        try:
            values = json.loads(body)
            verdict, corrected = values["verdict"], values.get("map")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise UsageError("expected a JSON object with a verdict, and a map if it is corrected") from None
        check_choice("verdict", verdict, Verdict)
        if not isinstance(corrected, str | None):
            raise UsageError("expected the corrected map as text, a PNG data URL")
        store = self._live.open()
        if not re.fullmatch("[0-9a-f]{32}", id) or not store.has_id(id):
            raise UsageError("the store holds no such image; reload the page")
        save_review(store, id, verdict, reviewer=self._reviewer or "", picture=corrected, origin="maskmill serve")
        return self._picture(id, 0, fresh=True)

    def _entry(self, snapshot: Snapshot, number: int) -> dict[str, Any]:
        overview = snapshot.overview
        id, uri = overview.ids[number], overview.uris[number]
        return {
            "id": id,
            "name": PurePosixPath((split_member(uri) or ("", uri))[1]).name,
            "kept": float(overview.kept[number]),
            "score": float(overview.top_score[number]),
            "review": overview.reviews.get(id),
        }

    def _picture(self, id: str, side: int, *, fresh: bool = False) -> dict[str, Any]:
        snapshot = self._live.snapshot(fresh=fresh)
        if not snapshot.reader.has(id):
            raise UsageError(f"{self._live.path} holds no image {id[:64]!r}")
        editing = self._reviewer is not None and not side
        largest = 1 << 30 if editing else LARGEST_PICTURE
        return picture(
            snapshot.reader,
            id,
            self._live.classes,
            review=snapshot.overview.reviews.get(id),
            side=min(side or largest, largest),
            every_class=editing,
        )

    def _context(self, snapshot: Snapshot) -> dict[str, Any]:
        if self._context_of is None or self._context_of[0] != snapshot.version:
            context = page_context(snapshot.store, snapshot.overview, calibration=self._live.calibration)
            self._context_of = snapshot.version, context
        return dict(self._context_of[1])


def _number(parameters: Mapping[str, str], name: str, default: float) -> float:
    text = parameters.get(name) or str(default)
    try:
        number = float(text)
    except ValueError:
        raise UsageError(f"{name} must be a number, got {text[:40]!r}") from None
    if not abs(number) < 1e12:
        raise UsageError(f"{name} must be a number, got {text[:40]!r}")
    return number
