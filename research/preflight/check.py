"""Find every mistake of a command line, each with its fix, before anything heavy is imported."""

import os
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal

from research.preflight.compose import Compositions
from research.preflight.conflicts import RULES
from research.preflight.help import CONF
from research.preflight.overrides import (
    MAX_SWEEP_VALUES,
    check_no_sweep,
    check_option,
    check_sweep_values,
    format_mistake,
    get_key,
    iter_variants,
    parse,
)
from research.preflight.requested import RequestedConfig
from research.preflight.resume import check_resume_sweep, expand_resume, get_resume_overrides
from research.preflight.signature import read_signature
from research.run_dir import SWEPT_ENV_VAR

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


@dataclass
class Globals:
    """The top-level keys that no component takes, with their types: read like any other signature."""

    name: str
    out: str
    monitor: Literal["val/loss", "val/acc", "val/bpb"]


def find_mistakes(arguments: list[str], multirun: bool) -> list[str]:
    """Return every mistake of a command line, as text for the terminal."""
    return check_overrides([expand_resume(word) for word in arguments], multirun)[0]


def check_overrides(arguments: list[str], multirun: bool) -> tuple[list[str], list[str]]:
    """Return every mistake, and the overrides that send a resumed run to its own folder.

    Of a sweep this sets SWEPT_ENV_VAR to the keys that it sweeps.
    """
    from hydra import initialize_config_dir

    has_flags = any(word.startswith("-") for word in arguments)  # a flag may have a value, which is no override
    words = [w for w in arguments if not w.startswith("-") and (not has_flags or "=" in w or w.startswith("~"))]
    overrides, mistakes = parse(words)
    for override in list(overrides):
        if mistake := check_alone(override, multirun):
            mistakes.append(mistake)
            overrides.remove(override)
    compositions = Compositions()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        if multirun:
            overrides += compositions.get_study_overrides(overrides)
            compositions.sweep_lines = {get_key(o): str(o.input_line) for o in overrides if o.is_sweep_override()}
            os.environ[SWEPT_ENV_VAR] = ",".join(compositions.sweep_lines)
        conditions = compositions.parse_conditions(overrides) if multirun else {}
        variants = islice(iter_variants(overrides), MAX_SWEEP_VALUES)
        runs = [compositions.drop_inactive(variant, conditions) for variant in variants]
        for run in runs:
            mistakes += check_run(run, compositions)
        mistakes += [] if mistakes else check_study_name(runs, compositions)
        if multirun and any(o.key_or_group == "resume.path" and o.value() == "auto" for o in overrides):
            mistakes.append(format_mistake("resume=auto", "it resumes one run, -m starts several", "leave out -m or resume"))
        more = [] if mistakes else get_resume_overrides(RequestedConfig.from_overrides(runs[0], compositions), multirun)
    return [mistake.replace("error: resume.path=", "error: resume=") for mistake in dict.fromkeys(mistakes)], more


def check_alone(override: "Override", multirun: bool) -> str:
    """Return the mistake of an override that needs no composition to be seen; else an empty text."""
    mistake = check_option(override) or check_sweep_values(override)
    return mistake or (check_resume_sweep(override) if multirun else check_no_sweep(override))


def check_study_name(runs: list[list["Override"]], compositions: Compositions) -> list[str]:
    """Return the mistake of a sweep over several names: it has one folder and one parent run, so its runs need one."""
    names: dict[str, None] = {}
    for run in runs:
        typed = [override.value() for override in run if override.key_or_group == "name"]
        names[str(typed[-1] if typed else compositions.compose(run)["name"])] = None
    message = f"the runs of this sweep belong to several studies: {', '.join(names)}"
    return [format_mistake("-m", message, "give them one name, as name=comparison")] if len(names) > 1 else []


def check_run(overrides: list["Override"], compositions: Compositions) -> list[str]:
    """Return the mistakes of one run."""
    from hydra.errors import HydraException

    try:
        requested = RequestedConfig.from_overrides(overrides, compositions)
    except HydraException as error:
        typed = " ".join(str(o.input_line) for o in compositions.select_group_overrides(overrides))
        mistake = format_mistake(typed or "conf/", *str(error.__cause__ or error).splitlines())
        # Our options are known to exist by now, so an option of Hydra's is at fault: check the rest without it.
        rest = [o for o in overrides if not o.key_or_group.startswith("hydra/")]
        return [mistake, *(check_run(rest, compositions) if len(rest) < len(overrides) else [])]
    requested.check_groups()
    requested.check_values("", read_signature(f"{__name__}.Globals"), requested.cfg)
    if isinstance(resume := requested.cfg.get("resume"), dict):
        requested.check_values("resume.", read_signature("research.preflight.resume.Resume"), resume)
    for key, node in list(requested.iter_nodes()):
        requested.check_node(key, node)
    for rule in RULES:
        for conflict in filter(None, rule(requested)):
            requested.add_conflict(conflict.keys, conflict.message, conflict.fix)
    return list(requested.mistakes.values())
