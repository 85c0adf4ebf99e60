"""A hub of one's own: enough of the real one's interface for the `datasets` library to stream a data set from a folder."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    """Answers for the folders below `root`: OWNER/NAME, some of them gated."""

    root: Path
    gated: set[str] = set()  # noqa: RUF012
    requests: list[str] = []  # noqa: RUF012
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        self.requests.append(f"{self.command} {self.path}")

    def answer(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, code: str, status: int) -> None:
        self.answer(b"{}", status, {"X-Error-Code": code, "X-Error-Message": code})

    def describe_file(self, file: Path, folder: Path) -> dict[str, Any]:
        kind = {"type": "file", "size": file.stat().st_size} if file.is_file() else {"type": "directory", "size": 0}
        return kind | {"path": str(file.relative_to(folder)), "oid": sha1(str(file).encode()).hexdigest()}

    def do_GET(self) -> None:
        self.handle_request()

    def do_HEAD(self) -> None:
        self.handle_request()

    def handle_request(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        parts = parts[1:] if parts[0] == "api" else parts
        if parts[0] != "datasets" or len(parts) < 3:
            self.refuse("EntryNotFound", 404)
            return
        name, folder, rest = "/".join(parts[1:3]), self.root / parts[1] / parts[2], parts[3:]
        if not folder.is_dir():
            self.refuse("RepoNotFound", 401)
        elif name in self.gated and rest[:1] == ["resolve"]:
            self.refuse("GatedRepo", 401)
        elif rest[1:2] and rest[1] not in (COMMIT, "main"):
            self.refuse("RevisionNotFound", 404)
        elif rest[:1] == ["resolve"]:
            self.send_file(folder.joinpath(*rest[2:]))
        elif rest[:1] == ["tree"]:
            below = folder.joinpath(*rest[2:])
            is_recursive = parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower() in ("true", "1")
            found = sorted(below.rglob("*") if is_recursive else below.glob("*"))
            content = [self.describe_file(file, folder) for file in found]
            self.answer(json.dumps(content).encode()) if below.exists() else self.refuse("EntryNotFound", 404)
        else:
            files = [{"rfilename": str(file.relative_to(folder))} for file in sorted(folder.rglob("*")) if file.is_file()]
            info = {
                "id": name,
                "sha": COMMIT,
                "siblings": files,
                "private": False,
                "gated": name in self.gated,
                "tags": [],
                "downloads": 0,
                "likes": 0,
            }
            self.answer(json.dumps(info).encode())

    def send_file(self, file: Path) -> None:
        if not file.is_file():
            self.answer(b"", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        content = file.read_bytes()
        headers = {"ETag": f'"{sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if (wanted := self.headers.get("Range", "")).startswith("bytes="):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            part = content[int(first) : int(last) + 1 if last else None]
            self.answer(part, 206, headers | {"Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"})
        else:
            self.answer(content, 200, headers)


@contextmanager
def serve(root: Path, *gated: str) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub whose data sets are the folders below `root`, and the requests that it has had."""
    requests: list[str] = []
    handler = type("OwnHandler", (Handler,), {"root": root, "gated": set(gated), "requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
