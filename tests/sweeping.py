"""A small Hydra program to sweep: an objective of two numbers that can be slow, fail, or be killed.

Each job writes its number, time, process and GPU to times.txt as it begins and ends.
"""

import json
import os
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import optuna
import yaml
from program import ROOT, run

from research.tracking import optuna_storage

WARNINGS = "error,ignore:The version_base parameter"  # Hydra 1.4 on what 1.3 wants
APP = """
import os, signal, time
import hydra
from research.sweep.trial import get_current_trial


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg):
    number = hydra.core.hydra_config.HydraConfig.get().job.num
    with open("times.txt", "a") as file:
        file.write(f"{number} {time.time()} {os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')}\\n")
    if number == cfg.die_at and not os.path.exists("died"):
        open("died", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if str(number) in str(cfg.fail_at).split("-"):
        raise cfg.error and OSError(cfg.error) or ValueError("no such number")
    if number == cfg.exit_at:
        raise SystemExit(7)
    if cfg.get("lose"):
        os.remove(cfg.lose)
        open(cfg.lose, "w").write("no database")
    time.sleep(cfg.pause * (6 if number % 4 == 0 else 1))
    trial = get_current_trial()
    for step in range(cfg.steps):
        if trial:
            trial.report(float(cfg.x) + step / 1000, step)
            if trial.should_prune():
                break
    with open("times.txt", "a") as file:
        file.write(f"{number} {time.time()} {os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')}\\n")
    if cfg.two == "list":
        return cfg.x, (cfg.x - 1) ** 2
    if cfg.two:
        return {"first": cfg.x, "second": (cfg.x - 1) ** 2}
    return float("nan") if number == cfg.nan_at else float(cfg.x) ** 2 + float(cfg.y or 0) ** 2


if __name__ == "__main__":
    main()
"""
CONFIG: dict[str, Any] = {
    "defaults": [{"override hydra/sweeper": "grokbit"}],
    "x": 1.0, "y": 0.0, "seed": 0, "steps": 0, "pause": 0.0, "two": False, "die_at": -1, "nan_at": -1, "exit_at": -1,
    "fail_at": "", "error": "",
    "hydra": {"sweep": {"dir": "sweep", "subdir": "${hydra.job.num}"}, "output_subdir": None, "sweeper": {"plots": False},
              "hydra_logging": {"root": {"level": "WARNING"}}},
}  # fmt: skip


def run_program(folder: Path, *argv: str) -> CompletedProcess[str]:
    own = {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": WARNINGS, "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "1"}
    return run([*argv], folder, os.environ | own)


def write_program(folder: Path, **changes: Any) -> None:
    (folder / "app.py").write_text(APP)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | changes))


def run_sweep(folder: Path, *arguments: str, fails: bool = False, **changes: Any) -> str:
    """Return the output of one sweep of the program, with warnings as errors; `changes` are of its configuration."""
    write_program(folder, **changes)
    done = run_program(folder, "app.py", "-m", *arguments)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


DRIVER = """
import json, os, runpy, sys, traceback
from contextlib import redirect_stderr, redirect_stdout
from hydra.core.global_hydra import GlobalHydra

for name, arguments in json.load(open("cases.json")).items():
    os.makedirs(name)
    os.chdir(name)
    for file in ("app.py", "config.yaml"):
        os.symlink(f"../{file}", file)
    sys.argv = ["app.py", "-m", *arguments]
    with open("output", "w") as output, redirect_stdout(output), redirect_stderr(output):
        try:
            runpy.run_path("app.py", run_name="__main__")
        except BaseException:
            traceback.print_exc()
            open("failed", "w").close()
    GlobalHydra.instance().clear()
    os.chdir("..")
"""


def run_sweeps(folder: Path, cases: dict[str, list[str]]) -> dict[str, tuple[str, bool]]:
    """Return the output of each of many sweeps, and True if it failed: all run in one process."""
    write_program(folder)
    (folder / "driver.py").write_text(DRIVER)
    (folder / "cases.json").write_text(json.dumps(cases))
    done = run_program(folder, "driver.py")
    assert done.returncode == 0, done.stderr
    return {name: ((folder / name / "output").read_text(), (folder / name / "failed").exists()) for name in cases}


def connect_journal(folder: Path) -> Any:
    """Return the storage of a sweep's folder, connected anew as another process would."""
    optuna_storage._connect_storage.cache_clear()
    return optuna_storage.get_storage(f"journal://{folder / 'study.journal'}")


def load_folder_study(folder: Path, name: str | None = None) -> optuna.Study:
    """Return the study of a sweep's folder, by default the one of the folder's name."""
    return optuna.load_study(study_name=name or folder.name, storage=connect_journal(folder))


def load_study(folder: Path, name: str = "sweep") -> optuna.Study:
    """Return the study that the program below `folder` has run."""
    return load_folder_study(folder / "sweep", name)


def list_params(study: optuna.Study) -> list[dict[str, Any]]:
    return [trial.params for trial in study.trials]
