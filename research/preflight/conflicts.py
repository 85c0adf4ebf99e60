"""What does not go together although each key is right by itself, each with the value that would do."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from research.preflight.compose import MISSING
from research.preflight.help import CONF, find_target, list_groups
from research.preflight.overrides import Conflict
from research.preflight.requested import RequestedConfig
from research.preflight.resume import check_resume
from research.preflight.signature import Signature, read_signature
from research.ranges import is_prime
from research.trigger import never_active, parse_trigger

DECODER = "research.models.decoder.Decoder"  # without rotary positions


def check_task_and_model(requested: RequestedConfig) -> Iterator[Conflict]:
    """The shape that the data set has must be the one that the model takes."""
    gives, takes = parse_shape(requested.get_signature("data")), get_annotation(requested.get_signature("model"))
    if not gives or gives == takes:
        return
    tasks = [name for name in list_groups()["data"] if parse_shape(read_signature(find_target("data", name))) == takes]
    models = [name for name in list_groups()["model"] if get_annotation(read_signature(find_target("model", name))) == gives]
    if tasks:  # else the model is somebody's own, and may well take both
        told = f"data={requested.get_choice('data')} gives {gives}, model={requested.get_choice('model')} takes {takes}"
        yield Conflict(("data", "model"), told, f"give {join_options('model', models)}, or {join_options('data', tasks)}")


def check_loss_and_data(requested: RequestedConfig) -> Iterator[Conflict]:
    """A data set names its loss; another one must take logits and targets of the same axes, or of any (*). Bits need all
    positions.
    """
    data, loss, now = requested.get_choice("data"), requested.get_choice("loss"), requested.get_signature("loss")
    file = CONF / "data" / f"{data}.yaml"
    own = re.search(r"override /loss: (\w+)", file.read_text() if file.exists() else "")
    axes = [get_annotation(now, place) for place in (0, 1)]
    fits = not own or loss == own[1] or "*" in axes[0]
    if own and not fits and axes != [get_annotation(read_signature(find_target("loss", own[1])), place) for place in (0, 1)]:
        yield Conflict(("loss", "data"), f"loss={loss} does not fit data={data}", f"give loss={own[1]}, or leave loss out")
    elif requested.get_resolved("monitor")[0] == "val/bpb" and axes[1] and " " not in axes[1].partition(", ")[2]:
        told = f"val/bpb needs a loss at every position, loss={loss} judges one"
        yield Conflict(("monitor", "loss"), told, "give monitor=val/acc or monitor=val/loss")


def check_monitor_and_target(requested: RequestedConfig) -> Iterator[Conflict]:
    """A data set's target is one of its own monitor."""
    file = CONF / "data" / f"{requested.get_choice('data')}.yaml"
    own = dict(re.findall(r"^(monitor|target): (\S+)", file.read_text() if file.exists() else "", re.MULTILINE))
    now, (target, source) = requested.get_resolved("monitor")[0], requested.get_resolved("callbacks.early_stop.target")
    if now != own.get("monitor", now) and str(target) == own.get("target") and source not in requested.typed_overrides:
        told = f"target={target} is meant for {own['monitor']}, not for {now}"
        yield Conflict(("monitor", "target"), told, f"give target=VALUE, the {now} to stop at, or target=null")


def check_heads(requested: RequestedConfig) -> Iterator[Conflict]:
    """Each head has dim / heads numbers, which rotary positions turn in pairs; query heads share key heads evenly."""
    dim, count, shared = (get_positive_int(requested, f"model.{key}") for key in ("dim", "heads", "kv_heads"))
    pairs = 1 if requested.get_resolved("model._target_")[0] == DECODER else 2
    if dim and count and dim % (pairs * count):
        told = f"model.dim={dim} is not a multiple of {'2 * ' * (pairs - 1)}model.heads={pairs * count}"
        other = f" or model.heads={find_divisor(dim // pairs, count)}" if dim % pairs == 0 else ""
        yield Conflict(("model.dim", "model.heads"), told, f"give model.dim={find_multiple(pairs * count, dim)}{other}")
    if count and shared and count % shared:
        told = f"model.kv_heads={shared} does not divide model.heads={count}"
        yield Conflict(("model.kv_heads", "model.heads"), told, f"give model.kv_heads={find_divisor(count, shared)}")


def check_prime(requested: RequestedConfig) -> Iterator[Conflict]:
    """Every residue but zero has an inverse only modulo a prime."""
    p = get_positive_int(requested, "data.p")
    if p and requested.get_resolved("data.operation")[0] == "/" and not is_prime(p):
        near = min(filter(is_prime, range(2, 2 * p + 2)), key=lambda q: abs(q - p))
        told = f"data.operation=/ divides modulo data.p={p}, which is not prime"
        yield Conflict(("data.p", "data.operation"), told, f"give data.p={near}")


