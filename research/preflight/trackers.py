"""Extras that are not installed, and trackers that lack a login or could not write to their store."""

import os
from collections.abc import Iterator

from research.composition.overrides import parse
from research.contracts import contract
from research.options.conf import list_groups
from research.preflight.requested import RequestedConfig
from research.rules import Conflict, check_extra
from research.tracking.storage import find_sqlite_file, resolve_uri
from research.tracking.wandb_login import check_login

Conflicts = Iterator[Conflict | None]
MLFLOW_TARGETS = {"research.tracking.mlflow.MLflow", "research.tracking.mlflow.MLflowSink"}
EXTRAS = {  # a target -> what names it, its library, and the extra of pyproject.toml that installs it
    "research.tracking.tensorboard.TensorBoardSink": ("tracker=tensorboard", "tensorboard", "tensorboard"),
    "research.tracking.wandb.WandbSink": ("tracker=wandb", "wandb", "wandb"),
    "research.models.hub.Hub": ("model=hub", "transformers", "hub"),
    "research.finetune.side.side": ("finetune=side", "peft", "peft"),
}


@contract
def find_extra_conflicts(requested: RequestedConfig) -> Conflicts:
    """Yield the conflicts of components whose libraries are extras that are not installed."""
    for _, node in requested.iter_nodes():
        if extra := EXTRAS.get(str(node["_target_"])):
            yield check_extra(*extra)


@contract
def find_tracker_conflicts(requested: RequestedConfig) -> Conflicts:
    """Yield the conflicts of what is no sink, and of a login that is not there."""
    sinks = requested.get("tracker.sinks")
    for name, node in sinks.items() if isinstance(sinks, dict) else ():
        target = node.get("_target_") if isinstance(node, dict) else None
        if target is None and node != "???":
            message = f"tracker.sinks.{name} is no sink: it has no _target_"
            is_known = name in list_groups()["tracker"]
            fix = f"it is chosen by {requested.add_tracker(name)}" if is_known else "give tracker=NAME, or a list of names"
            yield Conflict((f"tracker.sinks.{name}",), message, fix)
    if isinstance(mode := requested.get_resolved("tracker.sinks.wandb.mode")[0], str):
        yield check_login(mode)


def list_trackers(requested: RequestedConfig) -> list[str]:
    """Return the options of the group that a command line names, else the default; Hydra records no choice of several."""
    line = requested.typed_overrides.get("tracker")
    value = parse([line])[0][0].value() if line and "=" in line else requested.get_choice("tracker")
    return [str(name) for name in (value if isinstance(value, list) else [value])]


@contract
def find_store_conflicts(requested: RequestedConfig) -> Conflicts:
    """Yield the conflict of an SQLite store that cannot be written to; MLflow's is by default below the project folder."""
    uri = requested.get_resolved("tracker.uri")[0]
    if not MLFLOW_TARGETS & {node["_target_"] for key, node in requested.iter_nodes() if key.partition(".")[0] == "tracker"}:
        if isinstance(uri, str):
            fix = f"leave it out, or choose mlflow too: {requested.add_tracker('mlflow')}"
            yield Conflict(
                ("tracker.uri",), f"tracker.uri={uri} is MLflow's, and tracker={' and '.join(list_trackers(requested))}", fix
            )
        return
    setting = "tracker.uri" if isinstance(uri, str) and uri else "MLFLOW_TRACKING_URI"
    uri = uri if setting == "tracker.uri" else os.environ.get(setting)
    if (file := find_sqlite_file(resolve_uri(uri))) is None:
        return
    path = file.absolute()
    existing = [
        folder for folder in (path, *path.parents) if os.path.exists(folder)
    ]  # a store and its folder, or where they would be
    locked = next((str(item) for item in existing[: 1 + os.path.isfile(path)] if not os.access(item, os.W_OK)), None)
    if locked:
        message = f"{setting}={uri}" if uri else "tracker=mlflow"
        message += f": {locked} cannot be written to (read-only, or another user's)"
        fix = "give tracker.uri=sqlite:////FOLDER/mlflow.db elsewhere, or tracker=jsonl"
        yield Conflict(("tracker.uri" if setting == "tracker.uri" else "tracker",), message, fix)
