"""Rules that several settings must keep together, one function a rule, without torch.

Constructors pass the result to `enforce`; the preflight collects it. So a notebook and the command line give one message.
Ranges of single settings are in `ranges.py`, how a trigger is written in `trigger.py`.
"""

import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

from research.cli import UNPRINTABLE
from research.contracts import contract
from research.ranges import Fraction, Fractions, NonNegativeFloat, describe_mistake, parse_annotation

LAUNCH_HINT = "start it as: torchrun --nproc-per-node 2 train.py ...  (accelerate launch --cpu starts one process without MPI)"
OTHER_BASES = "give optim.base._target_=torch.optim.AdamW, Adam, SGD or another"
BASE_TYPES: dict[str, Any] = {"betas": Fractions, "momentum": Fraction, "eps": NonNegativeFloat}  # of any optimizer class
BASE_FIXES = {"lr": "set lr=", "weight_decay": "set optim.weight_decay=", "params": "set optim.no_decay="}
HYDRA_KEYS = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")  # Hydra's own keys of a node
PRESET_GROUPS = ("experiment", "sweep", "local")  # of conf/: they hold settings of components, and no component
UNPORTABLE = re.compile(r'[<>:"|?*]|^(?i:con|prn|aux|nul|com\d|lpt\d)(\.|$)')  # what Windows and its disks do not take
MAX_NAME_BYTES = 100  # file systems take 255, with what others append


class Conflict(NamedTuple):
    """Settings that do not go together, with the values that would."""

    keys: tuple[str, ...]  # config keys
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.message}\n{self.fix}".rstrip()


@contract
def to_conflict(key: str, error: ValueError) -> Conflict:
    """Return the conflict that an error about a setting tells: its first line, and the fix."""
    return Conflict((key,), *str(error).partition("\n")[::2])


@contract
def enforce(*conflicts: Conflict | None) -> None:
    """Raise ValueError for the first conflict."""
    for conflict in filter(None, conflicts):
        raise ValueError(str(conflict))


@contract
def check_extra(setting: str, library: str, extra: str) -> Conflict | None:
    """Return the conflict of a setting whose library is not installed; a folder of its name where one starts is none."""
    if (spec := find_spec(library)) and spec.origin is not None:
        return None
    message = f"{setting} needs {library}, which is not installed"
    return Conflict((setting.partition("=")[0],), message, f"pip install -e '.[{extra}]'")


@contract
def check_name(name: str, setting: str = "name") -> Conflict | None:
    """Return the conflict of a name that cannot be a folder on every system, an experiment in MLflow and a cell of tables."""
    is_plain = re.fullmatch(r"[^./\\~\s-]([^/\\]*[^.\s/\\])?", name) and name.isprintable() and not UNPORTABLE.search(name)
    if is_plain and len(name.encode()) <= MAX_NAME_BYTES:
        return None
    why = "it is or has what not every system takes, or a . - ~ or space at its start or end"
    message = f"{setting}={name!a} cannot name a folder: {why}"
    if is_plain:
        message = f"{setting}={name[:20]}... has {len(name.encode())} bytes, and a folder's name at most {MAX_NAME_BYTES}"
    return Conflict((setting,), message, f"give a plain word, as {setting}=comparison; out= says where its folder is")


@contract
def check_folder(out: str) -> Conflict | None:
    """Return the conflict of a path that is not text on one line, or whose leading ~ is no home folder."""
    if UNPRINTABLE.search(out):
        return Conflict(("out",), f"out={out!a} has a control character, or bytes that are not UTF-8", "give out=FOLDER")
    if "\\${" in out:
        return Conflict(("out",), f"out={out}: Hydra reads ${{ as a reference, also behind a \\", "give out=FOLDER without ${")
    if os.path.expanduser(out).startswith("~"):
        fix = f"""give "out='./{out}'" for a folder of this name"""  # in quotes for the shell and for Hydra
        return Conflict(("out",), f"out={out}: there is no such user", fix)
    return None


