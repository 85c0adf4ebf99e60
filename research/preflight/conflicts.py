"""Settings that are valid by themselves and do not go together, each with the value that would.

Rules about plain values live in `research/rules.py`, where constructors find them too. What stands here asks about options,
files and processes, which only a command line has. Every check yields a `Conflict`, or None where all is well.
"""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from research import rules
from research.preflight.compose import MISSING
from research.preflight.help import CONF, find_target, list_groups
from research.preflight.requested import RequestedConfig
from research.preflight.resume import check_resume
from research.preflight.signature import Signature, read_signature
from research.rules import Conflict
from research.trigger import Trigger, parse_trigger

Conflicts = Iterator[Conflict | None]
DECODER = "research.models.decoder.Decoder"  # learnt positions, and an output at the last one only
TRANSFORM_MODULES = ("research.optim.grokfast.", "research.optim.orthograd.")  # they stand before a base optimizer
MEASURING_CALLBACKS = ("ternary", "gradients", "grokking")


def check_task_and_model(requested: RequestedConfig) -> Conflicts:
    """The shape that the data set gives is the one that the model takes."""
    gives, takes = parse_shape(requested.get_signature("data")), get_annotation(requested.get_signature("model"))
    if not gives or gives == takes:
        return
    tasks = [name for name in list_groups()["data"] if parse_shape(read_signature(find_target("data", name))) == takes]
    models = [name for name in list_groups()["model"] if get_annotation(read_signature(find_target("model", name))) == gives]
    # Without a task for it, the model is the user's own, and may well take both.
    if tasks:
        message = f"data={requested.get_choice('data')} gives {gives}, model={requested.get_choice('model')} takes {takes}"
        yield Conflict(("data", "model"), message, f"give {join_options('model', models)}, or {join_options('data', tasks)}")


def check_loss_and_data(requested: RequestedConfig) -> Conflicts:
    """A data set names its loss; another one takes logits and targets of the same axes, or of any axes (*).

    Bits per byte need the loss of every position.
    """
    data, loss, signature = requested.get_choice("data"), requested.get_choice("loss"), requested.get_signature("loss")
    own = re.search(r"override /loss: (\w+)", read_data_yaml(data))
    axes = [get_annotation(signature, index) for index in (0, 1)]
    fits = not own or loss == own[1] or "*" in axes[0]
    if own and not fits and axes != [get_annotation(read_signature(find_target("loss", own[1])), index) for index in (0, 1)]:
        yield Conflict(("loss", "data"), f"loss={loss} does not fit data={data}", f"give loss={own[1]}, or leave loss out")
    elif requested.get_resolved("monitor")[0] == "val/bpb" and axes[1] and " " not in axes[1].partition(", ")[2]:
        message = f"monitor=val/bpb needs a loss at every position, loss={loss} has one a sequence"
        yield Conflict(("monitor", "loss"), message, "give monitor=val/acc or monitor=val/loss")


def check_monitor_and_target(requested: RequestedConfig) -> Conflicts:
    """The target that a data set brings is a value of the data set's own monitor."""
    content = read_data_yaml(requested.get_choice("data"))
    own = dict(re.findall(r"^(monitor|target): (\S+)", content, re.MULTILINE))
    monitor, (target, source) = requested.get_resolved("monitor")[0], requested.get_resolved("callbacks.early_stop.target")
    if monitor != own.get("monitor", monitor) and str(target) == own.get("target") and source not in requested.typed_overrides:
        message = f"target={target} is meant for {own['monitor']}, not for monitor={monitor}"
        yield Conflict(("monitor", "target"), message, f"give target=VALUE, the {monitor} to stop at, or target=null")


def check_heads(requested: RequestedConfig) -> Conflicts:
    """The width divides by the heads, the heads by the key and value heads."""
    dim, heads, kv_heads = (get_positive_int(requested, f"model.{key}") for key in ("dim", "heads", "kv_heads"))
    if dim and heads:
        yield rules.check_heads(dim, heads, rotary=requested.get_resolved("model._target_")[0] != DECODER)
    if heads and kv_heads:
        yield rules.check_kv_heads(heads, kv_heads)


def check_prime(requested: RequestedConfig) -> Conflicts:
    """Division needs a prime modulus."""
    if p := get_positive_int(requested, "data.p"):
        yield rules.check_prime(str(requested.get_resolved("data.operation")[0]), p)


def check_last_position(requested: RequestedConfig) -> Conflicts:
    """The decoder of the grokking papers predicts what follows the last position only."""
    data, model = requested.get_choice("data"), requested.get_choice("model")
    every_position = "override /loss: next_token" in read_data_yaml(data)
    if every_position and requested.get_resolved("model._target_")[0] == DECODER:
        message = f"data={data} needs a prediction at every position, model={model} gives the last one only"
        yield Conflict(("model", "data"), message, "give model=transformer or model=bitnet, or data=modular")


def check_processes(requested: RequestedConfig) -> Conflicts:
    """What a run needs of its processes; launchers may start fewer than requested."""
    parallel, world_size = str(requested.get_resolved("trainer.parallel")[0]), int(os.environ.get("WORLD_SIZE", "1"))
    if parallel in ("ddp", "fsdp"):
        yield rules.check_processes(parallel, world_size)
    for name in MEASURING_CALLBACKS:
        if requested.get_resolved(f"callbacks.{name}._target_")[0] is not MISSING:
            yield rules.check_whole_tensors(name, sharded=parallel == "fsdp")
    batch_size, grad_accum = (get_positive_int(requested, f"trainer.{key}") for key in ("batch_size", "grad_accum"))
    if batch_size and grad_accum:
        yield rules.check_batch_size(batch_size, grad_accum, world_size)


