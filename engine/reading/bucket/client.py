"""Clients of object stores: their options, credentials and errors. The client is obstore, object_store in Python."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....errors import MaskmillError, MissingPackageError, UsageError
from ..access import EXTRAS, Access

if TYPE_CHECKING:
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import ObjectStore

_SCHEMES = {"gcs": "gs"}  # schemes with another name in the client
_EXAMPLES = {
    "s3": "aws_region, aws_endpoint and aws_access_key_id",
    "gcs": "google_service_account and google_skip_signature",
    "azure": "azure_storage_account_name and azure_storage_account_key",
}
# options of the HTTP client; all others belong to the object store
_CLIENT_OPTIONS = frozenset(
    (
        *("allow_http", "allow_invalid_certificates", "connect_timeout", "http1_only", "http2_only"),
        *("pool_idle_timeout", "proxy_url", "proxy_ca_certificate", "proxy_excludes", "randomize_addresses"),
        *("read_timeout", "root_certificate", "timeout", "user_agent"),
    )
)
_ENDPOINTS = (
    *("aws_endpoint", "aws_endpoint_url", "endpoint", "endpoint_url", "aws_endpoint_url_s3", "azure_endpoint"),
    *("google_base_url", "base_url"),
)
_KEYS = ("aws_access_key_id", "access_key_id", "aws_skip_signature", "skip_signature", "aws_role_arn", "role_arn")
_NO_CREDENTIALS = re.compile(
    r"Generic \w+ error: (?:Missing"
    r"|(?:Error performing token request: )?Error performing \w+ http://(?:169\.254\.169\.254|metadata)\b)"
)
# without credentials in the environment, the client requests them from a server of the cloud
_STATUS = re.compile(r"status code: (\d{3}) ([^:\n]*)(?:.*?<Code>(\w+)</Code>)?", re.DOTALL)


class BucketAnswerError(OSError):
    """An answer with an error; :attr:`status` is that of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"the server answers {status} {message}".rstrip())
        self.status, self.message = status, message


class RefusedError(PermissionError):
    """A server refuses access, or there are no credentials for it."""


class MissingBucketError(FileNotFoundError):
    """The bucket does not exist."""


class RefusedNameError(ValueError):
    """The client refuses a name: a part of it is empty, ``.`` or ``..``, or has a control character."""


REFUSED_NAME = "a name in the bucket has an empty part, '.', '..' or a control character, which is not read"


_WHOLE_ANSWER = 20
"""Number of time limits that an answer may last from its first byte to its last."""


def require_client(url: str) -> None:
    """Raise :class:`MissingPackageError` unless the client of buckets is installed."""
    try:
        import obstore  # noqa: F401
    except ImportError as error:
        raise MissingPackageError("obstore", EXTRAS[url.partition("://")[0]], f"access to {url}") from error


def allows_http(options: Mapping[str, Any]) -> bool:
    """Return True if the address of the bucket's server, in the options or the environment, is an ``http://`` URL."""
    addresses = [options.get(name) or os.environ.get(name.upper(), "") for name in _ENDPOINTS]
    return any(str(address).startswith("http://") for address in addresses)


def open_client(scheme: str, bucket: str, options: Mapping[str, str], access: Access) -> ObjectStore:
    """Return the client of a bucket; raises :class:`UsageError` and :class:`MissingPackageError`."""
    extra = EXTRAS[scheme]
    url = f"{scheme}://{bucket}"
    require_client(url)
    from obstore import exceptions
    from obstore.store import from_url

    # the time limit applies to each part of an answer, and a multiple of it to the whole answer, since the client keeps
    # the text of an error in memory
    waiting = timedelta(seconds=access.timeout)
    client: dict[str, Any] = {"connect_timeout": waiting, "read_timeout": waiting, "timeout": _WHOLE_ANSWER * waiting}
    if allows_http(options):
        client["allow_http"] = "true"
    config: dict[str, Any] = {}
    check_keys(options)
    for key, value in options.items():
        name = key.lower().removeprefix("aws_")
        (client if name in _CLIENT_OPTIONS else config)[name if name in _CLIENT_OPTIONS else key.lower()] = value
    credentials = _profile(config) if extra == "s3" else None
    try:
        return from_url(
            f"{_SCHEMES.get(scheme, scheme)}://{bucket}",
            config=config,
            client_options=client,
            retry_config={"max_retries": 0},
            credential_provider=credentials,
        )
    except exceptions.UnknownConfigurationKeyError as error:
        name = str(error).partition("'")[2].partition("'")[0]
        raise UsageError(
            f"unknown storage option {name} for {url}; the options are those of the crate object_store, such as "
            f"{_EXAMPLES[extra]}"
        ) from error
    except Exception as error:
        # the client's exceptions have no common base other than Exception
        text = _first_line(error)
        if "Account must be specified" in text:
            text = "it needs the account, as in --storage-option azure_storage_account_name=NAME"
        raise UsageError(f"cannot open {url}: {text}") from error


