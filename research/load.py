"""A trained run, read back from its folder: the model with its weights, and its data."""

import json
import logging
import re
import shlex
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate as hydra_instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from research.cli import describe_error, first_line
from research.composition.compose import iter_targets
from research.composition.pretrained import use_own_files
from research.composition.recorded import load_config
from research.contracts import contract
from research.data.spec import Dataset, restore_shape
from research.data.tokenizers import FILE as TOKENIZER_FILE
from research.data.tokenizers import Tokenizer, load_tokenizer
from research.files.locks import is_locked
from research.nn.lowrank import merge_adapters
from research.options.finetuning import is_frozen, merge_finetuning
from research.options.targets import TargetRefusedError, locate_target
from research.preflight.program import locate_error
from research.preflight.requested import PARTIAL_NODES
from research.run_dir import TOKENIZER_FOLDER, expand_path, list_checkpoints, read_summary, to_run_folder
from research.tracking.find import RUN_HINT, find_run
from research.training import checkpoint
from research.training.checkpoint import describe_structure
from research.training.digests import hash_folder
from research.training.snapshot import load_weights

TEXT_TARGETS = ("research.data.text.text", "research.data.pairs.pairs")  # whose runs of bytes may lack TOKENIZER_FOLDER
log = logging.getLogger(__name__)


