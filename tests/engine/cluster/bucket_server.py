"""An S3-compatible server on this machine, with one bucket called ``bucket``."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from maskmill.engine.model.storage import location_of
from tests.ports import free_ports

KEYS = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "aws_region": "us-east-1"}
"""Storage options of the server without its address."""


class Server:
    """moto's server in a process of its own; its state is lost when it stops, so an outage pauses it."""

    def __init__(self) -> None:
        (self.port,) = free_ports(1)
        self.options = {**KEYS, "aws_endpoint": f"http://127.0.0.1:{self.port}"}
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    request = urllib.request.Request(f"http://127.0.0.1:{self.port}/bucket", method="PUT")
                    with urllib.request.urlopen(request):
                        return
            time.sleep(0.1)
        raise RuntimeError("the server does not start")


@contextmanager
def serve_bucket() -> Iterator[Server]:
    """Run a server; it and its bucket are gone at the end."""
    server = Server()
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def upload(path: Path, url: str, options: dict[str, str]) -> None:
    """Copy a file, or all files of a folder, to a URL."""
    target: Any = location_of(url, options)
    if path.is_file():
        target.write_bytes(path.read_bytes())
    for file in path.rglob("*"):
        if file.is_file():
            (target / file.relative_to(path).as_posix()).write_bytes(file.read_bytes())
