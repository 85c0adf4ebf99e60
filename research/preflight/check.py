"""Find every mistake of a command line, each with its fix, before anything heavy is imported."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from hydra import initialize_config_dir
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from research.cli import print_message
from research.composition.compose import MISSING, chooses_option, compose, drop_inactive, iter_leaves, read_study
from research.composition.overrides import (
    check_no_sweep,
    check_resume_sweep,
    expand_argument,
    expand_sweep,
    format_mistake,
    get_key,
    iter_variants,
    parse,
)
from research.contracts import contract
from research.options.conf import CONF, list_groups, read_defaults, set_folders
from research.options.files import check_option
from research.options.renames import PLAIN_LOSS
from research.options.signature import Signature, read_signature
from research.options.trigger import higher_is_better, read_directions
from research.preflight.advice import Adviser, CommandLine, identify
from research.preflight.choices import check_values
from research.preflight.conflicts import FINDERS
from research.preflight.fixed import resolve_settings
from research.preflight.partial_keys import replace_partial_keys
from research.preflight.requested import RequestedConfig
from research.preflight.resume import choose_run, get_folder_overrides, prepare_resume
from research.preflight.words import Repair, join_mistakes, repair, split_flags
from research.ranges import PositiveFloat
from research.rules import PRESET_GROUPS
from research.run_dir import SWEPT_ENV_VAR

STUDY_NODES = ("sweeper", "launcher", "sweep")  # below hydra: what a sweep is planned with
PRINTING_FLAGS = ("--cfg", "-c", "--info", "-i")
MAX_RUNS = 50  # of a sweep that are checked


@dataclass
class Globals:
    """The top-level keys that no component takes, with their types: read like any other signature."""

    name: str
    out: str
    monitor: object  # find_monitor_conflicts knows the metrics
    epochs: PositiveFloat | None


def split_folders(arguments: list[str]) -> tuple[list[str], list[Path]]:
    """Return the arguments without --config-dir, and the folders of options that it and hydra.searchpath add."""
    rest, folders = list[str](), list[Path]()
    words = iter(arguments)
    for word in words:
        flag, equal, value = word.partition("=")
        if flag in ("--config-dir", "-cd"):
            folders.append(Path(value if equal else next(words, "")))
            continue
        rest.append(word)
        for override in parse([word])[0] if flag.lstrip("+") == "hydra.searchpath" else ():
            paths = listed if isinstance(listed := override.value(), list) else []
            folders += [Path(str(path).removeprefix("file://")) for path in paths if not str(path).startswith("pkg://")]
    return rest, [folder.absolute() for folder in folders]


class Judgement(NamedTuple):
    """What the preflight says about a command line."""

    mistakes: list[str]
    runs: list[list[Override]]
    sweep_lines: dict[str, str]  # key -> the whole sweep over it, as it was typed


@contract
def find_defaults(overrides: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the options that overrides or their presets choose, and the settings of a run with these alone, by dotted keys.

    A preset's own settings are none of these. Raise ValueError where the options do not compose, as those of another folder.
    """
    chosen = [o for o in parse(overrides)[0] if chooses_option(o) and not get_key(o).startswith("hydra")]
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            if any(get_key(o) in PRESET_GROUPS for o in chosen):
                choices, defaults = (compose(c)["hydra"]["runtime"]["choices"] for c in (chosen, []))
                groups = [group for group in list_groups() if choices.get(group) and group not in PRESET_GROUPS]
                lines = {group: f"{group}={choices[group]}" for group in groups}
                requested = RequestedConfig.from_overrides(parse(list(lines.values()))[0], {})
                options = [line for group, line in lines.items() if choices[group] != defaults.get(group)]
                return options, resolve_settings(requested)
            return [str(o.input_line) for o in chosen], resolve_settings(RequestedConfig.from_overrides(chosen, {}))
    except HydraException as error:
        raise ValueError(str(error)) from error


@contract
def find_mistakes(arguments: list[str], multirun: bool) -> list[str]:
    """Return every mistake of a command line, as text for the terminal."""
    return check_overrides([expand_argument(word) for word in arguments], multirun)[0]


