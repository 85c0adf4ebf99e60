"""What resume= means: the run that is resumed, the folder that it writes to, and the settings that must not change."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from research.preflight.compose import MISSING, ComposedConfig, iter_leaves
from research.preflight.overrides import expand_sweep, format_mistake
from research.preflight.renames import upgrade_config
from research.preflight.requested import RequestedConfig, repr_value
from research.rules import Conflict
from research.run_dir import RUN_ID_PATTERN, is_locked, list_checkpoints, to_run_folder

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

CHANGEABLE_KEYS = ("model.dropout", "model.init_std", "model.linear.backend")  # a resumed run may change them
IGNORED_KEYS = ("out", "name", "resume", "tracker", "hydra")  # with other values it is still the same run


@dataclass
class Resume:
    """The keys below `resume`, with their types."""

    path: str | None
    weights_only: bool


def expand_resume(argument: str) -> str:
    """Return resume=X as resume.path=X, since `resume` itself holds keys."""
    return re.sub(r"^(\+{0,2})resume=", r"\1resume.path=", argument)


def check_resume_sweep(override: "Override") -> str:
    """Return the mistake of a sweep over several MLflow runs: only one id can be resolved before Hydra starts."""
    is_sweep = override.key_or_group == "resume.path" and override.is_sweep_override()
    if not (is_sweep and any(re.search(RUN_ID_PATTERN, value) for value in expand_sweep(override))):
        return ""
    return format_mistake(str(override.input_line), "a sweep can start from one run in MLflow", "give the folders of several")


def get_resume_overrides(requested: RequestedConfig, multirun: bool = False) -> list[str]:
    """Return the overrides that replace an MLflow run id by its path, and send a resumed run to its own folder."""
    value, has_folder = requested.get_resolved("resume.path")[0], multirun or "hydra.run.dir" in requested.typed_overrides
    if not isinstance(value, str):
        return []
    if value == "auto":
        own = None if has_folder else find_latest_run(requested)
        return [f"hydra.run.dir={quote_path(own)}"] if own else []
    if (path := find_resume_path(requested)) is None:
        return []
    overrides = [f"resume.path={quote_path(path)}"] if re.fullmatch(RUN_ID_PATTERN, value) else []
    # From an older checkpoint, or from weights alone, a new run branches off in a folder of its own.
    if has_folder or has_later_checkpoints(path) or starts_from_weights(requested):
        return overrides
    return [*overrides, f"hydra.run.dir={quote_path(to_run_folder(path))}"]


def starts_from_weights(requested: RequestedConfig) -> bool:
    """Return whether a new run starts from the weights of another one."""
    return requested.get_resolved("resume.weights_only")[0] is True


def has_later_checkpoints(path: Path) -> bool:
    """Return whether a path is a checkpoint, and its run has later ones."""
    return path != to_run_folder(path) and path != next(iter(list_checkpoints(to_run_folder(path)).values()), path)


def quote_path(path: Path) -> str:
    """Return a path as a quoted text for Hydra."""
    text = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def find_latest_run(requested: RequestedConfig) -> Path | None:
    """Return the newest run folder of this very configuration, one with a checkpoint if there is any; else None."""
    runs = []
    root = Path(str(requested.get_resolved("out")[0])).expanduser() / str(requested.get_resolved("name")[0])
    for config in sorted(root.glob("*/config.yaml"), key=lambda file: file.stat().st_mtime, reverse=True):
        if (old := load_config(config)) and not describe_differences(requested, old):
            runs.append(config.parent.resolve())
            if list_checkpoints(runs[-1]):
                return runs[-1]
    return runs[0] if runs else None


def find_resume_path(requested: RequestedConfig) -> Path | None:
    """Return the run folder or checkpoint that resume= names, by a path or an MLflow run id; None where there is none."""
    value = str(requested.get_resolved("resume.path")[0])
    if (path := Path(value).expanduser()).exists():
        return path.resolve()
    if not re.fullmatch(RUN_ID_PATTERN, value):
        return None
    out = Path(str(requested.get_resolved("out")[0])).expanduser()
    for file in (*out.glob("*/*/mlflow_run_id"), *out.glob("*/*/*/mlflow_run_id")):
        if file.read_text(errors="replace").strip() == value:
            return file.parent.resolve()
    # MLflow takes seconds to import, so it is asked only about a run that is not below `out`.
    from research.tracking.mlflow_store import get_run_folder

    uri = requested.get_resolved("tracker.uri")[0]
    try:
        path = Path(get_run_folder(value, uri if isinstance(uri, str) else None))
    except ValueError:
        return None
    return path if path.exists() else None


def load_config(file: Path) -> ComposedConfig | None:
    """Return a run's config.yaml with the current names; None where it is missing or damaged."""
    from omegaconf import OmegaConf

    try:
        content = OmegaConf.to_container(OmegaConf.load(file))
    except Exception:  # the parser has no common class of errors
        return None
    return ComposedConfig(upgrade_config(content)) if isinstance(content, dict) and content else None  # type: ignore[arg-type]


