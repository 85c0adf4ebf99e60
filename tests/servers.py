"""An MLflow server as a run sees it, that can be told to fail."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import urlsplit

FAULTS = ("500", "hangs", "drops")  # answers with an error, accepts and never answers, closes the connection


class Server(ThreadingHTTPServer):
    """It keeps one run and the points of its metrics. `fault` is one of FAULTS, or the seconds that each answer takes."""

    daemon_threads = True
    fault: str | float = 0.0

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.uri, self.over = f"http://127.0.0.1:{self.server_port}", Event()
        self.points: dict[str, dict[int, float]] = {}
        self.tags: dict[str, str] = {}
        self.status, self.has_run, self.artifacts = "", False, folder / "server"
        self.artifacts.mkdir()

    def answer(self, path: str, sent: dict[str, Any]) -> dict[str, Any]:
        """Return the answer of MLflow's REST API, as far as the tracker reads it."""
        experiment = {"experiment_id": "1", "name": "study", "lifecycle_stage": "active"}
        if path == "runs/create":
            self.has_run, self.status = True, "RUNNING"
        elif path == "runs/update":
            self.status = sent.get("status", self.status)
        elif path == "runs/set-tag":
            self.tags[sent["key"]] = sent["value"]
        for point in sent.get("metrics", ()):
            self.points.setdefault(point["key"], {})[int(point.get("step", 0))] = point["value"]
        info: dict[str, Any] = {"run_id": "r", "experiment_id": "1", "status": self.status, "lifecycle_stage": "active"}
        info |= {"start_time": 1, "artifact_uri": str(self.artifacts)}
        tags = [{"key": key, "value": value} for key, value in self.tags.items()]
        metrics = [{"key": key, "value": 0.0, "timestamp": 1, "step": 0} for key in self.points]
        answers: dict[str, dict[str, Any]] = {
            "experiments/get-by-name": {"experiment": experiment},
            "experiments/search": {"experiments": [experiment]},
            "runs/create": {"run": {"info": info, "data": {"tags": tags}}},
            "runs/get": {"run": {"info": info, "data": {"tags": tags, "metrics": metrics}}},
            "runs/update": {"run_info": info},
        }
        return answers.get(path, {})


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server

    def answer(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        fault = self.server.fault
        if isinstance(fault, float):
            self.server.over.wait(fault)
        elif fault == "hangs":
            self.server.over.wait()
        if fault == "500":
            self.send_error(500)
        if isinstance(fault, str):
            self.close_connection = True
            return
        content = json.dumps(self.server.answer(urlsplit(self.path).path.partition("/mlflow/")[2], sent)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """Run a server within the block."""
    with Server(folder) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
