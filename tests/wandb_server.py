"""A server of W&B's as its library and `wandb sync` see it: runs, and the rows of their histories, kept in memory."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

Row = dict[str, Any]


@dataclass
class StoredRun:
    """A run: its history by line, as the real server keeps it: what comes again for a line replaces it."""

    lines: dict[int, Row] = field(default_factory=dict)
    summary: Row = field(default_factory=dict)
    is_begun: bool = False


class Server(ThreadingHTTPServer):
    """Answers what a run asks. Without `answers` it is silent, as a server that is overloaded."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url, self.runs = f"http://127.0.0.1:{self.server_port}", dict[str, StoredRun]()

    def answer(self, path: str, sent: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a query, or to the lines of a history."""
        if path.endswith("file_stream"):
            run = self.runs[path.split("/")[-2]]
            for name, chunk in (sent.get("files") or {}).items():
                rows = [json.loads(line) for line in chunk["content"]]
                if name == "wandb-history.jsonl":
                    run.lines |= dict(enumerate(rows, start=chunk["offset"]))
                if name == "wandb-summary.json":
                    run.summary = rows[-1]
            return {}
        variables, query = sent.get("variables") or {}, sent["query"]
        project = {"id": "p", "name": "study", "entity": {"id": "e", "name": "me"}}
        if "upsertBucket" in query:
            name = variables.get("name") or variables["id"]
            run = self.runs.setdefault(name, StoredRun())
            is_new, run.is_begun = not run.is_begun, True
            bucket = {"id": name, "name": name, "displayName": name, "project": project, "config": "{}"}
            return {"upsertBucket": {"bucket": bucket | {"historyLineCount": len(run.lines)}, "inserted": is_new}}
        if "RunResumeStatus" in query:
            return {"model": project | {"bucket": self.describe(variables["name"])}}
        if "CreateRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        viewer = {"id": "u", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
        return {"viewer": viewer, "serverInfo": {"features": []}, "project": {"run": {"stopped": False}}}

    def read(self, folder: Path) -> dict[int, dict[str, float]]:
        """Return the rows of the run that a folder names, by their step. Each step is there once."""
        run = self.runs[json.loads((folder / "wandb" / "run.json").read_text())["id"]]
        rows = [dict(run.lines[number]) for number in sorted(run.lines)]
        assert len({row["step"] for row in rows}) == len(rows)
        return {
            int(row.pop("step")): {k: float(v) for k, v in row.items() if k != "seconds" and not k.startswith("_")}
            for row in rows
        }

    def describe(self, name: str) -> Row | None:
        """Return what a run that is resumed reads of what it was."""
        if not (run := self.runs.get(name)):
            return None
        counts = {"historyLineCount": len(run.lines), "eventsLineCount": 0, "logLineCount": 0}
        tail = json.dumps([json.dumps(run.lines[max(run.lines)])] if run.lines else [])
        texts = {"summaryMetrics": json.dumps(run.summary), "historyTail": tail, "eventsTail": "[]", "config": "{}"}
        return {"id": name, "name": name, "displayName": name, "tags": [], "wandbConfig": '{"t": 1}'} | counts | texts


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.send(b"")

    def do_POST(self) -> None:
        content, path = self.rfile.read(int(self.headers["Content-Length"] or 0)), urlsplit(self.path).path
        is_known = path == "/graphql" or path.endswith("file_stream")  # else it is W&B's telemetry
        answer = self.server.answer(path, json.loads(content or b"{}")) if is_known else {}
        self.send(json.dumps(answer if path.endswith("file_stream") else {"data": answer}).encode())

    def send(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


@contextmanager
def serve() -> Iterator[Server]:
    """Yield a server that listens."""
    server = Server()
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
