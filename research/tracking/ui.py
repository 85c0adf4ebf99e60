"""make ui: serve MLflow's pages of this project's store, or of the one that MLFLOW_TRACKING_URI names, until Ctrl-C."""

import os
import socket
import sys

from research.cli import Parser, first_line, protect_streams, redact
from research.contracts import contract
from research.tracking.storage import UI_HOST, UI_PORT, is_server, resolve_uri

SETTINGS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its job engine answers without a login
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PYTHONWARNINGS": "ignore",  # of the packages that it uses
}
MAX_PORT = 65_535
PORT_HINT = 'open what is there, or take another: make ui ARGS="--port 5001"'


def main() -> None:
    """Print the link of the newest run, then become MLflow's server. Exit with 2 where port or store cannot be opened."""
    parser = Parser(prog="python -m research.tracking.ui", description="Serve MLflow's pages of all runs, until Ctrl-C.")
    parser.add_argument("--port", type=int, default=UI_PORT, help=f"of {UI_HOST} (default: {UI_PORT})")
    args = parser.parse_args()
    if not 1 <= args.port <= MAX_PORT:
        parser.error(f"--port {args.port}: give a number from 1 to {MAX_PORT}")
    uri = resolve_uri()
    if not is_server(uri) and not is_free(args.port):
        parser.error(f"port {args.port} of {UI_HOST} is taken, by another `make ui` perhaps: {PORT_HINT}")
    from research.tracking import links, mlflow_store  # heavy: --help does not need them

    try:
        rows = links.describe_newest(mlflow_store.connect(uri), links.get_address(uri, args.port))
    except Exception as error:  # stores raise errors of many kinds
        parser.error(f"MLflow's store {redact(uri)} cannot be opened: {first_line(error)}")
    for name, text in rows:
        print(f"{name:<16} {text}", flush=True)
    if is_server(uri):
        return
    print(f"{'store':<16} {redact(uri)}\nMLflow answers in some seconds; Ctrl-C ends it", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--host", UI_HOST, "--port", str(args.port), "--workers", "1"]
    # Its line for each request would push the links out of sight.
    command += ["--uvicorn-opts", "--log-level warning"]
    # In the environment: a command line, which everybody on the machine can read, would show the store's password.
    os.execve(sys.executable, command, os.environ | SETTINGS | {"MLFLOW_BACKEND_STORE_URI": uri})


@contract
def is_free(port: int) -> bool:
    """Return whether a server can listen at a port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has ended lately holds no port
        try:
            probe.bind((UI_HOST, port))
        except OSError:
            return False
    return True


if __name__ == "__main__":
    protect_streams()
    main()
