"""Options of buckets and other storage, for every URL that is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .access import Access, current_access, replace_access

_OWN = {"aws_": ("s3", "s3a"), "google_": ("gs", "gcs"), "azure_": ("az", "abfs", "abfss", "adl")}
"""Prefixes of keys that only the storage of some schemes understands."""
_WITHOUT = ("http", "https", "file", "local", "memory")
"""Schemes whose storage has no options."""


def options_in_force(scheme: str, access: Access | None = None) -> dict[str, Any]:
    """Return the options of :func:`use_storage` for a URL scheme; None: those of now."""
    return {} if scheme in _WITHOUT else options_of(scheme, (access or current_access()).storage_options)


@contextmanager
def use_storage(options: Mapping[str, Any]) -> Iterator[None]:
    """Use storage options for URLs that are opened in the ``with`` block: stores, bundles, sources and files.

    ``options`` are those of the crate object_store, such as ``aws_region`` or ``aws_endpoint``. A key of another kind
    of bucket than a URL's is left out for that URL. The options hold for the thread that sets them, and for what it
    opens. ::

        with use_storage({"aws_region": "eu-west-1"}):
            source = open_source("photos")
    """
    with replace_access(storage_options=dict(options)):
        yield


def options_of(scheme: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the storage options that concern a URL scheme: all but those of other kinds of buckets."""
    others = tuple(prefix for prefix, schemes in _OWN.items() if scheme not in schemes)
    return {key: value for key, value in options.items() if not key.lower().startswith(others)}
