"""Ports nobody listens on."""

import os
import socket


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def free_pairs(count: int) -> list[int]:
    """Ports that are free together with the port 10,000 above."""
    found: list[int] = []
    # Processes that look at the same moment, with numbers side by side, are not to find the same.
    for port in range(20000 + os.getpid() * 97 % 10000, 50000):
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("there are no free ports")
