"""A model hub on loopback: the endpoints that a pull uses, and the ways in which they fail."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", "tokenizer.json", ".bin")


@dataclass
class FakeHub:
    """The repository `owner/name`: its files, what goes wrong, and what was asked."""

    files: dict[str, bytes]
    commit: str = "a" * 40
    breaks: dict[str, list[int]] = field(default_factory=dict)  # bytes sent before each break
    damaged: set[str] = field(default_factory=set)
    gated: bool = False
    failures: int = 0  # answers of 503 to come
    ranges: bool = True
    cdn: str | None = None  # large files are redirected there
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    url: str = ""

    def listing(self) -> dict:
        siblings = []
        for name, content in self.files.items():
            header = b"blob %d\0" % len(content)
            sibling = {"rfilename": name, "size": len(content)}
            sibling["blobId"] = hashlib.sha1(header + content).hexdigest()
            if name.endswith(LARGE):
                digest = hashlib.sha256(content).hexdigest()
                sibling["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
            siblings.append(sibling)
        return {"id": "owner/name", "sha": self.commit, "siblings": siblings}

    def downloads(self) -> list[tuple[str, str | None]]:
        """Files asked for, with the range of each request."""
        return [(p.rsplit("/", 1)[1], r) for p, r, _ in self.asked if "/resolve/" in p]


class Handler(BaseHTTPRequestHandler):
    """Answers for the hub of its server, one request a connection."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> FakeHub:
        return self.server.hub

    def log_message(self, *arguments) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.close_connection = True
        self.hub.asked.append((path, self.headers["Range"], self.headers["Authorization"]))
        if self.hub.failures:
            self.hub.failures -= 1
            self.answer(503, b"busy")
        elif path.startswith("/api/models/"):
            self.listing(path.removeprefix("/api/models/"))
        else:
            self.file(path)

    def listing(self, path: str) -> None:
        name, _, revision = path.partition("/revision/")
        if name != "owner/name":
            self.answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", "branch/1", self.hub.commit):
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            self.answer(200, json.dumps(self.hub.listing()).encode())

    def file(self, path: str) -> None:
        name = path.rsplit("/", 1)[1]
        if self.hub.gated:
            self.answer(401, b"{}", {"X-Error-Code": "GatedRepo"})
            return
        if self.hub.cdn and name.endswith(LARGE) and not path.startswith("/cdn/"):
            self.answer(302, b"", {"Location": f"{self.hub.cdn}/cdn{path}"})
            return
        content = self.hub.files[name]
        if name in self.hub.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = 0
        wanted = self.headers["Range"]
        if self.hub.ranges and wanted:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        headers = {"ETag": '"etag"', "X-Repo-Commit": self.hub.commit, "X-Linked-Etag": '"etag"'}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        breaks = self.hub.breaks.get(name)
        self.answer(
            206 if self.hub.ranges and wanted else 200,
            content[start:],
            headers,
            sent=breaks.pop(0) if breaks else None,
        )

    def answer(
        self, status: int, body: bytes, headers: dict | None = None, sent: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:sent])


@contextmanager
def running(hub: FakeHub) -> Iterator[FakeHub]:
    """Serves the hub on a free port of 127.0.0.1."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = hub
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
