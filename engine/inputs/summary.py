"""Summary of a data set that was read: images used, files skipped, photos without a map, maps without a photo."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import install_command
from .image_formats import OPTIONAL_ENDINGS

NUM_EXAMPLES = 3
"""Number of example names per kind in a summary."""
MAX_NAMES = 10_000
"""Most names of dark images that a summary keeps, so that a run over millions of them stays small."""
LOW_ACCURACY = 0.5
"""Accuracy of the model below which a summary warns that the assumed label values may be wrong."""
LARGE_IGNORED_SHARE = 0.25
"""Share of ignored label pixels at which the summary mentions them."""


@dataclass(kw_only=True)
class SourceSummary:
    """Counts of the files that a command used and skipped."""

    images: int = 0
    """Images used."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Files skipped, by kind: an ending such as ``.heic``, ``resource forks`` or ``label maps``."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Images that could not be read, by the kind of :class:`maskmill.errors.ImageError`."""
    without_data: int = 0
    """Images, among :attr:`images`, that were skipped because none of their pixels has data."""
    without_map: Sequence[str] = ()
    """Images without a label map."""
    without_image: Sequence[str] = ()
    """Label maps without an image."""
    low_range: list[str] = field(default_factory=list)
    """Images that use less than 1/16 of their type's range, the first :data:`MAX_NAMES` of them."""
    hint: str = ""
    """Reason why an image has no map, with both names, if a map is similar."""
    rules: Mapping[str, int] = field(default_factory=dict)
    """Images paired by each naming rule; empty if there are no label maps."""
    labels_format: str = ""
    """Format of the labels and the decisions of its reader; empty for label maps."""
    assumed: bool = False
    """True if labels are only assumed to be the model's classes in order."""
    turned: int = 0
    """Images that were rotated by their EXIF orientation, although their maps have none."""
    as_stored: bool = False
    """True if the maps were rotated like their images."""
    label_pixels: int = 0
    """Pixels of the label maps read so far."""
    ignored_pixels: int = 0
    """Pixels among them that the taxonomy ignores."""

    @property
    def ignored_share(self) -> float | None:
        """Share of label pixels that are ignored; None before a map is read."""
        return self.ignored_pixels / self.label_pixels if self.label_pixels else None

    def count_labels(self, targets: NDArray[Any], ignore: int) -> None:
        """Add the pixels of a map of target indices (H, W); ``ignore`` is the ignore index."""
        self.label_pixels += targets.size
        self.ignored_pixels += int(np.count_nonzero(targets == ignore))

    def warner(self, uri: str) -> Callable[[str], None]:
        """Return the ``warn`` argument of :func:`maskmill.engine.inputs.images.decode_image` for an image."""
        return lambda _: self.note_low_range([uri])

    def note_low_range(self, uris: Iterable[str]) -> None:
        """Add images that use less than 1/16 of their type's range, up to :data:`MAX_NAMES` in all."""
        self.low_range += islice(uris, max(0, MAX_NAMES - len(self.low_range)))

    def line(self, noun: str = "images") -> str:
        """Return everything in one line of text; ``noun`` is the name for the counted images."""
        parts = [f"{self.images - self.without_data:,} {noun} used"]
        if self.without_data:
            parts.append(f"{self.without_data:,} without data")
        if self.labels_format:
            parts.append(f"labels read as {self.labels_format}")
        if self.assumed:
            parts.append("label i assumed to be class i of the model, because there is no --taxonomy and no class list")
        unusual = {rule: number for rule, number in self.rules.items() if rule not in ("same name", "other ending")}
        if unusual:
            parts.append("paired by " + ", ".join(f"{rule} ({number:,})" for rule, number in unusual.items()))
        if self.skipped:
            kinds = ", ".join(f"{number:,} {_kind(kind)}" for kind, number in self.skipped.most_common())
            parts.append(f"files skipped: {kinds}")
        if self.rejected:
            parts.append("not readable: " + ", ".join(f"{number:,} {kind}" for kind, number in self.rejected.items()))
        if self.low_range:
            bound = "at least " if len(self.low_range) >= MAX_NAMES else ""
            parts.append(
                "photos that use less than 1/16 of their type's range and become nearly black: "
                f"{bound}{_some(self.low_range)}; state the bits that are used, as in --bit-depth 12"
            )
        if self.without_map:
            parts.append(f"photos without a map: {_some(self.without_map)}{self.hint and f' ({self.hint})'}")
        if self.without_image:
            parts.append(f"maps without a photo: {_some(self.without_image)}")
        if self.ignored_share is not None:
            parts.append(f"{self.ignored_share:.1%} of the label pixels ignored")
            if self.ignored_share >= LARGE_IGNORED_SHARE:
                parts[-1] += ", a large share: " + (
                    "correct whole images to measure what the reviews leave without a label"
                    if self.labels_format.startswith("reviews")
                    else "check [labels] in the taxonomy"
                )
        if self.as_stored:
            parts.append("maps turned like their photos (--labels-as-stored)")
        elif self.turned:
            parts.append(
                f"{self.turned:,} photos turned by their EXIF orientation and their maps not: if the maps show the "
                "photos as stored, give --labels-as-stored"
            )
        return "; ".join(parts)

    def doubt(self, accuracy: float | None) -> str:
        """Return a warning if the labels' meaning is only assumed and the model's ``accuracy`` on them is low.

        ``accuracy`` is that of the model's labels, None if it has none. Empty if there is no doubt.
        """
        if not self.assumed or (accuracy is not None and accuracy >= LOW_ACCURACY):
            return ""
        evidence = "the model labels none of the pixels" if accuracy is None else f"the accuracy is only {accuracy:.3f}"
        return (
            f"label i was assumed to be class i of the model, and {evidence}: the labels probably have other classes; "
            "give "
            "--taxonomy FILE (`maskmill taxonomy` drafts one), or a class list beside the labels"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain data, with every name."""
        return {
            "images": self.images,
            "skipped": dict(self.skipped),
            "rejected": dict(self.rejected),
            "without_data": self.without_data,
            "without_map": list(self.without_map),
            "without_image": list(self.without_image),
            "low_range": list(self.low_range),
            "hint": self.hint,
            "rules": dict(self.rules),
            "labels_format": self.labels_format,
            "assumed": self.assumed,
            "turned": self.turned,
            "labels_as_stored": self.as_stored,
            "label_pixels": self.label_pixels,
            "ignored_share": self.ignored_share,
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> SourceSummary:
        """Return the summary of :meth:`to_json`'s data."""
        share = raw["ignored_share"] or 0.0
        return cls(
            images=raw["images"],
            skipped=Counter(raw["skipped"]),
            rejected=Counter(raw["rejected"]),
            without_data=raw["without_data"],
            without_map=raw["without_map"],
            without_image=raw["without_image"],
            low_range=list(raw["low_range"]),
            hint=raw["hint"],
            rules=raw["rules"],
            labels_format=raw["labels_format"],
            assumed=raw["assumed"],
            turned=raw["turned"],
            as_stored=raw["labels_as_stored"],
            label_pixels=raw["label_pixels"],
            ignored_pixels=round(share * raw["label_pixels"]),
        )


def _kind(kind: str) -> str:
    if kind in OPTIONAL_ENDINGS:
        return f"{kind} ({OPTIONAL_ENDINGS[kind]}: {install_command('heif')})"
    return kind


def _some(names: Sequence[str]) -> str:
    examples = ", ".join("/".join(name.split("/")[-2:]) for name in names[:NUM_EXAMPLES])
    return f"{len(names):,}, e.g. {examples}" if len(names) > NUM_EXAMPLES else f"{len(names):,}: {examples}"
