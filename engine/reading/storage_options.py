"""Options of buckets and other storage, for every URL that is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .access import Access, current_access, replace_access

_OWN = {"aws_": ("s3", "s3a"), "google_": ("gs", "gcs"), "azure_": ("az", "abfs", "abfss", "adl")}
"""Prefixes of keys that apply only to some schemes."""
_WITHOUT = ("http", "https", "file", "local", "memory")
"""Schemes whose storage has no options."""


def options_in_force(scheme: str, access: Access | None = None) -> dict[str, Any]:
    """Return the options of :func:`use_storage` for a URL scheme, at this moment if ``access`` is None."""
    return {} if scheme in _WITHOUT else options_of(scheme, (access or current_access()).storage_options)


@contextmanager
def use_storage(options: Mapping[str, Any]) -> Iterator[None]:
    """Use storage options for URLs that are opened in the ``with`` block: stores, bundles, sources and files.

    ``options`` are those of the crate object_store, such as ``aws_region`` or ``aws_endpoint``. Keys for other kinds of
    buckets than a URL's are left out for that URL. The options apply to the thread that sets them, and to everything
    that it opens. ::

        with use_storage({"aws_region": "eu-west-1"}):
            source = open_source("photos")
    """
    with replace_access(storage_options=dict(options)):
        yield


def options_of(scheme: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the storage options for a URL scheme: all except those of other kinds of buckets."""
    others = tuple(prefix for prefix, schemes in _OWN.items() if scheme not in schemes)
    return {key: value for key, value in options.items() if not key.lower().startswith(others)}
