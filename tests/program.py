"""The program as a user starts it: a process of its own, with folders and a store of its own."""

import atexit
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from select import select
from typing import Any

from research.training.manifest import MANIFEST_FILE, read_manifest

ROOT = Path(__file__).resolve().parents[1]
TINY = ["trainer=debug", "model.dim=32", "model.heads=2", "data.p=11", "batch_size=16", "trainer.device=cpu"]

FORK_SERVER = """
import gc, importlib, json, os, runpy, sys, warnings
gc.disable()  # as the program does while it imports
import alembic.command, matplotlib.backends.backend_agg, mlflow.store.tracking.sqlalchemy_workspace_store, optuna
import sklearn.datasets, sqlalchemy.dialects.sqlite, torch._dynamo
import research.callbacks.console, research.callbacks.checkpoint, research.callbacks.curve, research.models.transformer
import research.optim.grokfast, research.report.report, research.run, research.sweep.sweep, research.tracking.mlflow
from functools import _lru_cache_wrapper
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from io import BytesIO
from research.callbacks.measurement import make_figure
from research.preflight.check import find_mistakes

# What each run would do for the first time: Hydra's parsers and its plugins, and the fonts of a picture.
find_mistakes(["model=bitnet", "lr=1e-3", "'name=a b'", "optim.no_decay=[norm]"], False)
axes = (figure := make_figure(6, 4, "title")).subplots(1, 2)
for ax in axes:
    ax.plot([1, 100], [0.5, 1.5], label="label")
    ax.set(xlabel="step", ylabel="loss", title="title", xscale="log")
    ax.legend()
figure.savefig(BytesIO(), dpi=120, format="png")
for module in [module for name, module in sys.modules.items() if name.split(".")[0] == "research"]:
    for value in vars(module).values():
        if isinstance(value, _lru_cache_wrapper):
            value.cache_clear()  # no run knows what another has read
for line in sys.stdin:
    asked = json.loads(line)
    for name in asked["libraries"]:
        importlib.import_module(name)
    gc.freeze()  # or else half of a run's time goes into looking for garbage among what was imported
    if not (child := os.fork()):
        break
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
gc.enable()
os.chdir(asked["cwd"])
os.environ.clear()
os.environ.update(asked["env"])
warnings._processoptions(filter(None, os.environ.get("PYTHONWARNINGS", "").split(",")))
for number, path in enumerate((os.devnull, *asked["said"])):
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
sys.argv, sys.orig_argv = asked["argv"], [sys.executable, *asked["argv"]]  # workers are started as the program was
sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
# What ends it ends the process, as it would the program.
if sys.argv[0] == "-c":
    code = sys.argv.pop(1)
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
elif sys.argv[0] == "-m":
    sys.path[0] = os.getcwd()
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
else:
    sys.path[0] = os.path.dirname(sys.argv[0])
    if os.path.basename(sys.argv[0]) != "train.py":
        Singleton._instances.pop(Plugins)  # another program may have more, which ours looks for at its import
        for name in [name for name in sys.modules if name.startswith("hydra_plugins")]:
            del sys.modules[name]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
HUB_LIBRARIES = ["transformers.models.llama.modeling_llama", "transformers.tokenization_utils_tokenizers"]
IDLE_SERVERS: list[subprocess.Popen[str]] = []


def start_fork_server() -> subprocess.Popen[str]:
    """A process that has imported what the program will: to import it again for each run would be most of the tests' time."""
    if IDLE_SERVERS:
        return IDLE_SERVERS.pop()
    own = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", FORK_SERVER], text=True, env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    atexit.register(stop_fork_server, process)
    return process


