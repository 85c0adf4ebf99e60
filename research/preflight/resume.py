"""Where a run goes on: what resume= means, the folder that it then writes to, and what must not have changed."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from research.preflight.asked import Asked, spelt
from research.preflight.composed import MISSING, Composed, leaves
from research.preflight.overrides import Clash, mistake, values

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

FREE = ("model.dropout", "model.init_std", "model.linear.back_end")  # what may change when a run goes on
ASIDE = ("out", "name", "resume", "tracker", "hydra")  # what makes no other run
RUN_ID = r"[0-9a-f]{32}"


@dataclass
class Resume:
    """The keys below `resume`, with their types."""

    path: str | None
    weights_only: bool


def spelled_out(argument: str) -> str:
    """resume=X stands for resume.path=X, which Hydra can tell from the keys below it."""
    return re.sub(r"^(\+{0,2})resume=", r"\1resume.path=", argument)


def several(override: "Override") -> str:
    """What is wrong with a sweep over runs in MLflow: only one of them can be told its folder before Hydra begins."""
    swept = override.key_or_group == "resume.path" and override.is_sweep_override()
    if not (swept and any(re.search(RUN_ID, value) for value in values(override))):
        return ""
    return mistake(str(override.input_line), "a sweep can begin at one run in MLflow", "give the folders of several")


def placed(asked: Asked, multirun: bool = False) -> list[str]:
    """The overrides that spell out a run's id, and send a run to the folder that it goes on in."""
    given, own_place = asked.at("resume.path")[0], multirun or "hydra.run.dir" in asked.given
    if not isinstance(given, str):
        return []
    if given == "auto":
        own = None if own_place else latest(asked)
        return [f"hydra.run.dir={quoted(own)}"] if own else []
    if (path := found(asked)) is None:
        return []
    rest = [f"resume.path={quoted(path)}"] if re.fullmatch(RUN_ID, given) else []
    if own_place:
        return rest
    if older(path) or asked.at("resume.weights_only")[0] is True:
        return rest  # from an older checkpoint a run branches off, in a folder of its own
    return [*rest, f"hydra.run.dir={quoted(home(path))}"]


def home(path: Path) -> Path:
    """The run folder that a checkpoint is in; that of a run folder is itself."""
    return path.parents[1] if path.name.startswith("step-") else path


def older(path: Path) -> bool:
    """Whether it is a checkpoint that was followed by others."""
    return path != home(path) and path != next(iter(checkpoints(home(path)).values()), path)


def checkpoints(run: Path) -> dict[int, Path]:
    from research.folder import checkpoints  # it has much to say of machines, and --help nothing

    return checkpoints(run)


def quoted(path: Path) -> str:
    text = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def latest(asked: Asked) -> Path | None:
    """The newest run folder of this very configuration; one with a checkpoint, if there is any."""
    runs = []
    root = Path(str(asked.at("out")[0])).expanduser() / str(asked.at("name")[0])
    for config in sorted(root.glob("*/config.yaml"), key=lambda file: file.stat().st_mtime, reverse=True):
        if (old := composed(config)) and not differing(asked, old):
            runs.append(config.parent.resolve())
            if checkpoints(runs[-1]):
                return runs[-1]
    return runs[0] if runs else None


def found(asked: Asked) -> Path | None:
    """The run folder or checkpoint that resume names by its path or its run in MLflow; None where there is none."""
    given = str(asked.at("resume.path")[0])
    if (path := Path(given).expanduser()).exists():
        return path.resolve()
    if not re.fullmatch(RUN_ID, given):
        return None
    out = Path(str(asked.at("out")[0])).expanduser()
    for note in (*out.glob("*/*/mlflow_run_id"), *out.glob("*/*/*/mlflow_run_id")):
        if note.read_text(errors="replace").strip() == given:
            return note.parent.resolve()
    from research.tracking import folder_of  # heavy, and only for a run that is not below out

    uri = asked.at("tracker.uri")[0]
    try:
        path = Path(folder_of(given, uri if isinstance(uri, str) else None))
    except ValueError:
        return None
    return path if path.exists() else None


def composed(config: Path) -> Composed | None:
    """A run's config.yaml; None where it is damaged or not there."""
    from omegaconf import OmegaConf

    try:
        held = OmegaConf.to_container(OmegaConf.load(config))
    except Exception:  # whatever the parser makes of it
        return None
    return Composed(held) if isinstance(held, dict) and held else None  # type: ignore[arg-type]


def differing(asked: Asked, old: Composed, *nodes: str) -> list[str]:
    """What is other than in a run's config.yaml, of some nodes or of all that matters."""
    nodes = nodes or tuple(dict.fromkeys(key for side in (asked, old) for key in side.cfg if key not in ASIDE))
    keys = dict.fromkeys(key for node in nodes for side in (asked, old) for key, _ in leaves(node, side.walk(node)))
    return [f"{key} is {shown(asked, key)} here, was {shown(old, key)} there" for key in keys
            if asked.at(key)[0] != old.at(key)[0]]  # fmt: skip


def shown(side: Composed, key: str) -> str:
    value = side.at(key)[0]
    return "nothing" if value is MISSING else spelt(value)


def resumed(asked: Asked) -> Iterator[Clash]:
    """A run goes on from a checkpoint that is there, as the same model and optimizer on the same data."""
    given = asked.at("resume.path")[0]
    if not isinstance(given, str):
        if asked.at("resume.weights_only")[0] is True:
            yield Clash(
                ("resume.weights_only",), "it needs weights to begin from", "give resume=, a run folder or a checkpoint"
            )
        return
    if given == "auto":
        from research.folder import alive  # it has much to say of machines, and --help nothing

        if asked.at("resume.weights_only")[0] is True:
            told = "auto goes on with the newest run of this configuration, weights_only begins another one"
            yield Clash(("resume.path", "resume.weights_only"), told, "give resume=FOLDER, the run to begin from")
        elif (own := latest(asked)) and "hydra.run.dir" not in asked.given and alive(own):
            yield Clash(("resume.path",), f"this very run is being written by another process: {own}", "wait for its end")
        return
    path = found(asked)
    if path is None:
        told = "no such folder, nor a run in MLflow" if re.fullmatch(RUN_ID, given) else f"there is no {Path(given).absolute()}"
        yield Clash(("resume.path",), told, "give auto, a run folder, one of its checkpoints/step-*, or an MLflow run id")
        return
    if path == home(path) and not checkpoints(path):
        yield Clash(("resume.path",), f"{path} holds no checkpoint", "give a run folder, or one of its checkpoints/step-*")
    in_place = "hydra.run.dir" in asked.given and Path(str(asked.at("hydra.run.dir")[0])).resolve() == home(path)
    if in_place and older(path) and asked.at("resume.weights_only")[0] is not True:
        told = f"{home(path)} has later checkpoints than {path.name}"
        yield Clash(("resume.path", "hydra.run.dir"), told, "leave out hydra.run.dir: the run gets a folder of its own")
    if old := composed(home(path) / "config.yaml"):
        yield from changed(asked, old)


def changed(asked: Asked, old: Composed) -> Iterator[Clash]:
    """What a run cannot go on with; and with other data or another optimizer one may still begin from its weights."""
    fresh = asked.at("resume.weights_only")[0] is True
    for node in ("model",) if fresh else ("model", "data", "optim._target_", "optim.base._target_"):
        if told := [line for line in differing(asked, old, node) if line.split()[0] not in FREE]:
            fix = "give what it was trained with" + ("" if node == "model" else ", or resume.weights_only=true")
            yield Clash(("resume.path", *(line.split()[0] for line in told)), "; ".join(told[:3]), fix)