def check_last_position(requested: RequestedConfig) -> Iterator[Conflict]:
    """The decoder of the grokking papers says what follows the last position alone."""
    data, model = requested.get_choice("data"), requested.get_choice("model")
    file = CONF / "data" / f"{data}.yaml"
    every = "override /loss: next_token" in (file.read_text() if file.exists() else "")
    if every and requested.get_resolved("model._target_")[0] == DECODER:
        told = f"data={data} asks for the next symbol at every position, model={model} tells the last one's alone"
        yield Conflict(("model", "data"), told, "give model=transformer or model=bitnet, or data=modular")


def check_processes(requested: RequestedConfig) -> Iterator[Conflict]:
    """How processes share a run says nothing where there is one; launchers may start fewer than they were asked for."""
    how, processes = requested.get_resolved("trainer.parallel")[0], int(os.environ.get("WORLD_SIZE", "1"))
    if how in ("ddp", "fsdp") and processes == 1:
        told = "this is one process (accelerate launch --cpu starts no more without MPI)"
        yield Conflict(("trainer.parallel",), told, "start it as: torchrun --nproc-per-node 2 train.py ...")
    for name in ("ternary", "gradients", "grokking"):
        if how == "fsdp" and requested.get_resolved(f"callbacks.{name}._target_")[0] is not MISSING:
            told = f"callbacks.{name} looks at whole tensors, trainer=fsdp spreads them"
            yield Conflict(("callbacks", "trainer.parallel"), told, f"give ~callbacks.{name}, or trainer=ddp")
    batch, parts = get_positive_int(requested, "trainer.batch_size"), get_positive_int(requested, "trainer.grad_accum")
    if batch and parts and batch < parts * processes:
        told = f"trainer.batch_size={batch} has too few samples for {processes} x {parts} micro-batches"
        wide = f"{requested.get_resolved('trainer.batch_size')[1]}={parts * processes}"
        fix = f"give {wide}, or trainer.grad_accum={max(1, batch // processes)}"
        yield Conflict(("trainer.grad_accum", "trainer.batch_size"), told, fix)


def check_optimizer_base(requested: RequestedConfig) -> Iterator[Conflict]:
    """What the optimizer is given beside its base is not the base's to say."""
    for key, fix in {"lr": "lr=", "weight_decay": "optim.weight_decay=", "params": "no_decay"}.items():
        if requested.get_resolved(f"optim.base.{key}")[0] is not MISSING:
            told = f"optim.base.{key} is not the base's to say: its groups have their own"
            yield Conflict((f"optim.base.{key}",), told, f"leave it out; see {fix}")


def check_filter_base(requested: RequestedConfig) -> Iterator[Conflict]:
    """A filter, and OrthoGrad, stand before an optimizer class that takes the gradients as they are."""
    if not str(requested.get_resolved("optim._target_")[0]).startswith(
        ("research.optim.grokfast.", "research.optim.orthograd.")
    ):
        return
    base, takes = requested.get_resolved("optim.base._target_")[0], requested.get_signature("optim.base")
    own = base == "torch.optim.LBFGS"
    if own or (takes and ("lr" not in [p.name for p in takes.parameters] or takes.returns)):
        told = f"optim.base._target_={base} {'computes gradients within its step' if own else 'is no optimizer class'}"
        yield Conflict(
            ("optim.base._target_", "optim"), told, "give optim.base._target_=torch.optim.AdamW, Adam, SGD or another"
        )


def check_triggers(requested: RequestedConfig) -> Iterator[Conflict]:
    """When a filter goes on and off can be read, comes within the run, and in this order."""
    steps, read = get_positive_int(requested, "trainer.steps"), []
    for key in ("optim.start_when", "optim.stop_when"):
        if (given := requested.get_resolved(key)[0]) in (None, MISSING):
            continue
        try:
            when = parse_trigger(given, key)
        except ValueError as error:
            told, _, fix = str(error).rpartition(": ")
            yield Conflict((key,), f"{told} is no moment of a run", fix)
            continue
        read.append(when)
        if when.metric == "train/acc" and not requested.get_resolved("trainer.eval_train")[0]:
            yield Conflict((key,), f"{key}={given} waits for train/acc, which is not judged", "give trainer.eval_train=true")
        if steps and when.step >= steps:
            told = f"{key}={given} does not come within trainer.steps={steps}"
            yield Conflict((key, "trainer.steps"), told, f"give fewer than {steps}, or leave it out")
    if len(read) == 2 and never_active(*read):
        told = "optim.stop_when comes no later than optim.start_when: nothing is filtered"
        yield Conflict(("optim.stop_when", "optim.start_when"), told, "give a later moment, or leave one out")


