"""The configuration that a run or a checkpoint has recorded, and in what another one differs."""

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import OmegaConf

from research.composition.compose import iter_leaves
from research.contracts import contract
from research.options.renames import upgrade_config
from research.run_dir import OUTER_KEYS, RUN_ID_PATTERN, expand_path, read_text, to_run_folder
from research.training.manifest import DamagedError, is_checkpoint, rank_checkpoints, read_manifest

# Where a run goes, who watches, and where its base and its teacher lie: which ones these are, their digests say.
TEACHER_KEYS = ("objective.teacher", "objective.store", "objective.stored")
OUTER_SETTINGS = (*OUTER_KEYS, "name", "hydra", "callbacks.console", "finetune.base", *TEACHER_KEYS)
# Settings that name a folder, in which one of a run is compared with where it lies, and recorded from the root on.
FOLDER_SETTINGS = ("model.folder", "data.tokenizer.path", "objective.teacher", "objective.store")
BASE_SETTINGS = ("model.folder", "data.tokenizer.path")  # of them those of a base: which one it is, its digest says
# Settings by which a run that is resumed finds its things; where these were moved others may be typed, as digests tell them.
MOVABLE_SETTINGS = (*BASE_SETTINGS, "data.path", "data.images", "data.masks")
# Settings that may differ where resume=auto goes on with a run: those, how far it goes, and when it saves.
FREE_SETTINGS = (*OUTER_SETTINGS, "steps", "trainer.steps", "epochs", "callbacks.checkpoint", "callbacks.time_limit")
# A run that goes on may change them.
CHANGEABLE_KEYS = ("model.dropout", "model.init_std", "model.linear.backend", "finetune.dropout")


class Difference(NamedTuple):
    """A setting that two configurations do not share, and its values as JSON."""

    key: str
    now: str
    then: str

    def __str__(self) -> str:
        return f"{self.key} is {self.now} here, was {self.then} there"


@contract
def load_config(path: Path) -> tuple[dict[str, Any], str]:
    """Return the configuration of a run or a checkpoint, with the current names, and what is wrong with its config.yaml.

    A checkpoint's manifest has a digest, so the furthest one counts; where none has a configuration, config.yaml does. The
    configuration is empty where neither can be read.
    """
    recorded, source = read_recorded_config(path)
    try:
        content = parse_yaml(read_text(to_run_folder(path) / "config.yaml"))
    except Exception as error:  # the parser has no common class of errors
        content, damage = None, f"config.yaml {'is not there' if isinstance(error, FileNotFoundError) else 'cannot be read'}"
    else:
        damage = "" if isinstance(content, dict) and content else "config.yaml is empty"
    written = upgrade_config(content) if isinstance(content, dict) else {}
    if not recorded:
        return written, damage
    if not damage and (differences := list_differences(written, recorded)):
        texts = [f"{key} is {now}, not {then}" for key, now, then in differences[:3]]
        damage = f"config.yaml has other settings: {'; '.join(texts)}"
    return recorded, damage and f"{damage}; that of {source} counts"


def parse_yaml(text: str) -> Any:
    """Return YAML as OmegaConf reads it. Raise ValueError for aliases: a run writes none, and they can grow without a bound."""
    if "&" in text and "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
        raise ValueError("it has aliases")
    return OmegaConf.to_container(OmegaConf.create(text))


@contract
def list_moved(config: dict[str, Any]) -> list[str]:
    """Return the settings of a run that name what is not there any more."""
    settings = dict(iter_leaves("", config))
    paths = {key: [path] if isinstance(path := settings.get(key), str) else path for key in MOVABLE_SETTINGS}
    return [key for key, names in paths.items() if isinstance(names, list) and not all(map(exists, names))]


@contract
def exists(path: object) -> bool:
    """Return whether there is something at a path."""
    return os.path.exists(expand_path(str(path)))


@contract
def to_absolute(path: str) -> str:
    """Return a path from the root on, also of a folder that is gone; an id in MLflow, which is none, as it is."""
    is_id = re.fullmatch(RUN_ID_PATTERN, path) and not os.path.exists(path)
    return path if is_id or not path else os.path.abspath(expand_path(path))


def read_recorded_config(path: Path) -> tuple[dict[str, Any], str]:
    """Return the configuration in the manifest of a checkpoint, or of a run's furthest one, and that checkpoint's name."""
    for folder in [path] if is_checkpoint(path) else [folder for _, folder in rank_checkpoints(path)]:
        with suppress(DamagedError):
            if config := read_manifest(folder).config:
                return upgrade_config(config), folder.name
    return {}, ""


@contract
def list_differences(here: dict[str, Any], there: dict[str, Any], free: tuple[str, ...] = FREE_SETTINGS) -> list[Difference]:
    """Return the settings that two resolved configurations do not share, but for the free ones.

    A copy of a setting at the top, as trainer.steps of steps, is left out where that differs likewise. Where both are
    fine-tuned from the same weights, it is free where these lie.
    """
    sides = [dict(iter_leaves("", json.loads(json.dumps(side, default=str)))) for side in (here, there)]
    for side in sides:
        side |= {key: to_absolute(path) for key in FOLDER_SETTINGS if isinstance(path := side.get(key), str)}
    digests = [side.get("finetune.digest") for side in sides]
    free = (*free, *(BASE_SETTINGS if digests[0] and digests[0] == digests[1] else ()))
    keys = [key for key in sides[0] | sides[1] if not f"{key}.".startswith(tuple(f"{name}." for name in free))]
    values = {key: [json.dumps(side[key], ensure_ascii=False) if key in side else "nothing" for side in sides] for key in keys}
    differing = {key: pair for key, pair in values.items() if pair[0] != pair[1]}
    tops = {key: pair for key, pair in differing.items() if "." not in key}
    copies = [key for key, pair in differing.items() if "." in key and tops.get(key.rpartition(".")[2]) == pair]
    return [Difference(key, *pair) for key, pair in differing.items() if key not in copies]