@contract
def check_heads(dim: int, heads: int, rotary: bool) -> Conflict | None:
    """Return the conflict where heads cannot have dim / heads numbers each; rotary positions rotate them in pairs."""
    pairs = 2 if rotary else 1
    if dim % (pairs * heads) == 0:
        return None
    why = f"fit model.dim={dim}: rotary heads need an even dim / heads" if rotary else f"divide model.dim={dim}"
    other = f" or model.heads={find_divisor(dim // pairs, heads)}" if dim % pairs == 0 else ""
    fix = f"give model.dim={find_multiple(pairs * heads, dim)}{other}"
    return Conflict(("model.dim", "model.heads"), f"model.heads={heads} does not {why}", fix)


@contract
def check_kv_heads(heads: int, kv_heads: int) -> Conflict | None:
    """Return the conflict where query heads cannot share key and value heads evenly."""
    if heads % kv_heads == 0:
        return None
    message = f"model.kv_heads={kv_heads} does not divide model.heads={heads}"
    return Conflict(("model.kv_heads", "model.heads"), message, f"give model.kv_heads={find_divisor(heads, kv_heads)}")


@contract
def check_document_mask(document_mask: bool, end: int) -> Conflict | None:
    """Return the conflict of a mask by documents where the data have no token that ends one; `end` is -1 there."""
    if not document_mask or end >= 0:
        return None
    message = "model.document_mask=true needs data with a token between documents, as text has; these have none"
    return Conflict(("model.document_mask", "data"), message, "give model.document_mask=false, or data=text")


@contract
def check_prime(operation: str, p: int) -> Conflict | None:
    """Return the conflict where residues lack an inverse: modulo a prime, and only then, each but zero has one."""
    if operation != "/" or is_prime(p):
        return None
    nearest = min(filter(is_prime, range(2, 2 * p + 2)), key=lambda q: abs(q - p))
    message = f"data.p={p} is not prime: data.operation=/ needs a prime modulus"
    return Conflict(("data.p", "data.operation"), message, f"give data.p={nearest}")


@contract
def check_processes(parallel: str, world_size: int) -> Conflict | None:
    """Return the conflict where a run is to be spread over several processes and is one."""
    if parallel == "auto" or world_size > 1:
        return None
    return Conflict(("trainer.parallel",), f"trainer.parallel={parallel}, but this is one process", LAUNCH_HINT)


@contract
def check_batch_size(batch_size: int, grad_accum: int, world_size: int) -> Conflict | None:
    """Return the conflict where a micro-batch of a process would have no sample."""
    if batch_size >= grad_accum * world_size:
        return None
    parts = f"trainer.grad_accum={grad_accum} micro-batches in each of {world_size} processes"
    fix = f"give trainer.batch_size={grad_accum * world_size}, or trainer.grad_accum={max(1, batch_size // world_size)}"
    message = f"trainer.batch_size={batch_size} has too few samples for {parts}"
    return Conflict(("trainer.grad_accum", "trainer.batch_size"), message, fix)


@contract
def check_whole_tensors(callback: str, sharded: bool) -> Conflict | None:
    """Return the conflict where a callback that measures whole tensors would get their shards."""
    if not sharded:
        return None
    message = f"callbacks.{callback} measures whole tensors, trainer.parallel=fsdp shards them"
    fix = f"leave it out under trainer=fsdp with ~callbacks.{callback}, or give trainer=ddp"
    return Conflict(("callbacks", "trainer.parallel"), message, fix)


@contract
def check_callback_every(callback: str, every: int, log_every: int, eval_every: int) -> Conflict | None:
    """Return the conflict where a callback measures several times before a log point: only the last one is logged."""
    if every % log_every == 0 or every % eval_every == 0:
        return None
    key = f"callbacks.{callback}.every"
    message = f"{key}={every} is a multiple neither of trainer.log_every={log_every} nor of trainer.eval_every={eval_every}"
    return Conflict((key, "trainer.log_every"), message, f"give {key}={find_multiple(log_every, every)}")


