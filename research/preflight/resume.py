"""Where a run goes on: what resume= means, the folder that it then writes to, and what must not have changed."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from research.preflight.compose import MISSING, ComposedConfig, iter_leaves
from research.preflight.overrides import Conflict, expand_sweep, format_mistake
from research.preflight.renames import upgrade_config
from research.preflight.requested import RequestedConfig, repr_value

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

CHANGEABLE_KEYS = ("model.dropout", "model.init_std", "model.linear.backend")  # what may change when a run goes on
IGNORED_KEYS = ("out", "name", "resume", "tracker", "hydra")  # what makes no other run
RUN_ID_PATTERN = r"[0-9a-f]{32}"


@dataclass
class Resume:
    """The keys below `resume`, with their types."""

    path: str | None
    weights_only: bool


def expand_resume(argument: str) -> str:
    """resume=X stands for resume.path=X, which Hydra can tell from the keys below it."""
    return re.sub(r"^(\+{0,2})resume=", r"\1resume.path=", argument)


def check_resume_sweep(override: "Override") -> str:
    """What is wrong with a sweep over runs in MLflow: only one of them can be told its folder before Hydra begins."""
    swept = override.key_or_group == "resume.path" and override.is_sweep_override()
    if not (swept and any(re.search(RUN_ID_PATTERN, value) for value in expand_sweep(override))):
        return ""
    return format_mistake(str(override.input_line), "a sweep can begin at one run in MLflow", "give the folders of several")


def get_resume_overrides(requested: RequestedConfig, multirun: bool = False) -> list[str]:
    """The overrides that spell out a run's id, and send a run to the folder that it goes on in."""
    given, own_place = requested.get_resolved("resume.path")[0], multirun or "hydra.run.dir" in requested.typed_overrides
    if not isinstance(given, str):
        return []
    if given == "auto":
        own = None if own_place else find_latest_run(requested)
        return [f"hydra.run.dir={quote_path(own)}"] if own else []
    if (path := find_resume_path(requested)) is None:
        return []
    rest = [f"resume.path={quote_path(path)}"] if re.fullmatch(RUN_ID_PATTERN, given) else []
    if own_place:
        return rest
    if has_later_checkpoints(path) or requested.get_resolved("resume.weights_only")[0] is True:
        return rest  # from an older checkpoint a run branches off, in a folder of its own
    return [*rest, f"hydra.run.dir={quote_path(get_run_folder(path))}"]


def get_run_folder(path: Path) -> Path:
    """The run folder that a checkpoint is in; that of a run folder is itself."""
    return path.parents[1] if path.name.startswith("step-") else path


def has_later_checkpoints(path: Path) -> bool:
    """Whether it is a checkpoint that was followed by others."""
    return path != get_run_folder(path) and path != next(iter(list_checkpoints(get_run_folder(path)).values()), path)


def list_checkpoints(run: Path) -> dict[int, Path]:
    from research.run_dir import list_checkpoints  # it has much to say of machines, and --help nothing

    return list_checkpoints(run)


def quote_path(path: Path) -> str:
    text = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def find_latest_run(requested: RequestedConfig) -> Path | None:
    """The newest run folder of this very configuration; one with a checkpoint, if there is any."""
    runs = []
    root = Path(str(requested.get_resolved("out")[0])).expanduser() / str(requested.get_resolved("name")[0])
    for config in sorted(root.glob("*/config.yaml"), key=lambda file: file.stat().st_mtime, reverse=True):
        if (old := load_config(config)) and not describe_differences(requested, old):
            runs.append(config.parent.resolve())
            if list_checkpoints(runs[-1]):
                return runs[-1]
    return runs[0] if runs else None


def find_resume_path(requested: RequestedConfig) -> Path | None:
    """The run folder or checkpoint that resume names by its path or its run in MLflow; None where there is none."""
    given = str(requested.get_resolved("resume.path")[0])
    if (path := Path(given).expanduser()).exists():
        return path.resolve()
    if not re.fullmatch(RUN_ID_PATTERN, given):
        return None
    out = Path(str(requested.get_resolved("out")[0])).expanduser()
    for note in (*out.glob("*/*/mlflow_run_id"), *out.glob("*/*/*/mlflow_run_id")):
        if note.read_text(errors="replace").strip() == given:
            return note.parent.resolve()
    from research.tracking.mlflow_store import get_run_folder  # heavy, and only for a run that is not below out

    uri = requested.get_resolved("tracker.uri")[0]
    try:
        path = Path(get_run_folder(given, uri if isinstance(uri, str) else None))
    except ValueError:
        return None
    return path if path.exists() else None