def check_optimizer_base(requested: RequestedConfig) -> Conflicts:
    """The base has only settings of its own, and a gradient transform can stand before it."""
    base = requested.get("optim.base")
    yield from (rules.check_base_setting(key) for key in (base if isinstance(base, dict) else ()))
    target, signature = str(requested.get_resolved("optim.base._target_")[0]), requested.get_signature("optim.base")
    if signature and str(requested.get_resolved("optim._target_")[0]).startswith(TRANSFORM_MODULES):
        is_optimizer = "lr" in [parameter.name for parameter in signature.parameters] and not signature.returns
        yield rules.check_filter_base(target, is_optimizer)


def check_triggers(requested: RequestedConfig) -> Conflicts:
    """A filter's triggers can be read, fire within the run, and fire in this order."""
    steps, triggers = get_positive_int(requested, "trainer.steps"), dict[str, Trigger]()
    for key in ("optim.start_when", "optim.stop_when"):
        if (raw := requested.get_resolved(key)[0]) in (None, MISSING):
            continue
        try:
            triggers[key] = parse_trigger(raw, key)
        except ValueError as error:
            message, _, fix = str(error).partition("\n")
            yield Conflict((key,), message, fix)
            continue
        yield rules.check_trigger_metric(key, triggers[key], requested.get_resolved("trainer.eval_train")[0] is True)
        if steps:
            yield rules.check_trigger_steps(key, triggers[key], steps)
    if len(triggers) == 2:
        yield rules.check_trigger_order(*triggers.values())


def check_folder_and_fields(requested: RequestedConfig) -> Conflicts:
    """A model that is read from a folder has the architecture of that folder."""
    fields = [key for key in requested.typed_overrides if key == "model.model_type" or f"{key}.".startswith("model.fields.")]
    fields = [key for key in fields if requested.get(key) not in (MISSING, None)]
    if fields and isinstance(folder := requested.get_resolved("model.folder")[0], str):
        message = f"model.folder={folder} brings its own architecture: {fields[-1]} would be ignored"
        yield Conflict(("model.folder", *fields), message, f"leave out model.folder, or {fields[-1]}")


def check_linear(requested: RequestedConfig) -> Conflicts:
    """Groups of inputs divide every layer's inputs and have a backend; the quantization warm-up ends within the run."""
    group_size, backend = get_positive_int(requested, "model.linear.granularity"), "model.linear.backend"
    if group_size:
        widths = {key: get_positive_int(requested, key) for key in ("model.dim", "model.ffn_dim")}
        for key, width in widths.items():
            if width and (conflict := rules.check_group_size(group_size, width)):
                yield conflict._replace(keys=(*conflict.keys, key))
        yield rules.check_backend(group_size, str(requested.get_resolved(backend)[0]))
    if steps := get_positive_int(requested, "trainer.steps"):
        yield rules.check_warmup(get_positive_int(requested, "model.linear.warmup"), steps)


def check_callback_every(requested: RequestedConfig) -> Conflicts:
    """Callbacks measure at log points or evaluations."""
    log_every, eval_every = (get_positive_int(requested, f"trainer.{key}") for key in ("log_every", "eval_every"))
    for name in MEASURING_CALLBACKS:
        every = get_positive_int(requested, f"callbacks.{name}.every")
        if every and log_every and eval_every:
            yield rules.check_callback_every(name, every, log_every, eval_every)


def check_out(requested: RequestedConfig) -> Conflicts:
    """The folder of all runs can be written to, or created."""
    if isinstance(out := requested.get_resolved("out")[0], str):
        path = Path(out).expanduser().absolute()
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
        if not existing.is_dir():
            yield Conflict(("out",), f"out={out}: {existing} is a file", "give out=FOLDER")
        elif not os.access(existing, os.W_OK | os.X_OK):
            message = f"out={out}: {existing} cannot be written to (read-only, or another user's)"
            yield Conflict(("out",), message, "give out=FOLDER elsewhere")


RULES: tuple[Callable[[RequestedConfig], Conflicts], ...] = (
    check_task_and_model,
    check_loss_and_data,
    check_monitor_and_target,
    check_heads,
    check_processes,
    check_optimizer_base,
    check_triggers,
    check_prime,
    check_last_position,
    check_folder_and_fields,
    check_linear,
    check_callback_every,
    check_out,
    check_resume,
)


def read_data_yaml(option: str) -> str:
    """Return the text of a data set's yaml; empty for a data set without one."""
    file = CONF / "data" / f"{option}.yaml"
    return file.read_text() if file.exists() else ""


def get_annotation(signature: Signature | None, index: int = 0) -> str:
    """Return a parameter's annotation as its source has it; empty where it is not known."""
    return signature.parameters[index].annotation if signature and len(signature.parameters) > index else ""


def parse_shape(data: Signature | None) -> str:
    """Return the S of a data set that returns Dataset[S]; empty for any other."""
    match = re.fullmatch(r"Dataset\[(\w+)\]", data.returns if data else "")
    return match[1] if match else ""


def join_options(group: str, options: list[str]) -> str:
    return " or ".join(f"{group}={option}" for option in options)


def get_positive_int(requested: RequestedConfig, key: str) -> int:
    """Return the value of a key; 0 where it is not a whole number above 0, which another check reports."""
    value = requested.get_resolved(key)[0]
    return value if type(value) is int and value > 0 else 0
