"""The page of the server: plain files, served with a policy under which the browser loads nothing else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi.responses import Response

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
"""No script or style but the page's files; no request but to its server; no text that becomes HTML."""

_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

_FILES = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/api.js": ("api.js", "text/javascript"),
    "/approval.js": ("approval.js", "text/javascript"),
    "/dom.js": ("dom.js", "text/javascript"),
    "/plot.js": ("plot.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


def page_files() -> dict[str, Callable[[], Awaitable[Response]]]:
    """Return what answers for each path of the page."""
    return {path: _answering(Path(__file__).with_name(name), kind) for path, (name, kind) in _FILES.items()}


def _answering(file: Path, kind: str) -> Callable[[], Awaitable[Response]]:
    content = file.read_bytes()

    async def answer() -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)

    return answer
