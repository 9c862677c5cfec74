"""Access control of the live page, by client and by the origin of a request.

On the loopback address every user of this machine may read the page, but pages of other sites may not: the Host header
must name this server, so a domain that an attacker resolves to 127.0.0.1 is refused. On any other address each request
needs the token of the start message, first as ``?token=`` and later as a cookie. A correction needs a key that only the
page itself knows, in a header that other sites cannot send.
"""

from __future__ import annotations

import ipaddress
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp

COOKIE = "maskmill-token"
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]


def is_loopback(host: str) -> bool:
    """Return True if an address to listen on can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def guard(app: Any, *, token: str | None) -> ASGIApp:
    """Wrap an ASGI application: refuse requests without the token, or, without one, for a host that is no loopback."""
    from starlette.requests import Request

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        answer = None
        if scope["type"] == "http":
            answer = _refusal(Request(scope), token)
        await (answer or app)(scope, receive, send_with_headers)

    return guarded


def _refusal(request: Any, token: str | None) -> Response | None:
    """Return the answer to a request that is refused; None for accepted requests."""
    from starlette.responses import PlainTextResponse, RedirectResponse

    if token is None:
        with suppress(ValueError):
            if is_loopback(urlsplit(f"//{request.headers.get('host', '')}").hostname or ""):
                return None
        return PlainTextResponse("this page can be opened on this machine only, at 127.0.0.1", status_code=403)
    offered = request.query_params.get("token", "")
    if offered and secrets.compare_digest(offered.encode(), token.encode()):
        answer = RedirectResponse("/" + request.url.path.lstrip("/"), status_code=303)
        answer.set_cookie(COOKIE, token, httponly=True, samesite="strict")
        return answer
    if secrets.compare_digest(request.cookies.get(COOKIE, "").encode(), token.encode()):
        return None
    return PlainTextResponse("open the address that `maskmill serve` printed: it holds a token", status_code=401)
