"""By what a trained run is judged: the data, the loss and the metrics that the overrides of an evaluation choose."""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hydra import initialize_config_dir
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from research.composition.compose import MISSING, chooses_option, compose
from research.composition.overrides import expand_argument, expand_sweep, format_mistake, get_key, parse, quote_word
from research.contracts import contract
from research.options.conf import CONF, find_target, list_groups, set_folders
from research.preflight.advice import Adviser, CommandLine
from research.preflight.check import check_option_files
from research.preflight.choices import check_values
from research.preflight.conflicts import check_metrics, find_kind_conflicts, find_loss_conflicts, find_number_conflicts
from research.preflight.known_keys import read_option
from research.preflight.requested import RequestedConfig
from research.preflight.words import Repair, join_mistakes, repair
from research.rules import Conflict

NODES = ("data", "loss", "metrics")  # what an evaluation builds, besides the model
ROOTS = (*NODES, "tokenizer")  # what its overrides may set
FOLDER = "research.data.tokenizers.Folder"
ALL_BYTES = 1 << 40  # of text: more than there is


class EvaluationTask(NamedTuple):
    """What a model is judged by, as plain nodes to build."""

    data: dict[str, Any]
    loss: dict[str, Any]
    metrics: dict[str, Any]
    is_own: bool  # of the run, with no override that changes the data


@contract
def compose_task(
    overrides: Sequence[str],
    recorded: dict[str, Any],
    tokenizer: dict[str, Any] | None,
    seq_len: int | None,
    split: str | None,
    folders: Sequence[Path] = (),
) -> EvaluationTask:
    """Return the task of some overrides over the recorded configuration of a run; empty where a model has none.

    `tokenizer` is the node of the model's own, which takes the place of that of the data; `seq_len` counts where data are
    chosen and it is not typed. Where no split is named and the data are not the run's own, all of them are read.
    Raise ValueError with every mistake.
    """
    set_folders(list(folders))
    items = list(repair([expand_argument(override) for override in overrides]))
    line = CommandLine(tuple(filter(None, (item.word if isinstance(item, Repair) else item for item in items))), False)
    repairs = [item for item in items if isinstance(item, Repair)]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        read = partial(read_overrides, recorded=recorded, has_tokenizer=tokenizer is not None)
        requested, mistakes = read(line)
        mistakes = [*(item.describe() for item in repairs if not item.word), *mistakes]
        judge: Callable[..., list[str]] = lambda line, known: read(line)[1]  # noqa: E731
        mistakes = Adviser(line, mistakes, judge).check() if mistakes else []
    mistakes = join_mistakes([item for item in repairs if item.word], mistakes)
    if mistakes or requested is None:
        raise ValueError("\n".join(mistakes).removeprefix("error: "))
    return build_task(requested, recorded, tokenizer, seq_len, split)


@contract
def build_task(
    requested: RequestedConfig,
    recorded: dict[str, Any],
    tokenizer: dict[str, Any] | None,
    seq_len: int | None,
    split: str | None,
) -> EvaluationTask:
    """Return the nodes of what was requested, resolved. Raise ValueError for a split that the data cannot have."""
    typed = requested.typed_overrides
    is_own = bool(recorded) and not any(key.split(".")[0] in ("data", "tokenizer") for key in typed)
    config = OmegaConf.create({key: value for key, value in requested.cfg.items() if key != "hydra"})
    data, loss, metrics = (to_plain(config, key) for key in NODES)
    if not is_own and "tokenizer" in data and tokenizer is not None:
        data["tokenizer"] = copy.deepcopy(tokenizer)
    if "data" in typed and "data.seq_len" not in typed and "seq_len" in data and seq_len:
        data["seq_len"] = seq_len
    if split == "test" and data.get("test_fraction") == 0:
        fix = "give --split val" + ", or --split all for all of these data" * (not is_own)
        raise ValueError(f"--split test: data.test_fraction=0 sets no test apart\n  {fix}")
    if not is_own and split in (None, "all"):  # of text all that is held back is read, and both parts are long enough
        read_all = {"val_bytes": ALL_BYTES, "val_fraction": 0.5, "test_fraction": 0.0} if "val_bytes" in data else {}
        data |= {key: value for key, value in read_all.items() if f"data.{key}" not in typed}
    return EvaluationTask(data, loss, metrics, is_own)


def to_plain(config: Any, key: str) -> dict[str, Any]:
    """Return a node of a configuration, resolved; empty where there is none."""
    node = OmegaConf.select(config, key)
    plain: Any = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else {}
    return dict(plain) if isinstance(plain, dict) else {}


