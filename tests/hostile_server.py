"""A server on the loopback interface that misbehaves in every way that a path names."""

from __future__ import annotations

import gzip
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

BOMB = gzip.compress(bytes(64 << 20))
"""64 MiB of zeros, compressed."""


class HostileServer(ThreadingHTTPServer):
    """Answers ``/KIND/anything``; ``files`` are the bytes of ``/ok/NAME``."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.requests: Counter[str] = Counter()
        self.ended = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # the body would wait 0.04 s for the answer to the headers
    server: HostileServer

    def do_GET(self) -> None:
        kind, _, name = self.path.lstrip("/").partition("?")[0].partition("/")
        self.server.requests[kind] += 1
        try:
            kind = kind.partition(".")[0].partition("-of-")[0].partition("-without-")[0]
            getattr(self, f"_{kind.replace('-', '_')}")(name)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _start(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()

    def _ok(self, name: str) -> None:
        data = self.server.files[name]
        requested = self.headers.get("Range")
        if requested is None:
            self._start(200, Content_Length=str(len(data)))
        else:
            start, end = (int(value) for value in requested.removeprefix("bytes=").split("-"))
            size = len(data)
            data = data[start : end + 1]
            content_range = f"bytes {start}-{start + len(data) - 1}/{size}"
            self._start(206, Content_Length=str(len(data)), Content_Range=content_range)
        if self.command == "GET":
            self.wfile.write(data)

    def _silent(self, name: str) -> None:
        self.server.ended.wait(600)

    def _slow(self, name: str) -> None:
        self._start(200)
        while not self.server.ended.wait(0.2):
            self.wfile.write(b"x")

    def _slow_headers(self, name: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not self.server.ended.wait(0.2):
            self.wfile.write(b"X")

    def _endless(self, name: str) -> None:
        self._start(200)
        while not self.server.ended.is_set():
            self.wfile.write(bytes(1 << 20))

    def _claims(self, name: str) -> None:
        self._start(200, Content_Length=str(1 << 50))
        while not self.server.ended.is_set():
            self.wfile.write(bytes(1 << 20))

    def _bomb(self, name: str) -> None:
        self._start(200, Content_Length=str(len(BOMB)), Content_Encoding="gzip")
        self.wfile.write(BOMB)

    def _loop(self, name: str) -> None:
        self._start(302, Location=self.path + "x", Content_Length="0")

    def _to_file(self, name: str) -> None:
        self._start(302, Location="file:///etc/passwd", Content_Length="0")

    def _error(self, name: str) -> None:
        self._start(500, Content_Length="5")
        if self.command == "GET":
            self.wfile.write(b"error")

    def _refuses(self, name: str) -> None:
        self._xml(403, "AccessDenied")

    def _unknown(self, name: str) -> None:
        self._xml(404, "NoSuchBucket")

    def _xml(self, status: int, code: str) -> None:
        data = f"<Error><Code>{code}</Code></Error>".encode()
        self._start(status, Content_Length=str(len(data)))
        if self.command != "HEAD":
            self.wfile.write(data)

    def _endless_error(self, name: str) -> None:
        self._start(500)
        while not self.server.ended.wait(0.01):  # slowly: obstore keeps all of it until its time limit
            self.wfile.write(bytes(1 << 14))

    def _recovers(self, name: str) -> None:
        if self.server.requests["recovers"] < 3:
            self._error(name)
        else:
            self._ok(name)

    def _colons(self, name: str) -> None:
        if unquote(name) == "odd/a::b.jpg":
            self._ok("a.jpg")
        else:
            self._xml(404, "NoSuchKey")

    def _damaged(self, name: str) -> None:
        """Fail for one object alone."""
        if name.startswith("bad"):
            self._error(name)
        elif name in self.server.files:
            self._ok(name)
        else:
            self._xml(404, "NoSuchKey")

    def _listing(self, name: str) -> None:
        """List one folder."""
        if name:
            self._xml(404, "NoSuchKey")
        else:
            self._start(200, Content_Length=str(len(self.server.files["listing"])))
            self.wfile.write(self.server.files["listing"])

    def _outage(self, name: str) -> None:
        if "outage" in self.server.files:
            self._error(name)
        else:
            self._ok("a.jpg")

    def _cut(self, name: str) -> None:
        self._start(200, Content_Length="1000")
        self.wfile.write(b"only this")
        self.close_connection = True

    def _whole(self, name: str) -> None:
        """Ignore byte ranges."""
        data = self.server.files[name]
        self._start(200, Content_Length=str(len(data)))
        self.wfile.write(data)

    def _index(self, name: str) -> None:
        """Serve an index page that links to ever deeper folders."""
        page = f'<a href="{self.path.rstrip("/")}/a.jpg">a</a><a href="{self.path.rstrip("/")}/deeper/">b</a>'.encode()
        self._start(200, Content_Length=str(len(page)), Content_Type="text/html")
        self.wfile.write(page)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@contextmanager
def hostile_server() -> Iterator[HostileServer]:
    """Run a server until the block ends."""
    with HostileServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.ended.set()
            server.shutdown()
            thread.join()
