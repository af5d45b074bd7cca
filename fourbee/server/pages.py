"""The page at `/`: files of the package's `static` folder, with types, ETags and a strict CSP."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

STATIC = Path(__file__).parent / "static"

MEDIA_TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    # A browser keeps the file and asks each time whether it is still the one.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class Page:
    """One file as it is sent."""

    content: bytes
    media_type: str
    etag: str

    def response(self, request: Request) -> Response:
        """200 with the file, or 304 for a browser that has it."""
        headers = {**HEADERS, "ETag": self.etag}
        known = request.headers.get("if-none-match", "")
        if self.etag in [tag.strip().removeprefix("W/") for tag in known.split(",")]:
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers=headers, media_type=self.media_type)


def load_pages(folder: Path = STATIC) -> dict[str, Page]:
    """Every file of the folder that the page may use, by its path on the server."""
    pages: dict[str, Page] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix in MEDIA_TYPES:
            content = file.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            pages[f"/{file.name}"] = Page(content, MEDIA_TYPES[file.suffix], etag)
    if "/index.html" in pages:
        pages["/"] = pages["/index.html"]
    return pages
