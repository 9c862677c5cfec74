"""Folders of S3 buckets with names that object_store refuses: an empty part, ``.`` or ``..``, control characters.

object_store cannot list such a folder at all, so it is listed with boto3 to find its other objects.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..access import Access

if TYPE_CHECKING:
    from botocore.client import BaseClient

_REFUSED = re.compile(r"|\.{1,2}|.*[\x00-\x1f\x7f].*", re.DOTALL)  # parts of keys


def list_folder(
    bucket: str, key: str, options: Mapping[str, str], access: Access
) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """Return the objects, the subfolders and the refused names directly in a folder; ``key`` ends without a slash.

    Objects are described as object_store does. Refused names are complete keys. Raises the exceptions of boto3.
    """
    prefix = f"{key}/" if key else ""
    objects, folders, refused_names = [], [], []
    pages = _client(options, access).get_paginator("list_objects_v2").paginate(
        Bucket=bucket, Prefix=prefix, Delimiter="/"
    )  # fmt: skip
    for page in pages:
        for entry in page.get("Contents", []):
            name = entry["Key"].removeprefix(prefix)
            if not name:
                continue  # the marker object of the folder itself
            if _REFUSED.fullmatch(name):
                refused_names.append(entry["Key"])
            else:
                meta = {"path": entry["Key"], "size": entry["Size"], "e_tag": entry.get("ETag")}
                objects.append({**meta, "last_modified": entry["LastModified"]})
        for entry in page.get("CommonPrefixes", []):
            name = entry["Prefix"].removeprefix(prefix).removesuffix("/")
            if _REFUSED.fullmatch(name):
                refused_names.append(entry["Prefix"])
            else:
                folders.append(entry["Prefix"].removesuffix("/"))
    return objects, folders, refused_names


def _client(options: Mapping[str, str], access: Access) -> BaseClient:
    """Return a client of boto3 with the storage options of object_store; others come from the environment."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    given_options = {key.lower().removeprefix("aws_"): value for key, value in options.items()}

    def option(*names: str) -> str | None:
        values = (given_options.get(name) or os.environ.get(f"AWS_{name.upper()}") for name in names)
        return next((value for value in values if value), None)

    settings: dict[str, Any] = {
        "connect_timeout": access.timeout,
        "read_timeout": access.timeout,
        "retries": {"total_max_attempts": access.retries + 1, "mode": "standard"},
    }
    if (option("skip_signature") or "").lower() in ("true", "1", "yes", "on"):
        settings["signature_version"] = UNSIGNED
    if (option("virtual_hosted_style_request") or "").lower() not in ("true", "1", "yes", "on"):
        settings["s3"] = {"addressing_style": "path"}
    return boto3.client(
        "s3",
        endpoint_url=option("endpoint_url_s3", "endpoint", "endpoint_url"),
        region_name=option("region", "default_region") or "us-east-1",
        aws_access_key_id=option("access_key_id"),
        aws_secret_access_key=option("secret_access_key"),
        aws_session_token=option("session_token", "token"),
        config=Config(**settings),
    )
