"""A TCP proxy that does to a connection what networks and overloaded servers do."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

_CHUNK_BYTES = 1 << 14
_POLL_SECONDS = 0.05


@dataclass
class Fault:
    """What happens to connections; by default, nothing."""

    delay: float = 0.0
    """Seconds that every answer waits."""
    cut_sent: int | None = None
    """Break a connection after this many bytes to the server."""
    cut_received: int | None = None
    """Break a connection after this many bytes from the server."""
    stall_received: int | None = None
    """Keep a connection open, but send nothing after this many bytes from the server."""
    flip_sent: int | None = None
    """Flip a bit of this byte to the server (counted over all connections)."""
    flip_received: int | None = None
    """Flip a bit of this byte from the server."""
    answer: bytes | None = None
    """An HTTP answer to every request, in place of the server's."""
    times: int | None = None
    """How many connections are cut, stalled or answered; None for all."""


class Proxy:
    """A proxy in front of a server on 127.0.0.1; `fault` may change at any time."""

    def __init__(self, server: int) -> None:
        self.server = server
        self.struck = 0
        """Connections that were cut, stalled or answered."""
        self.sent = self.received = 0
        """Bytes since the fault was set."""
        self._fault = Fault()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def fault(self) -> Fault:
        """What happens to connections."""
        return self._fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        with self._lock:
            self._fault, self.struck, self.sent, self.received = fault, 0, 0, 0
            connections = list(self._open)
        for connection in connections:  # clients that keep one open must connect again
            _reset(connection)

    def close(self) -> None:
        """End it and all its connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.fault = Fault()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            fault = self._fault
            self._open.add(client)
        try:
            if fault.answer is not None and self._strikes(fault):
                self._answer(client, fault.answer)
                return
            with socket.create_connection(("127.0.0.1", self.server)) as server:
                back = threading.Thread(target=self._pump_back, args=(server, client, fault), daemon=True)
                back.start()
                self._pump(client, server, fault)
                back.join()
        except OSError:
            _reset(client)  # the server is down: the client gets a connection that breaks
        finally:
            with self._lock:
                self._open.discard(client)
            client.close()

    def _strikes(self, fault: Fault) -> bool:
        with self._lock:
            if fault.times is not None and self.struck >= fault.times:
                return False
            self.struck += 1
            return True

    def _answer(self, client: socket.socket, answer: bytes) -> None:
        head = b""
        while b"\r\n\r\n" not in head and (part := client.recv(_CHUNK_BYTES)):
            head += part
        client.sendall(answer)
        client.shutdown(socket.SHUT_WR)
        client.settimeout(1)
        with contextlib.suppress(OSError):
            while client.recv(_CHUNK_BYTES):  # closing before the body has arrived would lose the answer
                pass

    def _pump(self, client: socket.socket, server: socket.socket, fault: Fault) -> None:
        carried = 0
        with contextlib.suppress(OSError):
            while data := client.recv(_CHUNK_BYTES):
                carried += len(data)
                if fault.cut_sent is not None and carried > fault.cut_sent and self._strikes(fault):
                    _reset(client)
                    _reset(server)
                    return
                with self._lock:  # otherwise concurrent connections could miss the byte to flip
                    before, self.sent = self.sent, self.sent + len(data)
                server.sendall(self._flipped(data, fault.flip_sent, before))
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def _pump_back(self, server: socket.socket, client: socket.socket, fault: Fault) -> None:
        carried = 0
        with contextlib.suppress(OSError):
            while data := server.recv(_CHUNK_BYTES):
                time.sleep(fault.delay)
                carried += len(data)
                if fault.cut_received is not None and carried > fault.cut_received and self._strikes(fault):
                    client.sendall(data[: max(0, fault.cut_received - (carried - len(data)))])
                    time.sleep(_POLL_SECONDS)  # the bytes arrive before the connection breaks
                    _reset(client)
                    _reset(server)
                    return
                if fault.stall_received is not None and carried > fault.stall_received and self._strikes(fault):
                    while self._fault is fault and server.fileno() >= 0:
                        time.sleep(_POLL_SECONDS)
                    _reset(client)
                    return
                with self._lock:
                    before, self.received = self.received, self.received + len(data)
                client.sendall(self._flipped(data, fault.flip_received, before))
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_WR)

    @staticmethod
    def _flipped(data: bytes, byte: int | None, before: int) -> bytes:
        if byte is None or not before <= byte < before + len(data):
            return data
        at = byte - before
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _reset(connection: socket.socket) -> None:
    """Break a connection; both ends get an error at once."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def proxy(server: int) -> Iterator[Proxy]:
    """A proxy in front of a server's port."""
    between = Proxy(server)
    try:
        yield between
    finally:
        between.close()


def http(status: str, body: bytes, content_type: str) -> bytes:
    """A whole HTTP answer, after which the connection is closed."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body
