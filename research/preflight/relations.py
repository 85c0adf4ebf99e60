"""What does not go together although each key is right by itself, each with the value that would do."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from research.preflight.asked import Asked, spelt
from research.preflight.composed import Composed, leaves
from research.preflight.help import CONF, component, groups
from research.preflight.signature import Signature, signature
from research.ranges import is_prime

FREE = ("model.dropout", "model.init_std")  # what may change when a run goes on


class Clash(NamedTuple):
    """Keys that do not go together: what is wrong, and the values that would do."""

    keys: tuple[str, ...]
    told: str
    fix: str


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
    """A data set names its loss; another one must take logits and targets of the same axes. Bits need all positions."""
    data, loss, now = asked.choice("data"), asked.choice("loss"), asked.signature("loss")
    file = CONF / "data" / f"{data}.yaml"
    own = re.search(r"override /loss: (\w+)", file.read_text() if file.exists() else "")
    axes = [annotation(now, place) for place in (0, 1)]
    if own and loss != own[1] and axes != [annotation(signature(component("loss", own[1])), place) for place in (0, 1)]:
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
    if dim and count and dim % (2 * count):
        told = f"model.dim={dim} is not a multiple of 2 * model.heads={2 * count}"
        other = f" or model.heads={divisor(dim // 2, count)}" if dim % 2 == 0 else ""
        yield Clash(("model.dim", "model.heads"), told, f"give model.dim={multiple(2 * count, dim)}{other}")
    if count and shared and count % shared:
        told = f"model.kv_heads={shared} does not divide model.heads={count}"
        yield Clash(("model.kv_heads", "model.heads"), told, f"give model.kv_heads={divisor(count, shared)}")


def micro_batches(asked: Asked) -> Iterator[Clash]:
    """A step's batch is cut into equal parts."""
    batch, parts = natural(asked, "trainer.batch_size"), natural(asked, "trainer.grad_accum")
    if batch and parts and batch % parts:
        told = f"trainer.grad_accum={parts} does not divide trainer.batch_size={batch}"
        wide = f"{asked.at('trainer.batch_size')[1]}={multiple(parts, batch)}"
        fix = f"give trainer.grad_accum={divisor(batch, parts)} or {wide}"
        yield Clash(("trainer.grad_accum", "trainer.batch_size"), told, fix)


def prime(asked: Asked) -> Iterator[Clash]:
    """Every residue but zero has an inverse only modulo a prime."""
    p = natural(asked, "data.p")
    if p and asked.at("data.operation")[0] == "/" and not is_prime(p):
        near = min(filter(is_prime, range(2, 2 * p + 2)), key=lambda q: abs(q - p))
        told = f"data.operation=/ divides modulo data.p={p}, which is not prime"
        yield Clash(("data.p", "data.operation"), told, f"give data.p={near}")


def resumed(asked: Asked) -> Iterator[Clash]:
    """A run goes on as the same model and the same optimizer."""
    from omegaconf import OmegaConf

    given = asked.at("resume")[0]
    if not isinstance(given, str) or not Path(given).exists():
        return
    path = Path(given).resolve()
    one = (path / "manifest.json").exists()  # a checkpoint, not a run folder
    if not one and not any(path.glob("checkpoints/step-*")):
        yield Clash(("resume",), f"{path} holds no checkpoint", "give a run folder, or one of its checkpoints/step-*")
    file = (path.parents[1] if one else path) / "config.yaml"
    if not file.exists():
        return
    old = Composed(OmegaConf.to_container(OmegaConf.load(file)))  # type: ignore[arg-type]
    for node in ("model", "optim._target_", "optim.base._target_"):
        keys = dict.fromkeys(key for side in (asked, old) for key, _ in leaves(node, side.walk(node)))
        differ = [key for key in keys if key not in FREE and asked.at(key)[0] != old.at(key)[0]]
        if differ:
            told = "; ".join(
                f"{key} is {spelt(asked.at(key)[0])} here, was {spelt(old.at(key)[0])} there" for key in differ[:3]
            )
            yield Clash(("resume", *differ), told, "give what it was trained with, or start afresh without resume")


RELATIONS: tuple[Callable[[Asked], Iterator[Clash]], ...] = (
    task_and_model,
    loss_and_data,
    monitor_and_target,
    heads,
    micro_batches,
    prime,
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