def check_keys(keys: Iterable[str]) -> None:
    """Raise :class:`UsageError` if two keys of storage options mean the same, as ``region`` and ``aws_region``."""
    key_of: dict[str, str] = {}
    for key in keys:
        name = re.sub("^(aws|google|azure)_", "", key.lower())
        if name in key_of:
            both = f"{key_of[name]} and {key} mean the same" if key_of[name] != key else f"{key} is given twice"
            raise UsageError(f"storage options: {both}; give one of them")
        key_of[name] = key


def _profile(config: Mapping[str, str]) -> Boto3CredentialProvider | None:
    """Return the credentials of AWS's configuration files, None if there are none or others are given."""
    setting_names = {*config, *(name.lower() for name in os.environ)}
    folder = Path.home() / ".aws"
    files = [os.environ.get("AWS_SHARED_CREDENTIALS_FILE", folder / "credentials")]
    files.append(os.environ.get("AWS_CONFIG_FILE", folder / "config"))
    if setting_names & set(_KEYS) or not ("AWS_PROFILE" in os.environ or any(map(os.path.exists, files))):
        return None
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise MissingPackageError("boto3", "s3", "the profiles in ~/.aws") from error
    try:
        return Boto3CredentialProvider()
    except ValueError:
        return None  # the files hold no credentials


def translated(error: Exception, url: str) -> Exception:
    """Translate an exception of the client to one of Python, with a one-line message."""
    if isinstance(error, MaskmillError | BucketAnswerError):
        return error
    text = str(error)
    status = _STATUS.search(text)
    if "<Code>NoSuchBucket</Code>" in text or "<Code>ContainerNotFound</Code>" in text:
        return MissingBucketError(f"the bucket {_bucket(url)} does not exist")
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"{url} does not exist")
    code = int(status[1]) if status else 0
    kind = type(error).__name__
    if kind == "AlreadyExistsError":
        return FileExistsError(f"{url} exists")
    if _NO_CREDENTIALS.search(text):
        scheme = url.partition("://")[0]
        return RefusedError(
            f"there are no credentials for {scheme}:// URLs in the environment or the storage options; for a public "
            "bucket give the option skip_signature=true"
        )
    if kind in ("PermissionDeniedError", "UnauthenticatedError") or code in (401, 403):
        return RefusedError(f"the server refuses access ({(status and (status[3] or status[2])) or kind})")
    if 300 <= code < 400 or "error following redirect" in text:
        return BucketAnswerError(code or 301, "with a redirect: for a bucket in another region, give aws_region")
    if status is not None:
        return BucketAnswerError(code, status[3] or status[2].strip())
    if "TimedOut" in text or "kind: Timeout" in text:
        return TimeoutError("no answer in time (--timeout)")
    if "InvalidPath" in kind or isinstance(error, ValueError):
        name = re.search(r'[Pp]ath "(.*?)"(?: contained|: |$)', text.partition("\n")[0])
        place = f"{url.partition('://')[0]}://{_bucket(url)}/{name[1]}" if name else url
        return RefusedNameError(f"{REFUSED_NAME} ({place})")
    system = re.findall(r'message: "([^"]+)"', text)
    if (request := re.search(r"Error performing \w+ (\w+://[^/\s]+)", text)) is None:
        return ConnectionError(system[-1] if system else _first_line(error))
    reason = system[-1] if system else "no connection"
    return ConnectionError(f"{request[1]} does not answer ({reason})")


def _bucket(url: str) -> str:
    return url.partition("://")[2].partition("/")[0]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
