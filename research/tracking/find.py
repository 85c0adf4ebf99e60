"""The run or the sweep that a command line names, by its folder or its id in MLflow. Imports no heavy library.

So what is neither is answered at once.
"""

import re
from contextlib import suppress
from pathlib import Path

from research.contracts import contract
from research.files.stage import EXPORT_FILE
from research.run_dir import RUN_ID_PATTERN, SUMMARY_FILE, expand_path, list_checkpoints, read_json, read_text, to_run_folder
from research.tracking.study_spec import SWEEP_SPEC_FILE
from research.training.manifest import is_checkpoint

JOURNAL_FILE, POPULATION_FILE = "study.journal", "population.json"  # in the folder of a sweep, and of a population
SOLUTION_FILE = "optimization_results.yaml"  # in both, with the folder of the best run
RUN_HINT = "give a run folder, one of its checkpoints/step-*"
SWEEP_HINT = "give a sweep's folder, as outputs/modular/sweep_..., or the id of its parent run in MLflow; a run has --html"


def find_folder(source: str, hint: str) -> Path | None:
    """Return a folder that is there; None for an id in MLflow. Raise ValueError with the hint for what is neither."""
    with suppress(OSError):  # no path at all, as one that is too long
        if (path := expand_path(source)).is_dir():
            return path
        if path.is_file():
            raise ValueError(describe_other(path) or f"it is a file; {hint}")
    if re.fullmatch(RUN_ID_PATTERN, source):
        return None
    raise ValueError(f"there is no such folder; {hint}")


@contract
def find_run(run: str | Path, setting: str = "RUN", uri: str | None = None) -> Path:
    """Return the folder of a run or a checkpoint, by its path or its id in the MLflow at `uri`, by default that of runs.

    Raise ValueError, which names the setting, where there is none.
    """
    run = str(run)
    check_run(run, setting)
    path = find_source(run, "", setting, uri)
    return path if is_checkpoint(path) else to_run_folder(path)


def find_source(source: str, hint: str, setting: str = "RUN", uri: str | None = None) -> Path:
    """Return a folder by its path, or that of a run by its id in MLflow. Raise ValueError with the hint for what is neither."""
    try:
        if path := find_folder(source, hint):
            return path.resolve()
        from research.tracking.mlflow_store import get_run_folder  # heavy, and for ids alone

        path = Path(get_run_folder(source, uri))
        if not path.is_dir():
            raise ValueError(f"its folder {path} is not there")
    except ValueError as error:
        raise ValueError(f"{setting}={source}: {error}") from error
    return path


def check_run(run: str, setting: str = "RUN") -> None:
    """Raise ValueError for what is neither a folder in which a run has begun, nor a checkpoint, nor an id in MLflow."""
    try:
        path = find_folder(run, f"{RUN_HINT}, or an MLflow run id")
    except ValueError as error:
        raise ValueError(f"{setting}={run}: {error}") from None
    if path is None or (path / "manifest.json").exists() or is_run_folder(folder := to_run_folder(path)):
        return
    if other := describe_other(path, setting):
        raise ValueError(f"{setting}={run}: {other}")
    if is_sweep_folder(folder):
        best = f"its best: {folder / name}" if (name := read_best_folder(folder)) else f"as {folder / '0'}"
        raise ValueError(f"{setting}={run}: it is the folder of a sweep; give one of its runs, {best}")
    newest = max((path for path in folder.iterdir() if path.is_dir() and is_run_folder(path)), default=None)  # by their dates
    hint = f"give a run, as the newest one here, {newest}" if newest else f"{RUN_HINT}, or an id"
    raise ValueError(f"{setting}={run}: {folder} has no config.yaml that can be read; {hint}")


@contract
def describe_other(path: Path, setting: str = "RUN") -> str:
    """Return what is at a path that is no run, "; " and what to type; an empty text where its files do not say."""
    folder = path if path.is_dir() else path.parent
    if (folder / EXPORT_FILE).is_file():
        return describe_export(folder)
    if path.is_file():
        gguf = "it is a file of GGUF, which runs and is not trained; give the run that it is of"
        return gguf if path.suffix == ".gguf" else ""
    if (path / "adapter_config.json").is_file():
        return "it is an adapter of peft; merge it with its base there, then train it by model=hub model.folder=FOLDER"
    if not (path / "config.json").is_file():
        return ""
    if is_run_folder(path.absolute().parent):
        return f"it is a part of a run; give that, {path.parent}"
    more = ", or load it there" if setting == "RUN" else f" in place of {setting}"
    return f"it is a folder of transformers, and no run; train it by model=hub data=text model.folder={path}{more}"


def describe_export(folder: Path) -> str:
    """Return of which run an export is, "; " and what to type."""
    report = read_json(folder / EXPORT_FILE)
    return f"it is an export ({report.get('format')}) of the run {report.get('run')}; give the folder of that run"


@contract
def check_report(source: str, html: bool, storage: str) -> None:
    """Raise ValueError for what a report cannot be of: neither the folder of a sweep, nor with `html` of a run, nor an id."""
    try:
        folder = find_folder(source, SWEEP_HINT)
        if not (folder is None or storage or (folder / POPULATION_FILE).exists() or (html and is_run_folder(folder))):
            find_journal(folder)
    except ValueError as error:
        raise ValueError(f"RUN_OR_SWEEP={source}: {error}") from None


@contract
def is_run_folder(folder: Path) -> bool:
    """Return whether a run has begun here."""
    return any((folder / name).exists() for name in ("config.yaml", SUMMARY_FILE)) or bool(list_checkpoints(folder))


@contract
def is_sweep_folder(folder: Path) -> bool:
    """Return whether a sweep or a population has begun here."""
    return any((folder / name).exists() for name in (JOURNAL_FILE, SWEEP_SPEC_FILE, POPULATION_FILE))


def read_best_folder(folder: Path) -> str:
    """Return the folder of a sweep's best run, relative to it where it is below; an empty text where it is not known."""
    with suppress(OSError):
        match = re.search("^folder: ['\"]?(.+?)['\"]?$", read_text(folder / SOLUTION_FILE, "replace"), re.MULTILINE)
        return match[1] if match and (folder / match[1]).is_dir() else ""
    return ""


@contract
def find_journal(folder: Path) -> str:
    """Return the URL of a sweep's study in its folder. Raise ValueError where there is none, with what to give instead."""
    journal = (folder / JOURNAL_FILE).absolute()
    if journal.is_file():
        return f"journal://{journal}"
    if (folder / SWEEP_SPEC_FILE).exists():
        setting = "give --storage with the sweep's hydra.sweeper.storage"
        raise ValueError(f"its study is not in the folder, which has no {JOURNAL_FILE}; {setting}")
    raise ValueError(f"it is no sweep's folder: it has no {JOURNAL_FILE} and no {SWEEP_SPEC_FILE}; {SWEEP_HINT}")
