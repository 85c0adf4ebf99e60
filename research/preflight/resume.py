"""What resume= means: the run that is resumed, the folder that it writes to, and the settings that must not change."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from research.cli import print_message, redact
from research.preflight.compose import iter_leaves
from research.preflight.overrides import expand_sweep, format_mistake, to_literal
from research.preflight.renames import upgrade_config
from research.preflight.requested import RequestedConfig
from research.rules import Conflict
from research.run_dir import RUN_ID_PATTERN, expand_path, is_locked, list_checkpoints, to_run_folder
from research.training.manifest import DamagedError, is_checkpoint, is_intact, rank_checkpoints, read_manifest

CHANGEABLE_KEYS = ("model.dropout", "model.init_std", "model.linear.backend")  # a resumed run may change them
FIXED_NODES = ("model", "data", "optim._target_", "optim.base._target_")  # a resumed run has them as they were
# Settings that may differ where resume=auto goes on with a run: where it goes, who watches, when it saves, how far it goes.
FREE_SETTINGS = (
    "out", "name", "resume", "tracker", "hydra", "steps", "trainer.steps",
    "callbacks.console", "callbacks.checkpoint", "callbacks.time_limit",
)  # fmt: skip


@dataclass
class Resume:
    """The keys below `resume`, with their types."""

    path: str | None
    weights_only: bool


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
        path, overrides = None if has_folder else find_furthest_run(requested), []
    else:
        path = find_resume_path(requested) if isinstance(value, str) else None
        overrides = [f"resume.path={to_literal(str(path))}"] if path and re.fullmatch(RUN_ID_PATTERN, value) else []
        # From an older or a copied checkpoint, or from weights alone, a new run branches off in a folder of its own.
        has_folder = has_folder or starts_from_weights(requested) or (path is not None and is_elsewhere(path))
    if path and not has_folder and (note := load_config(path)[1]):
        print_message(f"warning: {to_run_folder(path)}: {note}")
    return overrides if path is None or has_folder else [*overrides, f"hydra.run.dir={to_literal(str(to_run_folder(path)))}"]


def get_folder_overrides(requested: RequestedConfig) -> list[str]:
    """Return the overrides that replace the ~ of folders which Hydra makes: it would make one called ~."""
    folders = {key: requested.get_resolved(key)[0] for key in ("out", "hydra.run.dir", "hydra.sweep.dir")}
    return [f"{key}={to_literal(str(expand_path(path)))}" for key, path in folders.items() if str(path).startswith("~")]


def starts_from_weights(requested: RequestedConfig) -> bool:
    """Return whether a new run starts from the weights of another one."""
    return requested.get_resolved("resume.weights_only")[0] is True


def is_elsewhere(path: Path) -> bool:
    """Return whether a path is a checkpoint that is not the last one of a run: a copy, or an older one."""
    run = to_run_folder(path)
    return is_checkpoint(path) and path != next(iter(list_checkpoints(run).values()), None)


def find_furthest_run(requested: RequestedConfig) -> Path | None:
    """Return the run of this very configuration that is furthest by an intact checkpoint, of no more steps than requested.

    Return None where there is none, a run without a checkpoint where no other is there.
    """
    root = expand_path(str(requested.get_resolved("out")[0])) / str(requested.get_resolved("name")[0])
    here, steps = resolve_settings(requested), requested.get_resolved("trainer.steps")[0]
    ranked: dict[Path, list[tuple[int, Path]]] = {}
    for folder in sorted(root.glob("*/"), key=lambda folder: folder.stat().st_mtime, reverse=True):
        there = load_config(folder)[0]
        if there and not describe_differences(here, there):
            ranked[folder] = rank_checkpoints(folder)
    ranked = {run: pairs for run, pairs in ranked.items() if not pairs or pairs[0][0] <= steps}
    furthest = sorted(((step, path) for pairs in ranked.values() for step, path in pairs), key=lambda pair: -pair[0])
    is_only = sum(map(bool, ranked.values())) == 1  # then its checkpoints are checked when they are loaded
    intact = (to_run_folder(path) for _, path in furthest if is_only or is_intact(path))
    runs = sorted(ranked, key=lambda run: not ranked[run])  # those with damaged checkpoints first: their damage is told
    run = next(intact, runs[0] if runs else None)
    return run and run.resolve()


def resolve_settings(requested: RequestedConfig) -> dict[str, Any]:
    """Return the run's settings by their dotted keys, without Hydra's own."""
    leaves = iter_leaves("", {root: node for root, node in requested.cfg.items() if root != "hydra"})
    return {key: redact(requested.get_resolved(key)[0]) for key, _ in leaves}  # a run folder holds no passwords


def find_resume_path(requested: RequestedConfig) -> Path | None:
    """Return the run folder or checkpoint that resume= names, by a path or an MLflow run id; None where there is none."""
    value = str(requested.get_resolved("resume.path")[0])
    if (path := expand_path(value)).exists():
        path = path.resolve()
        return path if is_checkpoint(path) else to_run_folder(path)
    if not re.fullmatch(RUN_ID_PATTERN, value):
        return None
    out = expand_path(str(requested.get_resolved("out")[0]))
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


def load_config(path: Path) -> tuple[dict[str, Any], str]:
    """Return the configuration of a run or a checkpoint, with the current names, and what is wrong with its config.yaml.

    A checkpoint's manifest has a digest, so the furthest one counts; where none has a configuration, config.yaml does. The
    configuration is empty where neither can be read.
    """
    recorded, source = read_recorded_config(path)
    try:
        content = OmegaConf.to_container(OmegaConf.load(to_run_folder(path) / "config.yaml"))
    except Exception as error:  # the parser has no common class of errors
        content, damage = None, "is not there" if isinstance(error, FileNotFoundError) else "cannot be read"
    else:
        damage = "" if isinstance(content, dict) and content else "is empty"
    written = upgrade_config(content) if isinstance(content, dict) else {}  # type: ignore[arg-type]
    if not recorded:
        return written, damage
    if not damage and (differences := describe_differences(written, recorded)):
        damage = f"has other settings: {'; '.join(differences[:3])}".replace(" here, was ", ", not ").replace(" there", "")
    return recorded, damage and f"config.yaml {damage}; that of {source} counts"


def read_recorded_config(path: Path) -> tuple[dict[str, Any], str]:
    """Return the configuration in the manifest of a checkpoint, or of a run's furthest one, and that checkpoint's name."""
    for folder in [path] if is_checkpoint(path) else [folder for _, folder in rank_checkpoints(path)]:
        with suppress(DamagedError):
            if config := read_manifest(folder).config:
                return upgrade_config(config), folder.name
    return {}, ""


def describe_differences(here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    """Return a line for each setting that two resolved configurations do not share, but for the free ones."""
    sides = [dict(iter_leaves("", json.loads(json.dumps(side, default=str)))) for side in (here, there)]
    keys = [key for key in sides[0] | sides[1] if not f"{key}.".startswith(tuple(f"{free}." for free in FREE_SETTINGS))]
    values = {key: [json.dumps(side[key], ensure_ascii=False) if key in side else "nothing" for side in sides] for key in keys}
    return [f"{key} is {now} here, was {then} there" for key, (now, then) in values.items() if now != then]


def find_resume_conflicts(requested: RequestedConfig) -> Iterator[Conflict]:
    """A run resumes from an existing checkpoint, with the same model, optimizer and data; no other process is writing it."""
    value, is_new = requested.get_resolved("resume.path")[0], starts_from_weights(requested)
    if isinstance(value, str) and value != "auto":
        yield from find_path_conflicts(requested, value)
    elif is_new and value == "auto":
        message = "resume=auto resumes the newest run of this configuration, resume.weights_only=true starts a new one"
        yield Conflict(("resume.path", "resume.weights_only"), message, "give resume=FOLDER, the run to start from")
    elif is_new:
        fix = "give resume=FOLDER, a run folder or a checkpoint"
        yield Conflict(("resume.weights_only",), "resume.weights_only=true needs weights to start from", fix)
    elif value == "auto":
        folder = requested.get_resolved("hydra.run.dir")[0] if "hydra.run.dir" in requested.typed_overrides else None
        own = Path(str(folder)).resolve() if folder else find_furthest_run(requested)
        if own and is_locked(own):
            yield Conflict(("resume.path",), f"another process is writing this very run: {own}", "wait for its end")
        elif own:
            yield from filter(None, [check_same_run(own, resolve_settings(requested))])


def check_same_run(folder: Path, settings: dict[str, Any]) -> Conflict | None:
    """resume=auto goes on only with a run of the very same settings, but for where it goes, how far, and who watches."""
    there = load_config(folder)[0]
    if not there or not (differences := describe_differences(settings, there)):
        return None
    message = f"{folder} holds a run of other settings: {'; '.join(differences[:3])}"
    return Conflict(("resume.path", "hydra.run.dir"), message, "give a folder of its own, by out, name or hydra.run.dir")


def find_path_conflicts(requested: RequestedConfig, value: str) -> Iterator[Conflict]:
    """The path or id leads to a checkpoint of the same model; data and optimizer differ only where a new run takes weights."""
    path, is_new = find_resume_path(requested), starts_from_weights(requested)
    if path is None:
        is_id = re.fullmatch(RUN_ID_PATTERN, value)
        message = "no such folder, nor a run in MLflow" if is_id else f"there is no {expand_path(value).absolute()}"
        yield Conflict(("resume.path",), message, "give auto, a run folder, one of its checkpoints/step-*, or an MLflow run id")
        return
    folder = to_run_folder(path)
    if path == folder and not is_checkpoint(path) and not list_checkpoints(path):
        yield Conflict(("resume.path",), f"{path} holds no checkpoint", "give a run folder, or one of its checkpoints/step-*")
    target = expand_path(str(requested.get_resolved("hydra.run.dir")[0])).resolve()
    writes_there = "hydra.run.dir" in requested.typed_overrides and target == folder
    if writes_there and is_elsewhere(path) and not is_new:
        message = f"{folder} has later checkpoints than {path.name}"
        yield Conflict(("resume.path", "hydra.run.dir"), message, "leave out hydra.run.dir: the run gets a folder of its own")
    if old := load_config(path)[0]:
        differences = describe_differences(resolve_settings(requested), old)
        for node in FIXED_NODES[:1] if is_new else FIXED_NODES:
            lines = [line for line in differences if f"{line.split()[0]}.".startswith(f"{node}.")]
            lines = [line for line in lines if line.split()[0] not in CHANGEABLE_KEYS]
            if lines:
                fix = "give what it was trained with" + ("" if node == "model" else ", or resume.weights_only=true")
                yield Conflict(("resume.path", *(line.split()[0] for line in lines)), "; ".join(lines[:3]), fix)