@contract
def read_overrides(
    line: CommandLine, recorded: dict[str, Any], has_tokenizer: bool
) -> tuple[RequestedConfig | None, list[str]]:
    """Return what the overrides of a command line request over a recorded configuration, and their mistakes."""
    overrides, mistakes = parse(list(line.words))
    for override in list(overrides):
        if mistake := check_override(override, has_tokenizer):
            mistakes.append(mistake)
            overrides.remove(override)
    try:
        requested = RequestedConfig(compose(overrides))
    except HydraException as error:
        return None, [*mistakes, format_mistake(" ".join(line.words), *str(error).splitlines()[:2])]
    chosen = {get_key(override) for override in overrides if chooses_option(override)}
    if recorded and "data" not in chosen:
        take_recorded(requested, recorded, chosen)
    for override in overrides:
        requested.typed_overrides[override.key_or_group] = str(override.input_line)
        if not chooses_option(override):
            requested.apply_override(override)
    for key in ("data", "loss"):
        if not isinstance(requested.get(key), dict):
            requested.add_mistake(key, f"an evaluation needs {key}", f"leave it out, or give {key}=OPTION")
    check_nodes(requested, has_tokenizer)
    if recorded and (mistake := check_kind(requested, recorded)):
        mistakes.append(mistake)
    return requested, list(dict.fromkeys([*mistakes, *requested.mistakes.values()]))


def check_nodes(requested: RequestedConfig, has_tokenizer: bool) -> None:
    """Record the mistakes of the nodes that are built, each by itself and together."""
    for key, node in list(requested.iter_nodes()):
        is_tokenizer = key == "data.tokenizer" and has_tokenizer  # the model's own takes its place
        if key.split(".")[0] in NODES and not is_tokenizer:
            requested.check_node(key, node)
    for find_conflicts in (find_kind_conflicts, find_loss_conflicts, find_metrics_conflicts, find_number_conflicts):
        for conflict in filter(None, find_conflicts(requested)):
            if {key.split(".")[0] for key in conflict.keys} <= set(ROOTS):
                requested.add_conflict(conflict.keys, conflict.message, conflict.fix)


def find_metrics_conflicts(requested: RequestedConfig) -> Iterator[Conflict | None]:
    """Yield the conflict of metrics with a loss."""
    yield check_metrics(requested)


def check_override(override: Override, has_tokenizer: bool) -> str:
    """Return the mistake of one override: of those of train.py, and of what nothing reads here; empty for none."""
    if mistake := check_values(override) or check_option_files(override):
        return mistake
    line, key = str(override.input_line), get_key(override)
    if override.is_sweep_override():
        listed = f", or one list: {quote_word(f'{key}=[{line.partition(chr(61))[2]}]')}" if takes_list(key) else ""
        fix = f"give one: {quote_word(expand_sweep(override)[0])}{listed}"
        return format_mistake(line, "an evaluation has one value of each setting; it is no sweep", fix)
    root = key.split(".")[0]
    if root == "tokenizer" or key.startswith("data.tokenizer"):
        reason = "the model has learnt the tokens of its own tokenizer, and is judged with it"
        return format_mistake(line, reason, "leave it out") if has_tokenizer else ""
    if root == "precision" or key == "trainer.precision":
        return format_mistake(line, "the precision is an option here", f"give --precision {line.partition('=')[2]}")
    if root == "batch_size" or key == "trainer.batch_size":
        return format_mistake(line, "the size of a batch is an option here", f"give --batch-size {line.partition('=')[2]}")
    known = root in list_groups() or root in ROOTS or f"\n{root}:" in (CONF / "config.yaml").read_text(encoding="utf-8")
    if known and root not in ROOTS:
        return format_mistake(line, f"an evaluation takes {', '.join(ROOTS)}; it does not read {root}", "leave it out")
    return ""


def takes_list(key: str) -> bool:
    """Return whether an option of a group has a setting, which a dotted key names, that takes a list."""
    group, _, name = key.partition(".")
    parameters = [p for option in list_groups().get(group, []) for p in read_option(group, option).parameters if p.name == name]
    return any(value_type.name == "list" for parameter in parameters for value_type in parameter.value_types)


def take_recorded(requested: RequestedConfig, recorded: dict[str, Any], chosen: set[str]) -> None:
    """Let what the run was trained with stand in place of the options that were not chosen."""
    for key in (*NODES, "monitor"):
        if key in recorded and key not in chosen:
            requested.cfg[key] = copy.deepcopy(recorded[key])
    data = recorded.get("data") or {}
    options = [option for option in list_groups()["data"] if find_target("data", option) == data.get("_target_")]
    if data.get("kind") == "number":
        options.reverse()  # table and regression have one target
    requested.cfg["hydra"]["runtime"]["choices"]["data"] = options[-1] if options else "null"


@contract
def check_kind(requested: RequestedConfig, recorded: dict[str, Any]) -> str:
    """Return the mistake of data of another kind than the model takes: tokens, vectors or images."""
    target = str((recorded.get("model") or {}).get("_target_"))
    models = [option for option in list_groups()["model"] if find_target("model", option) == target]
    takes = read_option("model", models[0]).get_annotation(0) if models else ""
    gives = requested.get_signature("data").parse_shape() if requested.get("data") is not MISSING else ""
    if not takes or not gives or takes == gives or "data" not in requested.typed_overrides:
        return ""
    fits = [f"data={option}" for option in list_groups()["data"] if read_option("data", option).parse_shape() == takes]
    message = f"data={requested.get_choice('data')} gives {gives}, the run has a model={models[0]} of {takes}"
    return format_mistake(requested.typed_overrides["data"], message, f"give {' or '.join(fits)}")
