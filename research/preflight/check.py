"""What is wrong with a command line, all of it at once and each with its fix, before anything heavy is imported."""

import atexit
import gc
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal

from research.preflight.compose import Compositions
from research.preflight.conflicts import RULES
from research.preflight.help import CONF, build_help_text
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

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

INFO_FLAGS = ("--hydra-help", "--version", "--shell-completion", "-sc", "--experimental-rerun")
OTHER_CONFIG_FLAGS = ("--config-name", "-cn", "--config-path", "-cp", "--config-dir", "-cd")  # not our conf/


@dataclass
class Globals:
    """The top-level keys that no component takes, with their types: read as a signature like any other."""

    name: str
    out: str
    monitor: Literal["val/loss", "val/acc", "val/bpb"]


def check(argv: list[str]) -> list[str]:
    """The command line for Hydra, `-m` in front. Prints the help or every mistake, and exits, where no run can follow."""
    sweep = [word for word in argv[1:] if word in ("-m", "--multirun")][:1]
    rest = [expand_resume(word) for word in argv[1:] if word not in ("-m", "--multirun")]
    os.environ["GROKBIT_SWEPT"] = ""
    gc.disable()  # looking for garbage is a tenth of the time, and little of what is made here is any
    if {"-h", "--help"} & set(rest):
        print(build_help_text())
        sys.exit(0)
    first = os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"
    ours = not any(word.split("=")[0] in (*INFO_FLAGS, *OTHER_CONFIG_FLAGS) for word in rest)
    wrong, more = check_overrides(rest, bool(sweep)) if ours else ([], [])
    if wrong:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise ValueError("\n".join(wrong))
        if first:
            print("\n".join(wrong), file=sys.stderr)
        sys.exit(2)
    if sweep:
        gc.enable()  # else run() does, once all is imported
    return [argv[0], *sweep, *rest, *(more if first else redirect_to_temp())]


def redirect_to_temp() -> list[str]:
    """Overrides for a process that is not the first of its run: only that one writes, and tells the others where."""
    place = tempfile.mkdtemp(prefix="grokbit-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return [f"hydra.run.dir={place}", f"hydra.sweep.dir={place}"]


def find_mistakes(arguments: list[str], multirun: bool) -> list[str]:
    """Every mistake, as text for the terminal."""
    return check_overrides([expand_resume(word) for word in arguments], multirun)[0]


def check_overrides(arguments: list[str], multirun: bool) -> tuple[list[str], list[str]]:
    """Every mistake, and the overrides that send a run which goes on to its own folder."""
    from hydra import initialize_config_dir

    flags = any(word.startswith("-") for word in arguments)  # a flag may have a value, which is no override
    asked = [w for w in arguments if not w.startswith("-") and (not flags or "=" in w or w.startswith("~"))]
    overrides, wrong = parse(asked)
    for override in list(overrides):
        if (
            said := check_option(override)
            or check_sweep_values(override)
            or (check_resume_sweep(override) if multirun else check_no_sweep(override))
        ):
            wrong.append(said)
            overrides.remove(override)
    runs = Compositions()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        if multirun:
            overrides += runs.get_study_overrides(overrides)
            os.environ["GROKBIT_SWEPT"] = ",".join(get_key(o) for o in overrides if o.is_sweep_override())
        conditions = runs.parse_conditions(overrides) if multirun else {}
        looked_at = [runs.drop_inactive(variant, conditions) for variant in islice(iter_variants(overrides), MAX_SWEEP_VALUES)]
        for variant in looked_at:
            wrong += check_run(variant, runs)
        wrong += [] if wrong else check_study_name(looked_at, runs)
        auto = [o for o in overrides if o.key_or_group == "resume.path" and o.value() == "auto"]
        if multirun and auto:
            wrong.append(format_mistake("resume=auto", "it goes on with one run, -m starts several", "leave out -m or resume"))
        more = [] if wrong else get_resume_overrides(RequestedConfig.from_overrides(looked_at[0], runs), multirun)
    return [told.replace("error: resume.path=", "error: resume=") for told in dict.fromkeys(wrong)], more


def check_study_name(variants: list[list["Override"]], compositions: Compositions) -> list[str]:
    """A sweep has one folder and one parent run, so its runs need one name."""
    names: dict[str, None] = {}
    for variant in variants:
        given = [override.value() for override in variant if override.key_or_group == "name"]
        names[str(given[-1] if given else compositions.compose(variant)["name"])] = None
    told = f"the runs of this sweep belong to several studies: {', '.join(names)}"
    return [format_mistake("-m", told, "give them one name, as name=comparison")] if len(names) > 1 else []


def check_run(overrides: list["Override"], compositions: Compositions) -> list[str]:
    """What is wrong with one run."""
    from hydra.errors import HydraException

    chosen = compositions.select_group_overrides(overrides)
    try:
        asked = RequestedConfig.from_overrides(overrides, compositions)
    except HydraException as error:
        said = str(error.__cause__ or error).splitlines()
        rest = [o for o in overrides if not o.key_or_group.startswith("hydra/")]  # no option of ours is missing by now
        told = format_mistake(" ".join(str(o.input_line) for o in chosen) or "conf/", *said)
        return [told, *(check_run(rest, compositions) if len(rest) < len(overrides) else [])]
    asked.check_groups()
    asked.check_values("", read_signature(f"{__name__}.Globals"), asked.cfg)
    if isinstance(resume := asked.cfg.get("resume"), dict):
        asked.check_values("resume.", read_signature("research.preflight.resume.Resume"), resume)
    for place, node in list(asked.iter_nodes()):
        asked.check_node(place, node)
    for relation in RULES:
        for clash in relation(asked):
            asked.add_conflict(clash.keys, clash.message, clash.fix)
    return list(asked.mistakes.values())
