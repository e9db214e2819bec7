"""An OpenAI-compatible server on loopback whose replies a function makes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """An OpenAI-compatible server on this machine; `reply` makes a response of a request's path and body."""

    def __init__(self, reply: Callable[[str, dict[str, Any]], dict[str, Any]]) -> None:
        self.reply = reply
        self.requests: list[dict[str, Any]] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    """Speaks HTTP/1.0, so that no connection outlives its reply."""

    server: Server

    def do_GET(self) -> None:
        self.answer(self.server.reply(self.path, {}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        send = self.stream if body.get("stream") else self.answer
        send({"id": "1", "created": 1, "model": body["model"], **self.server.reply(self.path, body)})

    def answer(self, payload: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(payload).encode())

    def stream(self, payload: dict[str, Any]) -> None:
        """Send a response whole, as a stream of one event."""
        choices = [{**choice, "delta": choice.get("message")} for choice in payload["choices"]]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        event = json.dumps({**payload, "object": "chat.completion.chunk", "choices": choices})
        self.wfile.write(f"data: {event}\n\ndata: [DONE]\n\n".encode())

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(reply: Callable[[str, dict[str, Any]], dict[str, Any]]) -> Iterator[Server]:
    with Server(reply) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def chat_completion(text: str, prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    return {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }
