"""Every error a user can meet.

Each message says what was expected, what was got and what to do. The command line prints it on one line and exits
with 2 where the call was wrong (:class:`UsageError`) and 1 where the work failed; ``--debug`` shows the traceback.

::

    MaskmillError
    ├── UsageError            an option, argument or file does not say what it must
    │   ├── TaxonomyError     the class mapping is inconsistent, or does not know a label
    │   └── MissingPackageError   an optional package is needed (names the extra to install)
    ├── BundleError           a model bundle cannot be made, read or trusted
    │   ├── ExportError       a model cannot be exported, converted or built
    │   └── GateError         a converted model is not the same as its original, or was not shown to be
    ├── SessionError          a model cannot be loaded or run
    ├── SourceError           a source of images cannot be listed or read at all
    ├── ImageError            one image cannot be decoded (carries a kind; recorded, the run goes on)
    ├── CalibrationError      thresholds cannot be computed
    │   └── CalibrationMismatch   a calibration was made under other conditions than it is used
    ├── StoreError            the label store cannot be opened, read or written
    │   └── StoreMismatch     the store holds labels made with other options
    └── TrainingError         a student cannot be trained, resumed or read
"""

from __future__ import annotations

__all__ = [
    "BundleError",
    "CalibrationError",
    "CalibrationMismatch",
    "ExportError",
    "GateError",
    "ImageError",
    "MaskmillError",
    "MissingPackageError",
    "SessionError",
    "SourceError",
    "StoreError",
    "StoreMismatch",
    "TaxonomyError",
    "TrainingError",
    "UsageError",
]


class MaskmillError(Exception):
    """Base of every error maskmill raises for a reason a user can act on."""

    exit_code = 1


class UsageError(MaskmillError, ValueError):
    """An option, argument or input file does not say what it must."""

    exit_code = 2


class TaxonomyError(UsageError):
    """The class mapping is inconsistent, or does not know a label it met."""


class MissingPackageError(UsageError, ImportError):
    """An optional package is needed; the message holds the line that installs it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package '{package}'; install it with: pip install 'maskmill[{extra}]'")
        self.package = package
        self.extra = extra


class BundleError(MaskmillError):
    """A model bundle cannot be made, read or trusted."""


class ExportError(BundleError):
    """A model cannot be exported, converted to another precision or built into an engine."""


class GateError(BundleError):
    """A converted model differs from its original beyond tolerance, or was never shown not to."""


class SessionError(MaskmillError):
    """A model cannot be loaded or run."""


class SourceError(MaskmillError):
    """A source of images cannot be listed, or one of its entries cannot be read."""


class ImageError(MaskmillError):
    """One image cannot be decoded; the run records it and goes on.

    ``kind`` is one of ``empty``, ``not-an-image``, ``truncated``, ``too-large``, ``unsupported``, ``unreadable``; of an
    image that is to be labeled by image-level labels and has none, ``no-labels``.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class CalibrationError(MaskmillError):
    """Thresholds cannot be computed from the images and labels given."""


class CalibrationMismatch(CalibrationError):
    """A calibration was made under other conditions than those it would be used in."""


class StoreError(MaskmillError):
    """The label store cannot be opened, read or written."""


class StoreMismatch(StoreError):
    """The store holds labels made with other options; the message names the differences."""


class TrainingError(MaskmillError):
    """A student cannot be trained, resumed or read."""