@contract
def check_base_setting(key: str, value: object) -> Conflict | None:
    """Return the conflict of a base's setting: torch ignores its own learning rate, weight decay and parameters.

    They belong to the parameter groups. What many optimizer classes have has one range.
    """
    if key in BASE_TYPES and (message := describe_mistake(f"optim.base.{key}", value, parse_annotation(BASE_TYPES[key]))):
        return Conflict((f"optim.base.{key}",), message, "")
    if key not in BASE_FIXES:
        return None
    message = f"optim.base.{key} is ignored: the parameter groups have their own {key}"
    return Conflict((f"optim.base.{key}",), message, f"leave it out; {BASE_FIXES[key]}")


@contract
def check_betas(target: str, betas: Sequence[float]) -> Conflict | None:
    """Return the conflict of a wrong number of betas: optimizer classes have two, AdEMAMix a third of its slow average."""
    name, is_known = target.rpartition(".")[2], target.startswith(("torch.optim.", "research.optim."))
    if name == "AdEMAMix" and (len(betas) != 3 or betas[2] < max(betas[0], 1e-9)):
        message = f"optim.base.betas={[*betas]}: {name} has three, and the third, of its slow average, is the largest"
        return Conflict(("optim.base.betas",), message, "give optim.base.betas=[0.9,0.999,0.9999]")
    if name == "AdEMAMix" or len(betas) == 2 or not is_known:
        return None
    return Conflict(("optim.base.betas",), f"optim.base.betas={[*betas]}: {name} has two", "give optim.base.betas=[0.9,0.98]")


@contract
def check_filter_base(name: str, is_optimizer: bool) -> Conflict | None:
    """Return the conflict where a gradient transform stands before what does not take the gradients as they are."""
    name = name.rpartition(".")[2]
    keys = ("optim.base._target_", "optim")
    if name == "LBFGS":  # it calls the closure again within its step
        return Conflict(keys, f"optim.base._target_={name} computes gradients within its step", OTHER_BASES)
    return None if is_optimizer else Conflict(keys, f"optim.base._target_={name} is no optimizer class", OTHER_BASES)


@contract
def check_group_size(group_size: int, in_features: int) -> Conflict | None:
    """Return the conflict where the inputs of a layer do not divide evenly into groups."""
    if in_features % group_size == 0:
        return None
    message = f"model.linear.granularity={group_size} does not divide the {in_features} inputs of a layer"
    fix = f"give model.linear.granularity={find_divisor(in_features, group_size)}, tensor or channel"
    return Conflict(("model.linear.granularity",), message, fix)


@contract
def check_backend(group_size: int, backend: str) -> Conflict | None:
    """Return the conflict where codes alone are multiplied, though groups of inputs have a scale each."""
    if backend not in ("bf16_exact", "int8"):
        return None
    message = f"model.linear.backend={backend} multiplies codes: with model.linear.granularity={group_size} there is ste only"
    return Conflict(("model.linear.backend", "model.linear.granularity"), message, "give model.linear.backend=auto")


@contract
def check_warmup(warmup: int, steps: int) -> Conflict | None:
    """Return the conflict where no step comes after the quantization warm-up: it trains another network than it evaluates."""
    if not warmup or warmup < steps:
        return None
    message = f"model.linear.warmup={warmup} does not end within trainer.steps={steps}: no step would see quantized weights"
    return Conflict(("model.linear.warmup", "trainer.steps"), message, f"give model.linear.warmup={steps // 2}, or more steps")


@contract
def check_fractions(val_fraction: float, test_fraction: float) -> Conflict | None:
    """Return the conflict of splits that leave nothing to train on."""
    if val_fraction + test_fraction < 1:
        return None
    message = f"data.val_fraction={val_fraction:g} and data.test_fraction={test_fraction:g} leave nothing to train on"
    return Conflict(("data.val_fraction", "data.test_fraction"), message, "give fractions whose sum is below 1")


@contract
def is_prime(p: int) -> bool:
    """Return whether p is prime. By trial division, as p is small."""
    return p > 1 and all(p % d for d in range(2, int(p**0.5) + 1))


@contract
def find_divisor(of: int, near: int) -> int:
    """Return the divisor of `of` nearest to `near`."""
    return min((d for d in range(1, of + 1) if of % d == 0), key=lambda d: abs(d - near))


@contract
def find_multiple(of: int, near: int) -> int:
    """Return the multiple of `of`, at least `of` itself, nearest to `near`."""
    return of * max(1, round(near / of))