def describe_differences(requested: RequestedConfig, old: ComposedConfig, *nodes: str) -> list[str]:
    """Return a line for each key whose value differs from an old run's; of some nodes, or of all that matter."""
    nodes = nodes or tuple(dict.fromkeys(key for side in (requested, old) for key in side.cfg if key not in IGNORED_KEYS))
    keys = dict.fromkeys(key for node in nodes for side in (requested, old) for key, _ in iter_leaves(node, side.get(node)))
    return [f"{key} is {format_value(requested, key)} here, was {format_value(old, key)} there" for key in keys
            if requested.get_resolved(key)[0] != old.get_resolved(key)[0]]  # fmt: skip


def format_value(config: ComposedConfig, key: str) -> str:
    """Return the value of a key for a message."""
    value = config.get_resolved(key)[0]
    return "nothing" if value is MISSING else repr_value(value)


def check_resume(requested: RequestedConfig) -> Iterator[Conflict]:
    """A run resumes from an existing checkpoint, with the same model, optimizer and data."""
    value = requested.get_resolved("resume.path")[0]
    if value == "auto":
        yield from check_resume_auto(requested)
    elif isinstance(value, str):
        yield from check_resume_path(requested, value)
    elif starts_from_weights(requested):
        fix = "give resume=, a run folder or a checkpoint"
        yield Conflict(("resume.weights_only",), "resume.weights_only=true needs weights to start from", fix)


def check_resume_auto(requested: RequestedConfig) -> Iterator[Conflict]:
    """resume=auto resumes, and no other process is writing that run."""

    if starts_from_weights(requested):
        message = "resume=auto resumes the newest run of this configuration, resume.weights_only=true starts a new one"
        yield Conflict(("resume.path", "resume.weights_only"), message, "give resume=FOLDER, the run to start from")
    elif (own := find_latest_run(requested)) and "hydra.run.dir" not in requested.typed_overrides and is_locked(own):
        yield Conflict(("resume.path",), f"another process is writing this very run: {own}", "wait for its end")


def check_resume_path(requested: RequestedConfig, value: str) -> Iterator[Conflict]:
    """Check that the path or id leads to a checkpoint that the run can resume."""
    path = find_resume_path(requested)
    if path is None:
        is_id = re.fullmatch(RUN_ID_PATTERN, value)
        message = "no such folder, nor a run in MLflow" if is_id else f"there is no {Path(value).absolute()}"
        yield Conflict(("resume.path",), message, "give auto, a run folder, one of its checkpoints/step-*, or an MLflow run id")
        return
    folder = to_run_folder(path)
    if path == folder and not list_checkpoints(path):
        yield Conflict(("resume.path",), f"{path} holds no checkpoint", "give a run folder, or one of its checkpoints/step-*")
    target = Path(str(requested.get_resolved("hydra.run.dir")[0])).resolve()
    writes_there = "hydra.run.dir" in requested.typed_overrides and target == folder
    if writes_there and has_later_checkpoints(path) and not starts_from_weights(requested):
        message = f"{folder} has later checkpoints than {path.name}"
        yield Conflict(("resume.path", "hydra.run.dir"), message, "leave out hydra.run.dir: the run gets a folder of its own")
    if old := load_config(folder / "config.yaml"):
        yield from check_resume_changes(requested, old)


def check_resume_changes(requested: RequestedConfig, old: ComposedConfig) -> Iterator[Conflict]:
    """The model is the old run's; unless only its weights are taken, data and optimizer are too."""
    fresh = starts_from_weights(requested)
    for node in ("model",) if fresh else ("model", "data", "optim._target_", "optim.base._target_"):
        lines = [line for line in describe_differences(requested, old, node) if line.split()[0] not in CHANGEABLE_KEYS]
        if lines:
            fix = "give what it was trained with" + ("" if node == "model" else ", or resume.weights_only=true")
            yield Conflict(("resume.path", *(line.split()[0] for line in lines)), "; ".join(lines[:3]), fix)
