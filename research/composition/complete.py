"""A configuration as a run records it: completed by what the run starts from and learns from, wherever that lies."""

import copy
from collections.abc import Collection, Mapping
from typing import Any, cast

from omegaconf import OmegaConf

from research.composition.compose import ComposedConfig, is_interpolated
from research.composition.finetuning import complete_base
from research.composition.pretrained import Completion, Node, complete_model, is_path
from research.composition.recorded import FOLDER_SETTINGS, to_absolute
from research.composition.teacher import complete_teacher
from research.contracts import contract
from research.rules import to_conflict
from research.tracking.find import find_run


@contract
def complete(cfg: Node, typed: Collection[str], choices: Mapping[str, Any], is_final: bool = False) -> Completion:
    """Return the model and the tokenizer of what a run starts from, the digests of its base and its teacher, and their paths.

    `cfg` is the composed configuration, `typed` the keys and groups of its command line, `choices` the options of all groups.
    `is_final`: it is that of a run, whose references can be followed; what it names a folder by is recorded from the root on.
    """
    config, settings = ComposedConfig(copy.deepcopy(cfg)), Node()
    if is_final:
        config.cfg = cast(Node, OmegaConf.to_container(OmegaConf.create(cfg), resolve=True))

    def add(more: Node) -> None:
        for key, value in more.items():
            config.set(key, value)
        settings.update(more)

    uri = config.get_resolved("tracker.uri")[0]
    uri = uri if is_path(uri) else None
    base, run = config.get_resolved("finetune.base")[0], None
    try:
        if is_path(base):
            run = find_run(base, "finetune.base", uri)
        more, notes, conflict = complete_model(config, run, typed, choices)
    except ValueError as error:
        return Completion({}, conflict=to_conflict("finetune.base", error))
    add(more)
    if conflict:
        return Completion(settings, notes, conflict)
    if isinstance(config.get("finetune"), dict) and not is_interpolated(base):  # which is followed once the run begins
        more, conflict = complete_base(config.cfg, run)
        add(more)
    try:
        add(complete_teacher(config.get("objective"), uri))
    except ValueError as error:
        conflict = conflict or to_conflict("objective.teacher", error)
    if is_final:
        add({key: to_absolute(path) for key in FOLDER_SETTINGS if is_path(path := config.get(key))})
    return Completion(settings, notes, conflict)
