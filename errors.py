"""Every error a user can meet.

Each message says what was expected, what was found and what to do. The command line prints it on one line and exits
with 2 if the call was wrong (:class:`UsageError`, :class:`StoreMismatch`, :class:`CalibrationMismatch`, or a bundle,
store, run, calibration or source that does not exist)
and with 1 if the work failed; ``--debug`` shows the traceback.

::

    MaskmillError
    ├── UsageError            an option, argument or file is wrong
    │   ├── TaxonomyError     a class mapping is inconsistent, or does not know a label
    │   └── MissingPackageError   an optional package is needed (the message holds the install command)
    ├── BundleError           a model bundle cannot be made, read or trusted
    │   ├── ExportError       a model cannot be exported, converted or built
    │   └── GateError         a converted model differs from its original, or was never compared with it
    ├── SessionError          a model cannot be loaded or run
    ├── SourceError           a source of images cannot be listed or read
    ├── ImageError            one image cannot be decoded (recorded with its kind; the run continues)
    ├── CalibrationError      thresholds cannot be computed
    │   └── CalibrationMismatch   a calibration was made under other conditions than it is used in
    ├── StoreError            a label store cannot be opened, read or written
    │   └── StoreMismatch     the store holds labels made with other options
    └── TrainingError         a student cannot be trained, resumed or read
"""

from __future__ import annotations

import json
from importlib.metadata import distributions
from typing import Self
from urllib.parse import unquote, urlsplit

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
    "install_command",
]


class MaskmillError(Exception):
    """Base of every error that maskmill raises for a reason a user can act on."""

    exit_code: int = 1

    def of_the_call(self) -> Self:
        """Mark the error as one of the call, as for a file that does not exist: the command line exits with 2."""
        self.exit_code = 2
        return self


class UsageError(MaskmillError, ValueError):
    """An option, argument or input file is wrong."""

    exit_code = 2


class TaxonomyError(UsageError):
    """A class mapping is inconsistent, or does not know a label that it met."""


class MissingPackageError(UsageError, ImportError):
    """An optional package is needed; the message holds the command that installs it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package '{package}'; install it with: {install_command(extra)}")
        self.package = package
        self.extra = extra


class BundleError(MaskmillError):
    """A model bundle cannot be made, read or trusted."""


class ExportError(BundleError):
    """A model cannot be exported, converted to another precision or built into an engine."""


class GateError(BundleError):
    """A converted model differs from its original beyond tolerance, or was never compared with it."""


class SessionError(MaskmillError):
    """A model cannot be loaded or run."""


class SourceError(MaskmillError):
    """A source of images cannot be listed, or one of its entries cannot be read."""


class ImageError(MaskmillError):
    """One image cannot be labeled; the run records it as a reject and continues.

    ``kind`` names the reason in a word or two, such as ``empty``, ``not-an-image``, ``truncated``, ``too-large``,
    ``unsupported``, ``unreadable``, ``no-labels``, ``no-scores`` or ``not-finite``; summaries count rejects by kind.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class CalibrationError(MaskmillError):
    """Thresholds cannot be computed from the given images and labels."""


class CalibrationMismatch(CalibrationError):
    """A calibration was made under other conditions than those it would be used in."""

    exit_code = 2


class StoreError(MaskmillError):
    """A label store cannot be opened, read or written."""


class StoreMismatch(StoreError):
    """The store holds labels made with other options; the message names the differences."""

    exit_code = 2


class StorageOutageWarning(UserWarning):
    """A bucket that has answered before does not answer now, and is waited for."""


class WaitingRowsWarning(UserWarning):
    """A store that is read holds finished inputs that wait for a commit."""


class TrainingError(MaskmillError):
    """A student cannot be trained, resumed or read."""


def install_command(extra: str) -> str:
    """Return the command that installs an extra: from the checkout if maskmill was installed from one."""
    origins = [found.read_text("direct_url.json") for found in distributions(name="maskmill")]
    origin = next((json.loads(text) for text in origins if text), {})
    url = urlsplit(str(origin.get("url", "")))
    if url.scheme != "file":
        return f"pip install 'maskmill[{extra}]'"
    editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
    return f"pip install {editable}'{unquote(url.path)}[{extra}]'"
