"""What does not go together although each key is right by itself, each with the value that would do."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from research.preflight.asked import Asked
from research.preflight.composed import MISSING
from research.preflight.help import CONF, component, groups
from research.preflight.overrides import Clash
from research.preflight.resume import resumed
from research.preflight.signature import Signature, signature
from research.ranges import is_prime
from research.when import in_vain, read_moment

DECODER = "research.models.decoder.Decoder"  # without rotary positions


def task_and_model(asked: Asked) -> Iterator[Clash]:
    """The shape that the data set has must be the one that the model takes."""
    gives, takes = shape_of(asked.signature("data")), annotation(asked.signature("model"))
    if not gives or gives == takes:
        return
    tasks = [name for name in groups()["data"] if shape_of(signature(component("data", name))) == takes]
    models = [name for name in groups()["model"] if annotation(signature(component("model", name))) == gives]
    if tasks:  # else the model is somebody's own, and may well take both
        told = f"data={asked.choice('data')} gives {gives}, model={asked.choice('model')} takes {takes}"
        yield Clash(("data", "model"), told, f"give {either('model', models)}, or {either('data', tasks)}")


def loss_and_data(asked: Asked) -> Iterator[Clash]:
    """A data set names its loss; another one must take logits and targets of the same axes, or of any (*). Bits need all
    positions.
    """
    data, loss, now = asked.choice("data"), asked.choice("loss"), asked.signature("loss")
    file = CONF / "data" / f"{data}.yaml"
    own = re.search(r"override /loss: (\w+)", file.read_text() if file.exists() else "")
    axes = [annotation(now, place) for place in (0, 1)]
    fits = not own or loss == own[1] or "*" in axes[0]
    if own and not fits and axes != [annotation(signature(component("loss", own[1])), place) for place in (0, 1)]:
        yield Clash(("loss", "data"), f"loss={loss} does not fit data={data}", f"give loss={own[1]}, or leave loss out")
    elif asked.at("monitor")[0] == "val/bpb" and axes[1] and " " not in axes[1].partition(", ")[2]:
        told = f"val/bpb needs a loss at every position, loss={loss} judges one"
        yield Clash(("monitor", "loss"), told, "give monitor=val/acc or monitor=val/loss")


def monitor_and_target(asked: Asked) -> Iterator[Clash]:
    """A data set's target is one of its own monitor."""
    file = CONF / "data" / f"{asked.choice('data')}.yaml"
    own = dict(re.findall(r"^(monitor|target): (\S+)", file.read_text() if file.exists() else "", re.MULTILINE))
    now, (target, source) = asked.at("monitor")[0], asked.at("callbacks.early_stop.target")
    if now != own.get("monitor", now) and str(target) == own.get("target") and source not in asked.given:
        told = f"target={target} is meant for {own['monitor']}, not for {now}"
        yield Clash(("monitor", "target"), told, f"give target=VALUE, the {now} to stop at, or target=null")


def heads(asked: Asked) -> Iterator[Clash]:
    """Each head has dim / heads numbers, which rotary positions turn in pairs; query heads share key heads evenly."""
    dim, count, shared = (natural(asked, f"model.{key}") for key in ("dim", "heads", "kv_heads"))
    pairs = 1 if asked.at("model._target_")[0] == DECODER else 2
    if dim and count and dim % (pairs * count):
        told = f"model.dim={dim} is not a multiple of {'2 * ' * (pairs - 1)}model.heads={pairs * count}"
        other = f" or model.heads={divisor(dim // pairs, count)}" if dim % pairs == 0 else ""
        yield Clash(("model.dim", "model.heads"), told, f"give model.dim={multiple(pairs * count, dim)}{other}")
    if count and shared and count % shared:
        told = f"model.kv_heads={shared} does not divide model.heads={count}"
        yield Clash(("model.kv_heads", "model.heads"), told, f"give model.kv_heads={divisor(count, shared)}")


def prime(asked: Asked) -> Iterator[Clash]:
    """Every residue but zero has an inverse only modulo a prime."""
    p = natural(asked, "data.p")
    if p and asked.at("data.operation")[0] == "/" and not is_prime(p):
        near = min(filter(is_prime, range(2, 2 * p + 2)), key=lambda q: abs(q - p))
        told = f"data.operation=/ divides modulo data.p={p}, which is not prime"
        yield Clash(("data.p", "data.operation"), told, f"give data.p={near}")


