"""What resume= means: the run that is resumed, the folder that it writes to, and the settings that must not change."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from research.preflight.compose import MISSING, ComposedConfig, iter_leaves
from research.preflight.overrides import expand_sweep, format_mistake, to_override
from research.preflight.renames import upgrade_config
from research.preflight.requested import RequestedConfig
from research.ranges import repr_value
from research.rules import Conflict
from research.run_dir import RUN_ID_PATTERN, is_locked, list_checkpoints, to_run_folder

CHANGEABLE_KEYS = ("model.dropout", "model.init_std", "model.linear.backend")  # a resumed run may change them
FIXED_NODES = ("model", "data", "optim._target_", "optim.base._target_")  # a resumed run has them as they were
IGNORED_KEYS = ("out", "name", "resume", "tracker", "hydra")  # with other values it is still the same run


@dataclass
class Resume:
    """The keys below `resume`, with their types."""

    path: str | None
    weights_only: bool


def expand_resume(argument: str) -> str:
    """Return resume=X as resume.path=X, since `resume` itself holds keys."""
    return re.sub(r"^(\+{0,2})resume=", r"\1resume.path=", argument)


def check_resume_sweep(override: Override) -> str:
    """Return the mistake of a sweep over several MLflow runs: only one id can be resolved before Hydra starts."""
    is_sweep = override.key_or_group == "resume.path" and override.is_sweep_override()
    if not (is_sweep and any(re.search(RUN_ID_PATTERN, value) for value in expand_sweep(override))):
        return ""
    return format_mistake(str(override.input_line), "a sweep can start from one run in MLflow", "give the folders of several")


def get_resume_overrides(requested: RequestedConfig, multirun: bool = False) -> list[str]:
    """Return the overrides that replace an MLflow run id by its path, and send a resumed run to its own folder."""
    value, has_folder = requested.get_resolved("resume.path")[0], multirun or "hydra.run.dir" in requested.typed_overrides
    if value == "auto":
        path, overrides = None if has_folder else find_latest_run(requested), []
    else:
        path = find_resume_path(requested) if isinstance(value, str) else None
        overrides = [f"resume.path={to_override(str(path))}"] if path and re.fullmatch(RUN_ID_PATTERN, value) else []
        # From an older checkpoint, or from weights alone, a new run branches off in a folder of its own.
        has_folder = has_folder or starts_from_weights(requested) or (path is not None and has_later_checkpoints(path))
    return overrides if path is None or has_folder else [*overrides, f"hydra.run.dir={to_override(str(to_run_folder(path)))}"]


def starts_from_weights(requested: RequestedConfig) -> bool:
    """Return whether a new run starts from the weights of another one."""
    return requested.get_resolved("resume.weights_only")[0] is True


def has_later_checkpoints(path: Path) -> bool:
    """Return whether a path is a checkpoint, and its run has later ones."""
    return path != to_run_folder(path) and path != next(iter(list_checkpoints(to_run_folder(path)).values()), path)


def find_latest_run(requested: RequestedConfig) -> Path | None:
    """Return the newest run folder of this very configuration, one with a checkpoint if there is any; else None."""
    root = Path(str(requested.get_resolved("out")[0])).expanduser() / str(requested.get_resolved("name")[0])
    files = list(root.glob("*/config.yaml"))
    files.sort(key=lambda file: (bool(list_checkpoints(file.parent)), file.stat().st_mtime), reverse=True)
    configs = ((file, load_config(file)) for file in files)
    return next((file.parent.resolve() for file, old in configs if old and not describe_differences(requested, old)), None)


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
    try:
        content = OmegaConf.to_container(OmegaConf.load(file))
    except Exception:  # the parser has no common class of errors
        return None
    return ComposedConfig(upgrade_config(content)) if isinstance(content, dict) and content else None  # type: ignore[arg-type]


def describe_differences(requested: RequestedConfig, old: ComposedConfig, *nodes: str) -> list[str]:
    """Return a line for each key whose value differs from an old run's; of some nodes, or of all that matter."""
    nodes = nodes or tuple(dict.fromkeys(key for side in (requested, old) for key in side.cfg if key not in IGNORED_KEYS))
    keys = dict.fromkeys(key for node in nodes for side in (requested, old) for key, _ in iter_leaves(node, side.get(node)))
    values = {key: (requested.get_resolved(key)[0], old.get_resolved(key)[0]) for key in keys}
    texts = {key: ["nothing" if value is MISSING else repr_value(value) for value in pair] for key, pair in values.items()}
    return [f"{key} is {texts[key][0]} here, was {texts[key][1]} there" for key, (now, then) in values.items() if now != then]


def find_resume_conflicts(requested: RequestedConfig) -> Iterator[Conflict]:
    """A run resumes from an existing checkpoint, with the same model, optimizer and data; no other process is writing it."""
    value, is_new = requested.get_resolved("resume.path")[0], starts_from_weights(requested)
    if isinstance(value, str) and value != "auto":
        yield from find_path_conflicts(requested, value)
    elif is_new and value == "auto":
        message = "resume=auto resumes the newest run of this configuration, resume.weights_only=true starts a new one"
        yield Conflict(("resume.path", "resume.weights_only"), message, "give resume=FOLDER, the run to start from")
    elif is_new:
        fix = "give resume=, a run folder or a checkpoint"
        yield Conflict(("resume.weights_only",), "resume.weights_only=true needs weights to start from", fix)
    elif value == "auto" and "hydra.run.dir" not in requested.typed_overrides:
        own = find_latest_run(requested)
        if own and is_locked(own):
            yield Conflict(("resume.path",), f"another process is writing this very run: {own}", "wait for its end")


def find_path_conflicts(requested: RequestedConfig, value: str) -> Iterator[Conflict]:
    """The path or id leads to a checkpoint of the same model; data and optimizer differ only where a new run takes weights."""
    path, is_new = find_resume_path(requested), starts_from_weights(requested)
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
    if writes_there and has_later_checkpoints(path) and not is_new:
        message = f"{folder} has later checkpoints than {path.name}"
        yield Conflict(("resume.path", "hydra.run.dir"), message, "leave out hydra.run.dir: the run gets a folder of its own")
    if old := load_config(folder / "config.yaml"):
        for node in FIXED_NODES[:1] if is_new else FIXED_NODES:
            lines = [line for line in describe_differences(requested, old, node) if line.split()[0] not in CHANGEABLE_KEYS]
            if lines:
                fix = "give what it was trained with" + ("" if node == "model" else ", or resume.weights_only=true")
                yield Conflict(("resume.path", *(line.split()[0] for line in lines)), "; ".join(lines[:3]), fix)
