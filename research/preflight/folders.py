"""Folders of a command line: where a run or a sweep would write, and the pretrained folder that a model is read from.

What can be written to, and does not collide with another trial's. What can be read, and fits the data's length.
"""

import os
import re
from collections.abc import Iterator

from research import rules
from research.composition.compose import MISSING
from research.composition.pretrained import HUB, is_path
from research.contracts import contract
from research.models.hub_folder import check_seq_len, read_hub_config
from research.options.finetuning import is_frozen
from research.preflight.requested import RequestedConfig
from research.rules import Conflict, to_conflict
from research.run_dir import expand_path

Conflicts = Iterator[Conflict | None]

MAX_NAME_BYTES = 255  # of a file's name, on all usual file systems


@contract
def find_shared_folder_conflicts(requested: RequestedConfig) -> Conflicts:
    """Yield the conflict of trials that would share a folder: its name lacks the trial's number and a key that is swept."""
    repeats = requested.get("hydra.sweeper.repeats")
    swept = [*requested.sweep_lines, *([str(repeats.get("over", "seed"))] if get_repeat_count(repeats) > 1 else [])]
    names, texts = set[str](), [str(requested.get("hydra.sweep.subdir"))]
    while texts:  # interpolations of interpolations
        new = set(re.findall(r"\$\{([\w.:/]+)\}", texts.pop())) - names
        names |= new
        texts += [value for name in new if isinstance(value := requested.get(name), str)]
    names = {name.replace("hydra:", "hydra.").removeprefix("hydra.runtime.choices.") for name in names}
    if "hydra.job.override_dirname" in names:
        excluded = requested.get("hydra.job.config.override_dirname.exclude_keys")
        names |= set(swept) - set(excluded if isinstance(excluded, list) else ())
    missing = [key for key in swept if key not in names]
    if missing and not names & {"hydra.job.num", "hydra.job.id"}:
        message = f"the trials of this sweep would share folders: hydra.sweep.subdir lacks {', '.join(missing)}"
        fix = f"give hydra.sweep.subdir=\\${{hydra.job.num}}, or add ${{{missing[0]}}} to it"
        yield Conflict(("hydra.sweep",), message, fix)


def get_repeat_count(repeats: object) -> int:
    """Return how often each configuration of a sweep is run."""
    count = repeats.get("n", 1) if isinstance(repeats, dict) else 1
    return count if isinstance(count, int) else 1


@contract
def check_subdir(subdir: str) -> Conflict | None:
    """Return the conflict of a trial's folder that is not below its sweep's."""
    if not subdir.startswith(("/", "~")) and ".." not in subdir.split("/"):
        return None
    message = f"hydra.sweep.subdir={subdir} is not below the sweep's folder"
    return Conflict(("hydra.sweep.subdir",), message, "give a folder below it, as hydra.sweep.subdir=\\${hydra.job.num}")


@contract
def find_out_conflicts(requested: RequestedConfig) -> Conflicts:
    """Yield the conflicts of names that cannot name a folder, and of a folder of all runs that cannot be written to."""
    if isinstance(name := requested.get_resolved("name")[0], str):
        yield rules.check_name(name)
    if (study := requested.get("hydra.sweeper.study_name")) not in (MISSING, None):
        yield rules.check_name(str(study).replace("/", "_"), "hydra.sweeper.study_name")
    if isinstance(subdir := requested.get("hydra.sweep.subdir"), str):
        yield check_subdir(subdir)
    if isinstance(out := requested.get_resolved("out")[0], str):
        path = expand_path(out).absolute()
        yield rules.check_folder(out)
        if "://" in out:
            yield Conflict(("out",), f"out={out}: runs are written to a folder of this machine", "give out=FOLDER")
        if any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in path.parts):
            yield Conflict(("out",), f"out={out}: a folder's name has over {MAX_NAME_BYTES} bytes", "give out=FOLDER, shorter")
        existing = next(folder for folder in (path, *path.parents) if os.path.exists(folder))
        if not existing.is_dir():
            yield Conflict(("out",), f"out={out}: {existing} is a file", "give out=FOLDER")
        elif not os.access(existing, os.W_OK | os.X_OK):
            message = f"out={out}: {existing} cannot be written to (read-only, or another user's)"
            yield Conflict(("out",), message, "give out=FOLDER elsewhere")


@contract
def find_folder_conflicts(requested: RequestedConfig) -> Conflicts:
    """Yield the conflict of an architecture that is typed beside the folder that a model is read from."""
    typed = [key for key in requested.typed_overrides if requested.get(key) not in (MISSING, None)]
    fields = [key for key in typed if key == "model.model_type" or f"{key}.".startswith("model.fields.")]
    if fields and isinstance(folder := requested.get_resolved("model.folder")[0], str):
        message = f"model.folder={folder} brings its own architecture: {fields[-1]} would be ignored"
        yield Conflict(("model.folder", *fields), message, f"leave out model.folder, or {fields[-1]}")
    yield check_hub_folder(requested)


def check_hub_folder(requested: RequestedConfig) -> Conflict | None:
    """Return the conflict of a pretrained folder that cannot be trained on, or not on texts of this length."""
    folder, seq_len = (requested.get_resolved(key)[0] for key in ("model.folder", "data.seq_len"))
    if requested.get("model._target_") != HUB or not is_path(folder) or not os.path.exists(expand_path(folder)):
        return None
    try:
        path = requested.get_resolved("resume.path")[0]
        is_resumed = is_path(path) and path != "auto" and not is_frozen(requested.cfg)  # whose checkpoint has the weights
        config = read_hub_config(folder, requested.get_resolved("model.load_weights")[0] is not False and not is_resumed)
        check_seq_len(folder, config, seq_len if type(seq_len) is int else 0)
    except ValueError as error:
        return to_conflict("model.folder", error)
    return None