def last_position(asked: Asked) -> Iterator[Clash]:
    """The decoder of the grokking papers says what follows the last position alone."""
    data, model = asked.choice("data"), asked.choice("model")
    file = CONF / "data" / f"{data}.yaml"
    every = "override /loss: next_token" in (file.read_text() if file.exists() else "")
    if every and asked.at("model._target_")[0] == DECODER:
        told = f"data={data} asks for the next symbol at every position, model={model} tells the last one's alone"
        yield Clash(("model", "data"), told, "give model=transformer or model=bitnet, or data=modular")


def several_processes(asked: Asked) -> Iterator[Clash]:
    """How processes share a run says nothing where there is one; launchers may start fewer than they were asked for."""
    how, processes = asked.at("trainer.parallel")[0], int(os.environ.get("WORLD_SIZE", "1"))
    if how in ("ddp", "fsdp") and processes == 1:
        told = "this is one process (accelerate launch --cpu starts no more without MPI)"
        yield Clash(("trainer.parallel",), told, "start it as: torchrun --nproc-per-node 2 train.py ...")
    for name in ("ternary", "gradients", "grokking"):
        if how == "fsdp" and asked.at(f"callbacks.{name}._target_")[0] is not MISSING:
            told = f"callbacks.{name} looks at whole tensors, trainer=fsdp spreads them"
            yield Clash(("callbacks", "trainer.parallel"), told, f"give ~callbacks.{name}, or trainer=ddp")
    batch, parts = natural(asked, "trainer.batch_size"), natural(asked, "trainer.grad_accum")
    if batch and parts and batch < parts * processes:
        told = f"trainer.batch_size={batch} has too few samples for {processes} x {parts} micro-batches"
        wide = f"{asked.at('trainer.batch_size')[1]}={parts * processes}"
        fix = f"give {wide}, or trainer.grad_accum={max(1, batch // processes)}"
        yield Clash(("trainer.grad_accum", "trainer.batch_size"), told, fix)


def base_and_own(asked: Asked) -> Iterator[Clash]:
    """What the optimizer is given beside its base is not the base's to say."""
    for key, fix in {"lr": "lr=", "weight_decay": "optim.weight_decay=", "params": "no_decay"}.items():
        if asked.at(f"optim.base.{key}")[0] is not MISSING:
            told = f"optim.base.{key} is not the base's to say: its groups have their own"
            yield Clash((f"optim.base.{key}",), told, f"leave it out; see {fix}")


def filter_and_base(asked: Asked) -> Iterator[Clash]:
    """A filter, and OrthoGrad, stand before an optimizer class that takes the gradients as they are."""
    if not str(asked.at("optim._target_")[0]).startswith(("research.optim.grokfast.", "research.optim.orthograd.")):
        return
    base, takes = asked.at("optim.base._target_")[0], asked.signature("optim.base")
    own = base == "torch.optim.LBFGS"
    if own or (takes and ("lr" not in [p.name for p in takes.parameters] or takes.returns)):
        told = f"optim.base._target_={base} {'computes gradients within its step' if own else 'is no optimizer class'}"
        yield Clash(("optim.base._target_", "optim"), told, "give optim.base._target_=torch.optim.AdamW, Adam, SGD or another")


def moments(asked: Asked) -> Iterator[Clash]:
    """When a filter goes on and off can be read, comes within the run, and in this order."""
    steps, read = natural(asked, "trainer.steps"), []
    for key in ("optim.start_when", "optim.stop_when"):
        if (given := asked.at(key)[0]) in (None, MISSING):
            continue
        try:
            when = read_moment(given, key)
        except ValueError as error:
            told, _, fix = str(error).rpartition(": ")
            yield Clash((key,), f"{told} is no moment of a run", fix)
            continue
        read.append(when)
        if when.metric == "train/acc" and not asked.at("trainer.judge_train")[0]:
            yield Clash((key,), f"{key}={given} waits for train/acc, which is not judged", "give trainer.judge_train=true")
        if steps and when.step >= steps:
            told = f"{key}={given} does not come within trainer.steps={steps}"
            yield Clash((key, "trainer.steps"), told, f"give fewer than {steps}, or leave it out")
    if len(read) == 2 and in_vain(*read):
        told = "optim.stop_when comes no later than optim.start_when: nothing is filtered"
        yield Clash(("optim.stop_when", "optim.start_when"), told, "give a later moment, or leave one out")


