"""An OpenAI-compatible provider on loopback that counts what it is asked."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Request:
    """One request as the provider saw it."""

    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def question(self) -> str:
        return str(self.body["messages"][-1]["content"])


@dataclass
class Provider:
    """A provider that replies what a function says, after `delay_s` seconds; to be used as a context manager."""

    reply: Callable[[Request], str] = lambda request: "Lima"
    delay_s: float = 0.0
    finish_reason: str = "stop"
    status: int = 200
    """Of its replies; with any other it says that something is wrong."""
    requests: list[Request] = field(default_factory=list)

    def __enter__(self) -> Provider:
        provider = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                request = Request(body, {name.lower(): value for name, value in self.headers.items()})
                provider.requests.append(request)
                time.sleep(provider.delay_s)
                if body.get("stream"):
                    self.stream(provider.completion(request))
                    return
                is_ok = provider.status == 200
                reply = provider.completion(request) if is_ok else {"error": {"message": "wrong"}}
                content = json.dumps(reply).encode()
                self.send_response(provider.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def stream(self, completion: dict[str, Any]) -> None:
                """Send the completion word by word, the usage last, and close the connection."""
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
                [choice] = completion["choices"]
                words = re.findall(r"\S+\s*", choice["message"]["content"])
                choices = [[{"index": 0, "delta": {"content": word}, "finish_reason": None}] for word in words]
                choices.append([{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}])
                events = [{**completion, "choices": part, "usage": None} for part in choices]
                if (body_options := provider.requests[-1].body.get("stream_options")) and body_options["include_usage"]:
                    events.append({**completion, "choices": []})
                for event in events:
                    data = json.dumps({**event, "object": "chat.completion.chunk"})
                    self.wfile.write(f"data: {data}\n\n".encode())
                self.wfile.write(b"data: [DONE]\n\n")
                self.close_connection = True

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def wait_for(self, requests: int, timeout_s: float = 10.0) -> None:
        """Block until so many requests have come."""
        until = time.monotonic() + timeout_s
        while len(self.requests) < requests:
            assert time.monotonic() < until, f"{len(self.requests)} requests after {timeout_s:g} s"
            time.sleep(0.01)

    def completion(self, request: Request) -> dict[str, Any]:
        text = self.reply(request)
        message = {"role": "assistant", "content": text}
        tokens = len(text.split())
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": request.body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": self.finish_reason}],
            "usage": {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens},
        }