def stop_fork_server(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()  # which closes its pipes


class Fork:
    """A program that runs in a fork, with the part of Popen's interface that tests need."""

    def __init__(self, argv: list[str], cwd: Path, env: dict[str, str]) -> None:
        uses_hub = find_spec("transformers") and any(word.startswith(("model=hub", "experiment=finetune_hub")) for word in argv)
        self.argv, self.server = argv, start_fork_server()
        self.folder = Path(tempfile.mkdtemp(prefix="grokbit-"))
        self.output_paths = [self.folder / name for name in ("stdout", "stderr")]
        asked = {"argv": argv, "cwd": str(cwd), "env": env, "said": [str(path) for path in self.output_paths]}
        asked["libraries"] = HUB_LIBRARIES if uses_hub else []
        print(json.dumps(asked), file=self.server.stdin, flush=True)
        self.pid = int(self.read_line(120))
        self.returncode: int | None = None

    def read_line(self, timeout: float) -> str:
        assert self.server.stdout
        if not select([self.server.stdout], [], [], timeout)[0]:
            self.server.kill()
            raise AssertionError(f"it runs for more than {timeout} s: {self.argv}")
        return self.server.stdout.readline()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """What it wrote on its two outputs, once it has ended."""
        self.returncode = int(self.read_line(timeout))
        IDLE_SERVERS.append(self.server)
        out, err = (path.read_text() for path in self.output_paths)
        shutil.rmtree(self.folder)
        return out, err


def run(argv: list[str], cwd: Path, env: dict[str, str], timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Return what a program of this repository has written: a file, -m MODULE or -c CODE, with its arguments."""
    fork = Fork(argv, cwd, env)
    out, err = fork.communicate(timeout)
    assert fork.returncode is not None
    return subprocess.CompletedProcess(argv, fork.returncode, out, err)


TORCHRUN = """
import os, runpy, sys
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

def main():
    sys.orig_argv[1:3] = []
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")

sys.argv.pop(0)
own = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "none", "max_restarts": 0, "start_method": "fork"}
elastic_launch(LaunchConfig(1, 1, 2, **own), main)()
"""


def start_torchrun(argv: list[str], cwd: Path, env: dict[str, str]) -> Fork:
    """torchrun --nproc-per-node 2, whose processes are forks of its own: all of them have imported what the program will."""
    return Fork(["-c", TORCHRUN, *argv], cwd, env)


def run_ranks(argv: list[str], cwd: Path, env: dict[str, str]) -> list[subprocess.CompletedProcess[str]]:
    """Two processes of one run, as a launcher would start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    both = env | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda rank: run(argv, cwd, both | {"RANK": rank, "LOCAL_RANK": rank}), "01"))


@cache
def create_empty_store() -> Path:
    """An MLflow store with nothing in it: to make one takes seconds, to copy one does not."""
    from mlflow.tracking import MlflowClient

    path = Path(tempfile.mkdtemp(prefix="grokbit-")) / "mlflow.db"
    atexit.register(shutil.rmtree, path.parent, ignore_errors=True)
    assert len(MlflowClient(f"sqlite:///{path}").search_experiments()) == 1
    return path


def make_environment(tmp_path: Path) -> dict[str, str]:
    if not (tmp_path / "mlflow.db").exists():
        shutil.copy(create_empty_store(), tmp_path / "mlflow.db")
    return {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}", "OMP_NUM_THREADS": "1"}


def train(tmp_path: Path, *arguments: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
    argv = [str(ROOT / "train.py"), *arguments, f"out={tmp_path / 'out'}"]
    done = run(argv, tmp_path, make_environment(tmp_path))
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done


def read_summaries(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in sorted((tmp_path / "out").rglob("summary.json"))]


def forget_configurations(run: Path) -> None:
    """Let config.yaml count, as in a run of version 1, whose checkpoints do not know their configuration."""
    for checkpoint in (run / "checkpoints").iterdir():
        manifest = replace(read_manifest(checkpoint), config={})
        (checkpoint / MANIFEST_FILE).write_text(manifest.to_json())


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "crc32") and not k.startswith("perf/")} for line in found]


def start_run(tmp_path: Path, *arguments: str, **variables: str) -> Fork:
    """A run under way; `more` are variables of its environment."""
    return Fork(
        [str(ROOT / "train.py"), *arguments, f"out={tmp_path / 'out'}"], tmp_path, make_environment(tmp_path) | variables
    )


def wait_for_run(tmp_path: Path, name: str, steps: int) -> Path:
    """The folder of a run under way, once it has logged so many steps."""
    for _ in range(600):
        for file in (tmp_path / "out" / name).glob("*/metrics.jsonl"):
            if len(file.read_text().splitlines()) >= steps:
                return file.parent
        time.sleep(0.1)
    raise AssertionError("the run did not begin")
