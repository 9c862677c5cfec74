"""Ports for servers that another process opens later."""

from __future__ import annotations

import random
import socket
from contextlib import suppress


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, and that the system gives to no one who asks for any port (32768 and above)."""
    ports: list[int] = []
    for port in random.SystemRandom().sample(range(20_000, 32_000), 1000):
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            ports.append(port)
            if len(ports) == count:
                return ports
    raise OSError("too few ports are free")
