"""The machine, the packages and the commit that a run rests on: env.json."""

import os
import platform
import socket
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import torch

from research.cli import redact, run_process
from research.contracts import contract
from research.kernels.build import read_processor
from research.run_dir import ROOT

PACKAGES = ("torch", "hydra-core", "accelerate", "optuna", "mlflow", "numpy")


@contract
def run_git(*arguments: str) -> str:
    """Return what git prints in this repository; nothing without git or outside a repository.

    It takes no lock, so a run never disturbs a commit.
    """
    command = ("git", "--no-optional-locks", *arguments)
    try:
        process = run_process(f"git {arguments[0]} in {ROOT}", command, ROOT, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return process.stdout.strip("\n") if process.returncode in (0, 1) else ""  # 1: `git diff --no-index` has found a difference


def find_changes() -> str:
    """Return what the files have that the commit lacks, as a patch: options and modules of the user's own among them."""
    new = run_git("ls-files", "-z", "--others", "--exclude-standard", "conf", ":(glob)*.py").split("\0")
    parts = run_git("diff", "HEAD"), *(run_git("diff", "--no-index", "/dev/null", name) for name in new if name)
    return "\n".join(filter(None, parts))


def describe_environment() -> dict[str, Any]:
    """Describe hardware, package versions and git state, for reproducing the run."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "processor": read_processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": {name: version(name) for name in PACKAGES},
        "git": {
            "sha": run_git("rev-parse", "HEAD"),
            "branch": run_git("branch", "--show-current"),
            "dirty": bool(run_git("status", "--porcelain")),
        },
        "command": redact(sys.argv),
    }
