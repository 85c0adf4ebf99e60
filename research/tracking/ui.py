"""make ui: serve MLflow's pages of this project's store, or of the one that MLFLOW_TRACKING_URI names, until Ctrl-C."""

import os
import socket
import sys
from typing import Any

from research.cli import Parser, first_line, protect_streams, redact
from research.tracking import links, mlflow_store
from research.tracking.fields import PARENT_TAG
from research.tracking.storage import resolve_uri

SETTINGS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its job engine answers without a login
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
PORT_HINT = 'open what is there, or take another: make ui ARGS="--port 5001"'


def main() -> None:
    """Print the link of the newest run, then become MLflow's server. Exit with 2 where port or store cannot be opened."""
    parser = Parser(prog="python -m research.tracking.ui", description="Serve MLflow's pages of all runs, until Ctrl-C.")
    parser.add_argument("--port", type=int, default=links.PORT, help=f"of {links.HOST} (default: {links.PORT})")
    args = parser.parse_args()
    uri = resolve_uri()
    address = links.get_address(uri, args.port)
    is_server = uri.startswith("http")
    if not is_server and not is_free(args.port):
        parser.error(f"port {args.port} of {links.HOST} is taken, by another `make ui` perhaps: {PORT_HINT}")
    try:
        rows = describe_newest(mlflow_store.connect(uri), address)
    except Exception as error:  # stores raise errors of many kinds
        parser.error(f"MLflow's store {redact(uri)} cannot be opened: {first_line(error)}")
    for name, text in rows:
        print(f"{name:<16} {text}", flush=True)
    if is_server:
        return
    print(f"{'store':<16} {redact(uri)}\nMLflow answers in some seconds. Ctrl-C ends it", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--host", links.HOST, "--port", str(args.port), "--workers", "1"]
    # Its line for each request would push the links out of sight.
    command += ["--uvicorn-opts", "--log-level warning"]
    # In the environment: a command line, which everybody on the machine can read, would show the store's password.
    os.execve(sys.executable, command, os.environ | SETTINGS | {"MLFLOW_BACKEND_STORE_URI": uri})


def is_free(port: int) -> bool:
    """Return whether a server can listen at a port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has ended lately holds no port
        try:
            probe.bind((links.HOST, port))
        except (OSError, OverflowError):
            return False
    return True


def describe_newest(client: Any, address: str) -> list[tuple[str, str]]:
    """Return rows of a name and a link: all experiments, and the newest run with its experiment and its sweep."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, order_by=["attributes.start_time DESC"], max_results=1)
    if not runs:
        return [("MLflow", f"{links.format_experiments_link(address)} (no runs yet: make train)")]
    (run,) = runs
    experiment_id, run_id, parent = run.info.experiment_id, run.info.run_id, run.data.tags.get(PARENT_TAG)
    rows = [("MLflow", links.format_experiment_link(address, experiment_id))]
    if parent or "sweep" in run.data.tags:
        return [*rows, ("newest sweep", links.format_sweep_link(address, experiment_id, parent or run_id))]
    return [*rows, ("newest run", links.format_run_link(address, experiment_id, run_id))]


if __name__ == "__main__":
    protect_streams()
    main()
