"""Options of buckets and other storage, in the words of Lance or of fsspec, for every URL that is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .access import Access, current_access, replace_access

# keys of Lance and other object stores → keys of the fsspec filesystems
_S3_KEYS = {
    "aws_access_key_id": "key",
    "aws_secret_access_key": "secret",
    "aws_session_token": "token",
    "aws_endpoint": "endpoint_url",
    "aws_endpoint_url": "endpoint_url",
    "endpoint": "endpoint_url",
}
_OWN = {"aws_": ("s3", "s3a"), "google_": ("gs", "gcs"), "azure_": ("az", "abfs", "abfss", "adl")}
"""Prefixes of keys that only the storage of some schemes understands."""
_WITHOUT = ("http", "https", "file", "local", "memory")
"""Schemes whose storage has no options."""


def options_in_force(scheme: str, access: Access | None = None) -> dict[str, Any]:
    """Return the options of :func:`use_storage` for the fsspec filesystem of a URL scheme; None: those of now."""
    return {} if scheme in _WITHOUT else fsspec_options(scheme, (access or current_access()).storage_options)


@contextmanager
def use_storage(options: Mapping[str, Any]) -> Iterator[None]:
    """Use storage options for URLs that are opened in the ``with`` block: stores, bundles, sources and files.

    ``options`` have the keys of Lance, such as ``aws_region`` or ``aws_endpoint``, or those of the fsspec filesystem.
    A key of another cloud than a URL's is left out for that URL. The options hold for the thread that sets them, and
    for what it opens. ::

        with use_storage({"aws_region": "eu-west-1"}):
            report("s3://bucket/labels")
    """
    with replace_access(storage_options=dict(options)):
        yield


def fsspec_options(scheme: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Translate storage options in the words of Lance into those of the fsspec filesystem of a URL scheme."""
    translated: dict[str, Any] = {}
    for key, value in options.items():
        owners = next((schemes for prefix, schemes in _OWN.items() if key.startswith(prefix)), (scheme,))
        if scheme not in owners:
            continue
        if scheme not in _OWN["aws_"]:
            translated[key] = value
        elif key in ("aws_region", "region"):
            translated["client_kwargs"] = {**translated.get("client_kwargs", {}), "region_name": value}
        elif key not in ("allow_http", "aws_allow_http"):
            translated[_S3_KEYS.get(key, key)] = value
    return translated
