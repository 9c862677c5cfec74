"""The web server of the live page.

::

    app = make_app(LiveStore("labels"), reviewer="ana")
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ....errors import MaskmillError, MissingPackageError, UsageError
from ..terminal import say
from .access import guard, is_loopback
from .answers import Answers
from .live_store import LiveStore

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp

LARGEST_BODY = 64 << 20
"""Largest correction, in bytes."""


def make_app(live: LiveStore, *, reviewer: str | None = None, token: str | None = None) -> ASGIApp:
    """Make the ASGI application; ``reviewer`` names the person whose corrections it saves, None: it is read-only.

    With a ``token`` every request needs it; without one, requests must name a loopback address. Raises
    :class:`MissingPackageError` without the extra ``serve``, :class:`UsageError` as :class:`Answers`.
    """
    try:
        from starlette.applications import Starlette
        from starlette.concurrency import run_in_threadpool
        from starlette.responses import Response
        from starlette.routing import Route
    except ImportError as error:
        raise MissingPackageError("starlette", "serve", "the live page") from error
    answers = Answers(live, reviewer=reviewer)

    async def reply(function: Callable[..., Any], *arguments: Any) -> Response:
        try:
            content = await run_in_threadpool(function, *arguments)
        except MaskmillError as error:
            return Response(str(error), 400 if isinstance(error, UsageError) else 409, media_type="text/plain")
        if isinstance(content, str):
            return Response(content, media_type="text/html")
        return Response(json.dumps(content), media_type="application/json")

    async def page(_: Request) -> Response:
        return await reply(answers.page)

    async def state(_: Request) -> Response:
        return await reply(answers.state)

    async def images(request: Request) -> Response:
        return await reply(answers.images, dict(request.query_params))

    async def picture(request: Request) -> Response:
        return await reply(answers.picture, request.path_params["id"], dict(request.query_params))

    async def review(request: Request) -> Response:
        if not secrets.compare_digest(request.headers.get("x-maskmill", "").encode(), answers.key.encode()):
            return Response("corrections come from the page itself; reload it", 403, media_type="text/plain")
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > LARGEST_BODY:
                return Response("the correction is too large", 413, media_type="text/plain")
        return await reply(answers.review, request.path_params["id"], bytes(body))

    routes = [
        Route("/", page),
        Route("/api/state", state),
        Route("/api/images", images),
        Route("/api/pictures/{id}", picture),
    ]
    if reviewer is not None:
        routes.append(Route("/api/reviews/{id}", review, methods=["POST"]))
    return guard(Starlette(routes=routes), token=token)


def serve(
    live: LiveStore,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    reviewer: str | None = None,
    say: Callable[[str], None] = say,
) -> None:
    """Serve the page until an interrupt; on an address that others can reach, the printed address holds a token.

    Raises :class:`MissingPackageError` without the extra ``serve``, :class:`UsageError` if the port is taken.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise MissingPackageError("uvicorn", "serve", "the live page") from error
    token = None if is_loopback(host) else secrets.token_urlsafe(24)
    config = uvicorn.Config(
        make_app(live, reviewer=reviewer, token=token),
        host=host,
        port=port,
        log_level="critical",
        access_log=False,
        lifespan="off",
    )
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise UsageError(f"cannot listen on {host}, port {port}: {reason}; choose another --host or --port") from error
    name = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    mode = "read-only" if reviewer is None else f"corrections are saved as reviews by {reviewer}"
    query = "" if token is None else f"?token={token}"
    say(f"{live.path}: http://{name}:{port}/{query} ({mode}); stop with Ctrl-C")
    if token is not None:
        say("the connection has no TLS: outside a network that you trust, put a proxy with TLS in front of it")
    with listener, suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
    say("stopped" if reviewer is None else "stopped; every correction that was saved is in the store")
