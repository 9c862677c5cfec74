"""Options for reading from URLs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import typer

from ...model.storage import parse_storage_options
from ...reading.access import Access, limit_reads
from ...reading.storage_options import use_storage
from .groups import OptionGroup, with_options


def _use_storage(context: typer.Context, texts: list[str] | None) -> list[str] | None:
    """Use the options of the command line for every URL until the command ends."""
    context.with_resource(use_storage(parse_storage_options(texts)))
    return texts


StorageOption = Annotated[
    list[str] | None,
    typer.Option(
        "--storage-option",
        metavar="KEY=VALUE",
        is_eager=True,  # the URLs of other options are opened with it
        callback=_use_storage,
        help="Storage option for URLs, such as aws_region=NAME; repeat for several.",
        show_default="environment",
    ),
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", help="Longest time to wait for a server.")
]
RetriesOption = Annotated[
    int,
    typer.Option(
        "--retries",
        metavar="N",
        help="Further attempts to read a URL after a temporary failure, such as no answer within --timeout.",
    ),
]
SchemesOption = Annotated[
    str | None,
    typer.Option(
        "--schemes",
        metavar="NAMES",
        help="URL schemes that a list may contain, such as https,s3, besides that of the list itself.",
        show_default="http, https and object stores",
    ),
]


@dataclass(frozen=True, kw_only=True)
class StorageGroup(OptionGroup):
    """Storage of URLs."""

    panel: ClassVar[str] = "URLs"
    storage_option: StorageOption = None


@dataclass(frozen=True, kw_only=True)
class UrlGroup(StorageGroup):
    """Storage of URLs, limits of time, attempts and schemes."""

    timeout: TimeoutOption = Access().timeout
    retries: RetriesOption = Access().retries
    schemes: SchemesOption = None

    def limit(self) -> AbstractContextManager[Any]:
        """Return a context in which all reads respect the limits."""
        schemes = self.schemes
        names = None if schemes is None else [scheme.strip().lower() for scheme in schemes.split(",")]
        return limit_reads(timeout=self.timeout, retries=self.retries, schemes=names)


def reads_stores(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--storage-option`` to a command, which holds for every URL that it opens."""
    return with_options(command, StorageGroup, nullcontext)


def reads_urls(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--storage-option``, ``--timeout``, ``--retries`` and ``--schemes``, for all that a command reads."""
    return with_options(command, UrlGroup, UrlGroup.limit)