def instantiate(node: DictConfig, *arguments: Any, key: str = "", is_foreign: bool = False) -> Any:
    """Build a node's `_target_`, checked at every depth; lists and mappings in it are Python's own, which checkpoints can hold.

    Raise ValueError with the cause, without Hydra's wrapping.
    `key` is that of the node; `is_foreign`: it was read from a run folder, which may be another's.
    """
    check_targets(node, key, is_foreign)
    try:
        return hydra_instantiate(node, *arguments, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        text = locate_error(cause) or (str(cause) if isinstance(cause, ValueError) else describe_error(cause))
        if isinstance(cause, TypeError) and (missing := re.search(r"(?:missing (?:a|\d+) required.*?: )(.*)", text)):
            text = f"{node.get('_target_')}: {text}\n{explain_missing(key or str(node._get_full_key(None)), text, missing[1])}"
        raise ValueError(text) from error


@contract
def build_node(settings: Mapping[str, Any], key: str, is_foreign: bool = False) -> Any:
    """Build the `_target_` of plain settings, as `instantiate`. Raise ValueError for references in what is of a run folder."""
    if is_foreign:
        check_interpolations(dict(settings))
    return instantiate(OmegaConf.create(dict(settings)), key=key, is_foreign=is_foreign)


def explain_missing(key: str, text: str, names: str) -> str:
    """Return what to do about arguments that a call lacks."""
    if key in PARTIAL_NODES:
        return "a function that the run calls later, as a loss or a schedule, needs _partial_: true in its yaml"
    if "Dataset.__init__" in text:
        return (
            "digest: a text that changes with the samples, by which a resumed run knows them; source: where they come from, "
            'for people; unit: "sample", or "token" of text'
        )
    return f"give {names.replace(chr(39), '')} where it is called, a value in the yaml below '{key}', or a default"


def check_targets(node: DictConfig, key: str = "", is_foreign: bool = False) -> None:
    """Raise ValueError for a `_target_` at any depth that may not be named, as `targets.check_target` says."""
    for name, target in iter_targets(key, OmegaConf.to_container(node, resolve=True)):
        try:
            locate_target(name, target, is_foreign)
        except TargetRefusedError:
            raise
        except Exception as error:  # whatever a module of one's own raises
            raise ValueError(f"{name}={target} cannot be imported\n{locate_error(error) or error}") from error


def check_interpolations(settings: Any) -> None:
    """Raise ValueError for a reference, as `${oc.env:NAME}`: a run writes its config.yaml resolved, so it is not of one.

    References to references could also grow without a bound.
    """
    if match := re.search(r"\$\{[^\"]{0,80}", json.dumps(settings, default=str)):
        raise ValueError(f"it holds {match[0]}, and what is read from a folder may not look up anything")


@dataclass
class TrainedRun:
    """A run in its last good state."""

    folder: Path  # of the run
    checkpoint: Path
    config: DictConfig  # as it was resolved
    model: nn.Module  # in evaluation mode, on the host, in float32

    @property
    def is_text(self) -> bool:
        """True if its tokens are of a text: the run folder has a place for its tokenizer."""
        return (self.folder / TOKENIZER_FOLDER).is_dir() or self.config.data["_target_"] in TEXT_TARGETS

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of a run on text."""
        return load_tokenizer(self.folder / TOKENIZER_FOLDER) if self.is_text else None

    @cached_property
    def classes(self) -> list[str]:
        """The names of the classes, by number; none where there are no names."""
        return ((summary := read_summary(self.folder)) and summary.classes) or list(self.data.classes)

    @cached_property
    def data(self) -> Dataset[Any]:
        """The data set of the run. Raise ValueError where its files are gone."""
        node, own = self.config.data, self.folder / TOKENIZER_FOLDER
        named = OmegaConf.select(node, "tokenizer.path")
        if named and not expand_path(named).exists() and (own / TOKENIZER_FILE).is_file():  # the run keeps it
            node = OmegaConf.merge(node, {"tokenizer": {"path": str(own)}})
        try:
            return instantiate(node, key="data", is_foreign=True)  # type: ignore[no-any-return]
        except ValueError as error:
            path = self.config.data.get("path")
            paths = [path] if path is None or isinstance(path, str) else path
            if all(path is None or Path(path).is_absolute() for path in paths):
                raise
            raise ValueError(f"{error} (start from the folder in which it was trained)") from error


def load_run(run: str | Path, base: str | None = None, merge: bool = True) -> TrainedRun:
    """Load the newest intact checkpoint of a run folder or an MLflow run id, or the one that RUN/checkpoints/step-* names.

    Averaged weights take the place of the last ones where the run has them: it was evaluated with them. A model that was
    fine-tuned inside its layers is the plain one that gives the same bits, without `merge` the one that was trained; `base` is
    where its base lies now. Raise ValueError where there is no such run, none of its checkpoints is intact, its configuration
    cannot be read, or its base has changed.
    """
    run = str(run)
    path = find_run(run)
    folder = to_run_folder(path)
    settings, damage = load_config(path)
    if not settings:
        raise ValueError(f"RUN={run}: {folder} has no config.yaml that can be read; {RUN_HINT}, or an id")
    if damage:
        log.warning("RUN=%s: %s", run, damage)
    if is_locked(folder) and not list_checkpoints(folder):
        state = "is in training and has saved no checkpoint yet"
        raise ValueError(f"RUN={run}: it {state}; wait for its first, or give another run")
    step_folder, snapshot = checkpoint.load_newest(path, setting="RUN")
    try:
        check_interpolations(settings)
        settings["model"] = choose_model(settings, folder, base)
        config = OmegaConf.create(settings)
        for key in ("model._target_", "data._target_"):
            if not OmegaConf.select(config, key):
                raise ValueError(f"it has no {key}")
        sizes = summary.shape if (summary := read_summary(folder)) else {}
        data_shape = restore_shape(sizes) if sizes else None
        shape = data_shape or instantiate(config.data, key="data", is_foreign=True).shape
        model: nn.Module = instantiate(config.model, shape, key="model", is_foreign=True)
    except Exception as error:  # of YAML, OmegaConf, Hydra, torch, ours: somebody has changed the configuration
        reason = "; ".join(str(error).splitlines()) if isinstance(error, TargetRefusedError) else first_line(error)
        raise ValueError(f"RUN={run}: its config.yaml makes no model: {reason}") from error
    if "base" in snapshot.manifest.identity:
        model = add_adapters(model, settings, snapshot.manifest.identity["base"], run, base)
    if (structure := describe_structure(model)) != (other := snapshot.manifest.identity["model"]):
        message = f"its config.yaml and its checkpoint are not of one model ({structure}, not {other}): has one been changed?"
        raise ValueError(f"RUN={run}: {message}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # so shards are read by one process
        load_weights(model, step_folder, snapshot)
    model.eval().requires_grad_(False)
    if not merge:
        return TrainedRun(folder, step_folder, config, model)
    return TrainedRun(folder, step_folder, OmegaConf.create(merge_finetuning(settings)), merge_adapters(model))


def add_adapters(model: nn.Module, settings: dict[str, Any], digest: str, run: str, base: str | None) -> nn.Module:
    """Return the model of a run whose checkpoint holds adapters alone, with its base's weights and fresh adapters.

    Raise ValueError where the base is not there, or is not the one of that digest.
    """
    node = dict(settings.get("finetune") or {})
    merge = shlex.join(["python", "-m", "research.merge", run, "--base", "FOLDER", "--output", "DIR"])
    fix = f"put it back, or merge with where it is now: {merge}"
    try:
        if node.get("digest") != digest:
            raise ValueError("its config.yaml and its checkpoint name other bases")
        if node.get("base") is None and (now := hash_folder(folder := settings["model"]["folder"])) != digest:
            raise ValueError(f"model.folder={folder} has weights of digest {now}, it was fine-tuned from {digest}")
        node |= {"base": base} if base and node.get("base") else {}
        return instantiate(OmegaConf.create(node), model, key="finetune", is_foreign=True)  # type: ignore[no-any-return]
    except ValueError as error:
        raise ValueError(f"RUN={run}: {str(error).partition(chr(10))[0]}\n{fix}") from error


def choose_model(settings: dict[str, Any], folder: Path, base: str | None) -> Any:
    """Return the model node of a run: built by its own files, or where its base is a folder, by that where it is now."""
    node: Any = use_own_files(settings, folder)
    is_moved = base is not None and is_frozen(settings) and not settings["finetune"].get("base")
    return node | {"folder": base} if is_moved else node