@contract
def check_overrides(arguments: list[str], multirun: bool) -> tuple[list[str], list[str]]:
    """Return every mistake, and the overrides that send a resumed run to its own folder, and each to one without a ~.

    Of a sweep this sets SWEPT_ENV_VAR to the keys that it sweeps.
    """
    arguments, folders = split_folders(arguments)
    if missing := [folder for folder in folders if not folder.is_dir()]:
        return [format_mistake(f"--config-dir {folder}", f"there is no folder {folder.absolute()}") for folder in missing], []
    set_folders(folders)
    choose_run.cache_clear()
    flags, rest = split_flags(arguments)
    items = list(repair(rest))
    repairs, more = [item for item in items if isinstance(item, Repair)], list[str]()
    words = [expand_argument(item.word) if isinstance(item, Repair) else item for item in items]
    prints = any(flag.partition("=")[0] in PRINTING_FLAGS for flag in flags)  # also a study without -m
    line = CommandLine(tuple(filter(None, words)), multirun or (prints and any(word.startswith("sweep=") for word in words)))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        judgement = judge(line)
        if multirun:
            os.environ[SWEPT_ENV_VAR] = ",".join(judgement.sweep_lines)
        mistakes = [*(item.describe() for item in repairs if not item.word), *judgement.mistakes]
        mistakes = Adviser(line, mistakes, lambda line, known: judge(line, known).mistakes).check() if mistakes else []
        if not mistakes and not repairs:
            requested = RequestedConfig.from_overrides(judgement.runs[0], judgement.sweep_lines)
            more = [*get_folder_overrides(requested), *prepare_resume(requested, multirun)]
            for note in (*find_base_notes(judgement), *(find_loss_notes(judgement) if multirun else ())):
                print_message(note)
    mistakes = [mistake.replace("error: resume.path=", "error: resume=") for mistake in mistakes]
    return join_mistakes([item for item in repairs if item.word], mistakes), more


def find_base_notes(judgement: Judgement) -> dict[str, None]:
    """Return what completed the runs, once each: of a sweep over what runs start from, that of all of them."""
    is_swept = bool(judgement.sweep_lines.keys() & {"model.folder", "finetune.base"})
    runs = [RequestedConfig.from_overrides(run, {}) for run in judgement.runs[: None if is_swept else 1]]
    return dict.fromkeys(note for run in runs for note in run.notes)


def find_loss_notes(judgement: Judgement) -> Iterator[str]:
    """Yield a note where a sweep is over what val/loss itself is, and compares its runs by it.

    Evaluations leave out the settings of our losses that help training alone: over these it may well be compared.
    """
    lines = {key: line for key, line in judgement.sweep_lines.items() if f"{key}.".startswith("loss.")}
    runs = [RequestedConfig.from_overrides(run, {}) for run in judgement.runs] if lines else []
    is_own = any(not str(run.get("loss._target_")).startswith("research.losses.") for run in runs)
    others = [line for key, line in lines.items() if is_own or key.removeprefix("loss.") not in PLAIN_LOSS]
    if others and any(run.get_resolved("monitor")[0] == "val/loss" for run in runs):
        reason = "these runs have another loss each, so val/loss does not compare them"
        yield f"note: {' '.join(others)}: {reason}: give monitor=val/acc, or the name of a metric"


@contract
def judge(line: CommandLine, known: set[tuple[str, ...]] | None = None) -> Judgement:
    """Return every mistake of a command line, its advice untried, and the runs that were looked at.

    With `known` stop at the first run of a sweep that has another mistake than these, as `identify` returns them.
    """
    multirun, (overrides, mistakes), wrong_groups = line.multirun, parse(list(line.words)), set[str]()
    for override in list(overrides):
        about_sweep = check_resume_sweep(override) if multirun else check_no_sweep(override)
        if mistake := check_values(override) or check_option_files(override) or about_sweep:
            mistakes.append(mistake)
            overrides.remove(override)
            wrong_groups.add(override.key_or_group)
    absent = {group for group in wrong_groups if read_defaults().get(group) == "null"}  # without a default there are no keys
    overrides = [override for override in overrides if override.key_or_group.partition(".")[0] not in absent]
    params, conditions = read_study(overrides) if multirun else ([], {})
    overrides += [param for param in params if get_key(param) not in line.dropped]
    sweep_lines = {get_key(o): str(o.input_line) for o in overrides if o.is_sweep_override()}
    try:
        runs = [drop_inactive(variant, conditions) for variant in islice(iter_variants(overrides), MAX_RUNS)]
    except ValueError as error:
        return Judgement([*mistakes, format_mistake(str(error))], [], sweep_lines)
    for run in runs:
        mistakes += check_run(run, sweep_lines, wrong_groups)
        if known is None or known.issuperset(map(identify, mistakes)):
            continue
        if not known.issuperset(map(identify, shown := replace_partial_keys(mistakes, overrides, runs))):
            return Judgement(list(dict.fromkeys(shown)), runs, sweep_lines)
    mistakes = replace_partial_keys(mistakes, overrides, runs)
    mistakes += [] if mistakes else check_study_name(runs)
    mistakes += check_study_settings(overrides) + check_study_direction(overrides, runs) if multirun else []
    if multirun and any(o.key_or_group == "resume.path" and o.value() == "auto" for o in overrides):
        mistakes.append(format_mistake("resume=auto", "it resumes one run, -m starts several", "leave out -m or resume=auto"))
    return Judgement(list(dict.fromkeys(mistakes)), runs, sweep_lines)


@contract
def check_option_files(override: Override) -> str:
    """Return the mistake of an option whose yaml cannot be composed; empty for any other override."""
    if override.key_or_group not in list_groups() or override.is_delete():
        return ""
    for line in expand_sweep(override):
        if lines := check_option(override.key_or_group, line.partition("=")[2]):
            return format_mistake(str(override.input_line), *lines)
    return ""


