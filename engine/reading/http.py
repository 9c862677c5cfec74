"""HTTP client of fsspec with limits: answers are read in parts, counted after decompression, and timed."""

from __future__ import annotations

from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any

from .access import Access, Meter

if TYPE_CHECKING:
    import aiohttp

METER: ContextVar[Meter | None] = ContextVar("meter", default=None)
"""Meter of the read that a request belongs to; requests without one are limited on their own."""
_ERROR_BYTES = 1 << 16
"""Most bytes of an error page that are read; the page is not shown."""


async def limited_client(*, access: Access, **arguments: Any) -> aiohttp.ClientSession:
    """Return an aiohttp session whose answers are bounded in size and time by ``access``."""
    import aiohttp

    seconds = access.timeout
    wait = aiohttp.ClientTimeout(total=None, connect=seconds, sock_connect=seconds, sock_read=seconds)
    return aiohttp.ClientSession(**{"timeout": wait, "response_class": _limited_response(access), **arguments})


@cache
def _limited_response(access: Access) -> type:
    import aiohttp

    class LimitedResponse(aiohttp.ClientResponse):
        async def read(self) -> bytes:
            if self._body is None:
                try:
                    self._body = await self._limited()
                except BaseException:
                    self.close()
                    raise
            return self._body

        async def _limited(self) -> bytes:
            if self.status >= 400:
                body = await self.content.read(_ERROR_BYTES)
                self.close()
                return body
            plain = self.content_length is not None and "Content-Encoding" not in self.headers
            meter = METER.get() or Meter(access, 0)
            meter.limit = access.max_bytes if plain else access.max_unknown_bytes
            parts = [meter.count(part) async for part in self.content.iter_chunked(1 << 18)]
            return b"".join(parts)

    return LimitedResponse
