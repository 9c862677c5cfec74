"""Proxy before a bucket's server that answers a share of the requests with errors, late, cut short or not at all."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import Any


class Proxy:
    """Server before a bucket's server that answers some requests with errors, late, cut or not at all."""

    def __init__(self, port: int, seed: int = 0) -> None:
        self.port, self.chances, self.counts = port, dict[str, float](), Counter[str]()
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._server.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _draw(self) -> str:
        with self._lock:
            number = self._random.random()
            for kind, chance in self.chances.items():
                if number < chance:
                    self.counts[kind] += 1
                    return kind
                number -= chance
            self.counts["served"] += 1
            return ""

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError, ValueError), client, socket.create_connection(("127.0.0.1", self.port)) as server:
            incoming, outgoing = client.makefile("rb"), server.makefile("rb")
            while request := message(incoming, client):
                kind = self._draw()
                if kind in ("500", "503"):
                    client.sendall(refusal(kind))
                    continue
                if kind == "reset":
                    return
                if kind == "silent":
                    time.sleep(120)
                    return
                if kind == "slow":
                    time.sleep(self._random.uniform(0.5, 3.0))
                server.sendall(self.translated_request(request))
                answer = message(outgoing, is_answer=True, is_head=request.startswith(b"HEAD"))
                answer = self.translated_answer(answer)
                if kind == "cut":
                    client.sendall(answer[: len(answer) // 2])
                    return
                if kind == "lost":  # done, and the answer does not arrive
                    return
                client.sendall(answer)

    def translated_request(self, request: bytes) -> bytes:
        """Return the request as the server gets it."""
        return request

    def translated_answer(self, answer: bytes) -> bytes:
        """Return the answer as the client gets it."""
        return answer


class GoogleProxy(Proxy):
    """Server before one of S3 that speaks the XML interface of Google's storage, as far as the client uses it."""

    _SIGNED = (
        b"Authorization: AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, "
        b"Signature=none"
    )

    def translated_request(self, request: bytes) -> bytes:
        """Sign the request, and ask for a new object in the words of S3."""
        head, body = request.split(b"\r\n\r\n", 1)
        line, *fields = [field for field in head.split(b"\r\n") if not field.lower().startswith(b"authorization:")]
        fields = [
            b"If-None-Match: *" if field.lower() == b"x-goog-if-generation-match: 0" else field for field in fields
        ]
        return b"\r\n".join([line, self._SIGNED, *fields]) + b"\r\n\r\n" + body

    def translated_answer(self, answer: bytes) -> bytes:
        """Give the object a generation."""
        return answer.replace(b"\r\n\r\n", b"\r\nx-goog-generation: 1\r\n\r\n", 1)


def refusal(status: str) -> bytes:
    """Answer of a bucket in trouble."""
    code, text = ("InternalError", "Internal Server Error") if status == "500" else ("SlowDown", "Slow Down")
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>Please reduce your request rate.</Message></Error>"
    head = f"HTTP/1.1 {status} {text}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return (head + body).encode()


def message(stream: Any, asker: Any = None, *, is_answer: bool = False, is_head: bool = False) -> bytes:
    """Read one HTTP message; empty at the end of the stream. ``asker`` gets the signal to send its body."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = stream.readline()
        if not line:
            return b""
        if line.lower().startswith(b"expect: 100"):
            asker.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            continue
        head += line
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    if is_answer and (is_head or head.split()[1] in (b"204", b"304", b"100")):
        return head
    if b"chunked" in fields.get(b"transfer-encoding", b""):
        body = b""
        while True:
            line = stream.readline()
            size = int(line.split(b";")[0], 16)
            body += line + stream.read(size + 2)
            if not size:
                return head + body
    return head + stream.read(int(fields.get(b"content-length", b"0")))