def check_folder_and_fields(requested: RequestedConfig) -> Iterator[Conflict]:
    """A folder brings its own architecture."""
    new = [key for key in requested.typed_overrides if key == "model.model_type" or f"{key}.".startswith("model.fields.")]
    new = [key for key in new if requested.get(key) not in (MISSING, None)]
    if new and isinstance(requested.get_resolved("model.folder")[0], str):
        told = f"model.folder brings its own architecture, {new[-1]} would not be looked at"
        yield Conflict(("model.folder", *new), told, f"leave out model.folder, or {new[-1]}")


def check_group_size(requested: RequestedConfig) -> Iterator[Conflict]:
    """A layer's inputs are divided evenly, and products of groups have one back end."""
    per, backend = get_positive_int(requested, "model.linear.granularity"), requested.get_resolved("model.linear.backend")[0]
    for key in ("model.dim", "model.ffn_dim"):
        if per and (width := get_positive_int(requested, key)) and width % per:
            told = f"model.linear.granularity={per} does not divide the inputs of layers, {key}={width}"
            yield Conflict(
                ("model.linear.granularity", key),
                told,
                f"give model.linear.granularity={find_divisor(width, per)}, tensor or channel",
            )
    if per and backend in ("bf16_exact", "int8"):
        told = f"model.linear.backend={backend} multiplies codes, which model.linear.granularity={per} does not allow"
        yield Conflict(("model.linear.backend", "model.linear.granularity"), told, "give model.linear.backend=auto")


def check_warmup(requested: RequestedConfig) -> Iterator[Conflict]:
    """Until the warm-up of the rounding is over another model is trained than the one that is judged."""
    warmup, steps = get_positive_int(requested, "model.linear.warmup"), get_positive_int(requested, "trainer.steps")
    if steps and warmup >= steps:
        told = f"model.linear.warmup={warmup} is not over within trainer.steps={steps}: no step would see rounded weights"
        yield Conflict(("model.linear.warmup", "trainer.steps"), told, f"give model.linear.warmup={steps // 2}, or more steps")


def check_callback_every(requested: RequestedConfig) -> Iterator[Conflict]:
    """What a callback tells goes with the next log point: of several looks between two of them only the last would stay."""
    points = [number for key in ("log_every", "eval_every") if (number := get_positive_int(requested, f"trainer.{key}"))]
    for name in ("ternary", "gradients", "grokking"):
        every = get_positive_int(requested, f"callbacks.{name}.every")
        if every and points and all(every % point for point in points):
            told = f"callbacks.{name}.every={every} is a multiple neither of trainer.log_every={points[0]} nor of eval_every"
            fix = f"give callbacks.{name}.every={find_multiple(points[0], every)}"
            yield Conflict((f"callbacks.{name}.every", "trainer.log_every"), told, fix)


def check_out(requested: RequestedConfig) -> Iterator[Conflict]:
    """The folder of all runs can be written to, or be made."""
    if isinstance(given := requested.get_resolved("out")[0], str):
        path = Path(given).expanduser().absolute()
        there = next(place for place in (path, *path.parents) if place.exists())
        if not there.is_dir():
            yield Conflict(("out",), f"{there} is a file", "give out=FOLDER")
        elif not os.access(there, os.W_OK | os.X_OK):
            yield Conflict(
                ("out",), f"{there} cannot be written to (read-only, or another user's)", "give out=FOLDER elsewhere"
            )


RULES: tuple[Callable[[RequestedConfig], Iterator[Conflict]], ...] = (
    check_task_and_model,
    check_loss_and_data,
    check_monitor_and_target,
    check_heads,
    check_processes,
    check_optimizer_base,
    check_filter_base,
    check_triggers,
    check_prime,
    check_last_position,
    check_folder_and_fields,
    check_group_size,
    check_warmup,
    check_callback_every,
    check_out,
    check_resume,
)


def get_annotation(signature: Signature | None, index: int = 0) -> str:
    """That of a parameter; empty where it is not known."""
    return signature.parameters[index].annotation if signature and len(signature.parameters) > index else ""


def parse_shape(data: Signature | None) -> str:
    """What a task gives: the S of its Dataset[S]."""
    given = re.fullmatch(r"Dataset\[(\w+)\]", data.returns if data else "")
    return given[1] if given else ""


def join_options(group: str, options: list[str]) -> str:
    return " or ".join(f"{group}={option}" for option in options)


def get_positive_int(requested: RequestedConfig, key: str) -> int:
    """The value of a key; 0 where it is not a whole number above 0."""
    value = requested.get_resolved(key)[0]
    return value if type(value) is int and value > 0 else 0


def find_divisor(of: int, near: int) -> int:
    return min((d for d in range(1, of + 1) if of % d == 0), key=lambda d: abs(d - near))


def find_multiple(of: int, near: int) -> int:
    return of * max(1, round(near / of))