def folder_and_fields(asked: Asked) -> Iterator[Clash]:
    """A folder brings its own architecture."""
    new = [key for key in asked.given if key == "model.model_type" or f"{key}.".startswith("model.fields.")]
    new = [key for key in new if asked.walk(key) not in (MISSING, None)]
    if new and isinstance(asked.at("model.folder")[0], str):
        told = f"model.folder brings its own architecture, {new[-1]} would not be looked at"
        yield Clash(("model.folder", *new), told, f"leave out model.folder, or {new[-1]}")


def groups_of_inputs(asked: Asked) -> Iterator[Clash]:
    """A layer's inputs are divided evenly, and products of groups have one back end."""
    per, back_end = natural(asked, "model.linear.per"), asked.at("model.linear.back_end")[0]
    for key in ("model.dim", "model.hidden"):
        if per and (width := natural(asked, key)) and width % per:
            told = f"model.linear.per={per} does not divide the inputs of layers, {key}={width}"
            yield Clash(("model.linear.per", key), told, f"give model.linear.per={divisor(width, per)}, tensor or channel")
    if per and back_end in ("bf16_exact", "int8"):
        told = f"model.linear.back_end={back_end} multiplies codes, which model.linear.per={per} does not allow"
        yield Clash(("model.linear.back_end", "model.linear.per"), told, "give model.linear.back_end=auto")


def warm_up_and_steps(asked: Asked) -> Iterator[Clash]:
    """Until the warm-up of the rounding is over another model is trained than the one that is judged."""
    warmup, steps = natural(asked, "model.linear.warmup"), natural(asked, "trainer.steps")
    if steps and warmup >= steps:
        told = f"model.linear.warmup={warmup} is not over within trainer.steps={steps}: no step would see rounded weights"
        yield Clash(("model.linear.warmup", "trainer.steps"), told, f"give model.linear.warmup={steps // 2}, or more steps")


def looks(asked: Asked) -> Iterator[Clash]:
    """What a callback tells goes with the next log point: of several looks between two of them only the last would stay."""
    points = [number for key in ("log_every", "eval_every") if (number := natural(asked, f"trainer.{key}"))]
    for name in ("ternary", "gradients", "grokking"):
        every = natural(asked, f"callbacks.{name}.every")
        if every and points and all(every % point for point in points):
            told = f"callbacks.{name}.every={every} is a multiple neither of trainer.log_every={points[0]} nor of eval_every"
            fix = f"give callbacks.{name}.every={multiple(points[0], every)}"
            yield Clash((f"callbacks.{name}.every", "trainer.log_every"), told, fix)


def out(asked: Asked) -> Iterator[Clash]:
    """The folder of all runs can be written to, or be made."""
    if isinstance(given := asked.at("out")[0], str):
        path = Path(given).expanduser().absolute()
        there = next(place for place in (path, *path.parents) if place.exists())
        if not there.is_dir():
            yield Clash(("out",), f"{there} is a file", "give out=FOLDER")
        elif not os.access(there, os.W_OK | os.X_OK):
            yield Clash(("out",), f"{there} cannot be written to (read-only, or another user's)", "give out=FOLDER elsewhere")


RELATIONS: tuple[Callable[[Asked], Iterator[Clash]], ...] = (
    task_and_model,
    loss_and_data,
    monitor_and_target,
    heads,
    several_processes,
    base_and_own,
    filter_and_base,
    moments,
    prime,
    last_position,
    folder_and_fields,
    groups_of_inputs,
    warm_up_and_steps,
    looks,
    out,
    resumed,
)


def annotation(takes: Signature | None, place: int = 0) -> str:
    """That of a parameter; empty where it is not known."""
    return takes.parameters[place].annotation if takes and len(takes.parameters) > place else ""


def shape_of(data: Signature | None) -> str:
    """What a task gives: the S of its Dataset[S]."""
    given = re.fullmatch(r"Dataset\[(\w+)\]", data.returns if data else "")
    return given[1] if given else ""


def either(group: str, options: list[str]) -> str:
    return " or ".join(f"{group}={option}" for option in options)


def natural(asked: Asked, key: str) -> int:
    """The value of a key; 0 where it is not a whole number above 0."""
    value = asked.at(key)[0]
    return value if type(value) is int and value > 0 else 0


def divisor(of: int, near: int) -> int:
    return min((d for d in range(1, of + 1) if of % d == 0), key=lambda d: abs(d - near))


def multiple(of: int, near: int) -> int:
    return of * max(1, round(near / of))
