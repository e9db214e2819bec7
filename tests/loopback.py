"""A server on loopback that does whatever a test likes with each connection: what broken servers are played with."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

DRIP_S = 0.03
"""Seconds between the pieces of a reply that drips."""


class Connection:
    """One connection to the broken server."""

    def __init__(self, raw: socket.socket, released: threading.Event) -> None:
        self._raw, self.released = raw, released
        self.path = ""

    def request(self) -> dict[str, Any]:
        """Read a request; return its JSON body."""
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._receive()
        head, _, body = received.partition(b"\r\n\r\n")
        self.path = head.split(b" ")[1].decode()
        lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        while len(body) < sum(map(int, lengths)):
            body += self._receive()
        return json.loads(body) if body else {}

    def send(self, content: bytes) -> None:
        self._raw.sendall(content)

    def drip(self, pieces: Iterable[bytes]) -> None:
        """Send piece after piece, each long before a limit for one read would be reached."""
        for piece in pieces:
            if self.released.wait(DRIP_S):
                return
            self.send(piece)

    def hang(self) -> None:
        self.released.wait(60)

    def reset(self) -> None:
        """Close it so that the other side sees a reset, not an end."""
        self._raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._raw.close()

    def _receive(self) -> bytes:
        received = self._raw.recv(65536)
        if not received:
            raise ConnectionError("the client has closed the connection")
        return received


Serve = Callable[[Connection], None]


@contextlib.contextmanager
def serving(serve: Serve | None) -> Iterator[str]:
    """Give the address of a server that does this to each connection; None refuses connections."""
    released = threading.Event()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if serve is not None:
            listener.listen()
            threading.Thread(target=_accept, args=(listener, serve, released), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        released.set()
        with contextlib.suppress(OSError):  # a listener that is not listening
            listener.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket, serve: Serve, released: threading.Event) -> None:
    with contextlib.suppress(OSError):  # closed: the test is over
        while serve is not never_accepts:
            raw, _ = listener.accept()
            threading.Thread(target=_serve, args=(raw, serve, released), daemon=True).start()


def _serve(raw: socket.socket, serve: Serve, released: threading.Event) -> None:
    with raw, contextlib.suppress(OSError):  # the client gave up
        serve(Connection(raw, released))


def never_accepts(connection: Connection) -> None:
    """The system takes the connection, the server does not."""


def closes_at_once(connection: Connection) -> None:
    """Not even the request is read."""


def resets_at_once(connection: Connection) -> None:
    connection.reset()


def hangs(connection: Connection) -> None:
    connection.hang()


def sends(*content: bytes, then: Serve = closes_at_once) -> Serve:
    """Read the request, send this, then do that."""

    def serve(connection: Connection) -> None:
        connection.request()
        for piece in content:
            connection.send(piece)
        then(connection)

    return serve


def drips(start: bytes, piece: bytes) -> Serve:
    """Read the request, send a start, then a piece again and again."""

    def serve(connection: Connection) -> None:
        connection.request()
        connection.send(start)
        connection.drip(piece for _ in range(10_000))

    return serve


def floods(start: bytes, piece: bytes) -> Serve:
    """Read the request, send a start, then a piece without end, as fast as it goes."""

    def serve(connection: Connection) -> None:
        connection.request()
        connection.send(start)
        while not connection.released.is_set():
            connection.send(piece)

    return serve


def http(status: int | str, body: bytes | str | None = b"", *headers: str, length: int | str | None = None) -> bytes:
    """A whole HTTP reply; `length` is a Content-Length that is not true."""
    content = body.encode() if isinstance(body, str) else body or b""
    lines = [f"HTTP/1.1 {status} Reason", "Connection: close", *headers]
    if not any(header.lower().startswith(("content-length", "transfer-encoding")) for header in headers):
        lines.append(f"Content-Length: {len(content) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + content