def load_config(config: Path) -> ComposedConfig | None:
    """A run's config.yaml; None where it is damaged or not there."""
    from omegaconf import OmegaConf

    try:
        held = OmegaConf.to_container(OmegaConf.load(config))
    except Exception:  # whatever the parser makes of it
        return None
    return ComposedConfig(upgrade_config(held)) if isinstance(held, dict) and held else None  # type: ignore[arg-type]


def describe_differences(requested: RequestedConfig, old: ComposedConfig, *nodes: str) -> list[str]:
    """What is other than in a run's config.yaml, of some nodes or of all that matters."""
    nodes = nodes or tuple(dict.fromkeys(key for side in (requested, old) for key in side.cfg if key not in IGNORED_KEYS))
    keys = dict.fromkeys(key for node in nodes for side in (requested, old) for key, _ in iter_leaves(node, side.get(node)))
    return [f"{key} is {format_value(requested, key)} here, was {format_value(old, key)} there" for key in keys
            if requested.get_resolved(key)[0] != old.get_resolved(key)[0]]  # fmt: skip


def format_value(side: ComposedConfig, key: str) -> str:
    value = side.get_resolved(key)[0]
    return "nothing" if value is MISSING else repr_value(value)


def check_resume(requested: RequestedConfig) -> Iterator[Conflict]:
    """A run goes on from a checkpoint that is there, as the same model and optimizer on the same data."""
    given = requested.get_resolved("resume.path")[0]
    if not isinstance(given, str):
        if requested.get_resolved("resume.weights_only")[0] is True:
            yield Conflict(
                ("resume.weights_only",), "it needs weights to begin from", "give resume=, a run folder or a checkpoint"
            )
        return
    if given == "auto":
        from research.run_dir import is_locked  # it has much to say of machines, and --help nothing

        if requested.get_resolved("resume.weights_only")[0] is True:
            told = "auto goes on with the newest run of this configuration, weights_only begins another one"
            yield Conflict(("resume.path", "resume.weights_only"), told, "give resume=FOLDER, the run to begin from")
        elif (own := find_latest_run(requested)) and "hydra.run.dir" not in requested.typed_overrides and is_locked(own):
            yield Conflict(("resume.path",), f"this very run is being written by another process: {own}", "wait for its end")
        return
    path = find_resume_path(requested)
    if path is None:
        told = (
            "no such folder, nor a run in MLflow"
            if re.fullmatch(RUN_ID_PATTERN, given)
            else f"there is no {Path(given).absolute()}"
        )
        yield Conflict(("resume.path",), told, "give auto, a run folder, one of its checkpoints/step-*, or an MLflow run id")
        return
    if path == get_run_folder(path) and not list_checkpoints(path):
        yield Conflict(("resume.path",), f"{path} holds no checkpoint", "give a run folder, or one of its checkpoints/step-*")
    in_place = "hydra.run.dir" in requested.typed_overrides and Path(
        str(requested.get_resolved("hydra.run.dir")[0])
    ).resolve() == get_run_folder(path)
    if in_place and has_later_checkpoints(path) and requested.get_resolved("resume.weights_only")[0] is not True:
        told = f"{get_run_folder(path)} has later checkpoints than {path.name}"
        yield Conflict(("resume.path", "hydra.run.dir"), told, "leave out hydra.run.dir: the run gets a folder of its own")
    if old := load_config(get_run_folder(path) / "config.yaml"):
        yield from check_resume_changes(requested, old)


def check_resume_changes(requested: RequestedConfig, old: ComposedConfig) -> Iterator[Conflict]:
    """What a run cannot go on with; and with other data or another optimizer one may still begin from its weights."""
    fresh = requested.get_resolved("resume.weights_only")[0] is True
    for node in ("model",) if fresh else ("model", "data", "optim._target_", "optim.base._target_"):
        if told := [line for line in describe_differences(requested, old, node) if line.split()[0] not in CHANGEABLE_KEYS]:
            fix = "give what it was trained with" + ("" if node == "model" else ", or resume.weights_only=true")
            yield Conflict(("resume.path", *(line.split()[0] for line in told)), "; ".join(told[:3]), fix)