def check_study_name(runs: list[list[Override]]) -> list[str]:
    """Return the mistake of a sweep over several names: it has one folder and one parent run, so its runs need one."""
    names = dict.fromkeys(str(RequestedConfig.from_overrides(run, {}).get("name")) for run in runs)
    message = f"the runs of this sweep belong to several studies: {', '.join(names)}"
    return [format_mistake("-m", message, "give name=comparison, or another one name")] if len(names) > 1 else []


def check_study_settings(overrides: list[Override]) -> list[str]:
    """Return the mistake of each swept option with settings of the sweep itself: a sweep is planned before its first run."""
    swept = [override for override in overrides if override.is_sweep_override() and chooses_option(override)]
    if not swept:
        return []
    try:
        planned = compose([override for override in overrides if not override.is_sweep_override()])["hydra"]
        lost = [(o, find_study_settings(planned, [*overrides, *parse([line])[0]])) for o in swept for line in expand_sweep(o)]
    except HydraException:
        return []  # the first run reports it
    message = "has settings of the sweep, which is planned before any of its runs is composed"
    fix = "name it alone, or give these settings on the command line"
    lines = {str(override.input_line): key for override, key in lost if key}
    return [format_mistake(line, f"an option {message}: {key}", fix) for line, key in lines.items()]


def check_study_direction(overrides: list[Override], runs: list[list[Override]]) -> list[str]:
    """Return the mistake of a swept option whose metrics decide the direction: a sweep is planned without them."""
    swept = [str(o.input_line) for o in overrides if o.is_sweep_override() and chooses_option(o)]
    if not swept or any(get_key(o) in ("hydra.sweeper.direction", "hydra.sweeper.metrics") for o in overrides):
        return []
    try:
        planned = read_directions(compose([o for o in overrides if not o.is_sweep_override()]))
        all_runs = [RequestedConfig.from_overrides(run, {}) for run in runs]
    except HydraException:
        return []  # the first run reports it
    for requested in all_runs:
        monitor = str(requested.get_resolved("monitor")[0])
        is_higher = higher_is_better(monitor, read_directions(requested.cfg))
        if is_higher != higher_is_better(monitor, planned):
            fix = f"give hydra.sweeper.direction={'maximize' if is_higher else 'minimize'}"
            message = f"the direction of monitor={monitor} is not known when the sweep is planned: its runs name the metrics"
            return [format_mistake(" ".join(swept), message, fix)]
    return []


def find_study_settings(planned: dict[str, Any], overrides: list[Override]) -> str:
    """Return the first key by which what these overrides compose differs from what a sweep is planned with; empty for none."""
    composed = compose([override for override in overrides if not override.is_sweep_override()])["hydra"]
    before = dict(leaf for node in STUDY_NODES for leaf in iter_leaves(f"hydra.{node}", planned[node]))
    after = dict(leaf for node in STUDY_NODES for leaf in iter_leaves(f"hydra.{node}", composed[node]))
    return next((key for key, value in after.items() if before.get(key, MISSING) != value), "")


@contract
def check_run(overrides: list[Override], sweep_lines: dict[str, str], wrong_groups: set[str]) -> list[str]:
    """Return the mistakes of one run; for groups whose option is wrong it has the default, which may fit to nothing."""
    requested, mistakes = compose_run(overrides, sweep_lines)
    if requested is None:  # our options are known to exist by now, so an option of Hydra's is at fault: go on without it
        rest = [override for override in overrides if not override.key_or_group.startswith("hydra/")]
        requested, more = compose_run(rest, sweep_lines) if len(rest) < len(overrides) else (None, [])
        mistakes += more
    return mistakes if requested is None else [*mistakes, *check_composed(requested, wrong_groups)]


def compose_run(overrides: list[Override], sweep_lines: dict[str, str]) -> tuple[RequestedConfig | None, list[str]]:
    """Return the configuration of a run, or None and the mistake for which Hydra cannot compose it."""
    try:
        return RequestedConfig.from_overrides(overrides, sweep_lines), []
    except HydraException as error:
        typed = " ".join(str(override.input_line) for override in overrides if chooses_option(override))
        text = re.split(r"\n(?:Config search path|Available options)", str(error.__cause__ or error))[0]
        return None, [format_mistake(typed or "conf/", *text.splitlines())]


def check_composed(requested: RequestedConfig, wrong_groups: set[str]) -> list[str]:
    """Return the mistakes of a configuration that Hydra has composed."""
    requested.check_groups()
    requested.check_references()
    for prefix, settings in (("", "check.Globals"), ("resume.", "resume.Resume")):
        requested.check_settings(prefix, read_signature(f"research.preflight.{settings}") or Signature())
    for key, node in list(requested.iter_nodes()):
        requested.check_node(key, node)
    requested.check_hydra()
    for find_conflicts in FINDERS:
        for conflict in filter(None, find_conflicts(requested)):
            if not wrong_groups & set(conflict.keys):
                requested.add_conflict(conflict.keys, conflict.message, conflict.fix)
    return list(requested.mistakes.values())
