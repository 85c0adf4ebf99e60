"""A run's state as a checkpoint holds it, and back: all that the next step depends on, and what tells the run's story."""

import logging
import math
import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from research.cli import first_line
from research.contracts import contract
from research.kernels import ternary
from research.kernels.build import read_processor
from research.nn.products import FAST_BF16, FAST_INT8
from research.optim import fused
from research.optim.param_groups import INITIAL_SETTINGS
from research.options.finetuning import format_choice
from research.run_dir import ISA_ENV_VAR, to_run_folder
from research.training import checkpoint, distributed, sharding
from research.training.checkpoint import Snapshot, describe_structure, get_weights, list_frozen
from research.training.ema import Average
from research.training.manifest import SHARDS_FOLDER, Manifest
from research.training.state import State, Stateful

NOT_LOADED = "not loaded"
NUMERICS = {  # what the bits rest on, in words
    "threads": "the number of threads",
    "cpu_capability": "torch's instruction set",
    "fast_bf16": "hardware for bfloat16",
    "fast_int8": "hardware for int8",
    "ternary_kernel": "the C kernel of packed layers",
    "adamw_kernel": "the C kernel of AdamW",
    "processor": "the processor",
    "variables": "what the environment says to MKL and oneDNN",
    "processes": "the number of processes",
    "grad_accum": "the number of micro-batches",
}
log = logging.getLogger(__name__)
PROGRESS_V1 = {  # keys of version 1 and the fields of Progress that they became
    "pending": "eval_pending",
    "told": "extra_metrics",
    "safe": "last_finite_checkpoint",
    "halvings": "oom_halvings",
    "total": "loss_sum",
    "counted": "loss_count",
}


@contract
def capture(state: State) -> Snapshot:
    """Return the run as it is now. Its tensors are the run's own: write or copy them before the next step."""
    progress, info, optimizer = state.progress, state.info, state.optimizer
    manifest = Manifest(progress.step, get_identity(state), progress.samples, dict(info.config), describe_numerics(state))
    stateful = {name: _get_checked_state(part, name) for name, part in state.stateful.items()}
    rest: dict[str, Any] = {"progress": progress.state_dict(), "stateful": stateful}
    if state.sharded:
        return Snapshot(manifest, {}, rest, sharding.get_sharded_state(state.model, optimizer, state.average))
    rest["optimizer"] = _get_checked_state(optimizer, type(optimizer).__name__)
    tensors = {"model": get_weights(state.model, learnt_only=bool(info.base))}
    if state.average:
        tensors["average"] = {name: tensor.cpu() for name, tensor in state.average.averages.items()}
    return Snapshot(manifest, tensors, rest)


def _get_checked_state(part: Stateful, name: str) -> dict[str, Any]:
    """Return a part's state. Raise TypeError for what could be written but not read again: better now than at the resume."""
    contents = part.state_dict()
    values: list[Any] = [contents]
    while values:
        value = values.pop()
        if type(value) in (dict, OrderedDict):
            values += [*value.keys(), *value.values()]
        elif type(value) in (list, tuple, set):
            values += value
        elif type(value) not in (bool, int, float, str, bytes, type(None), Tensor, nn.Parameter):
            what = f"{name}.state_dict() holds a {type(value).__name__}"
            raise TypeError(f"{what}: give numbers, texts, lists, dicts and tensors")
    return contents


@contract
def load_newest(path: Path, until: float = math.inf) -> tuple[Path, Snapshot]:
    """Return the newest good checkpoint that `path` means: the same one in all processes, as the first of them sees it."""
    folder, snapshot = checkpoint.load_newest(path, until) if distributed.rank() == 0 else (path, None)
    folder = distributed.broadcast(folder)
    return folder, snapshot or checkpoint.read(folder)


def get_identity(state: State) -> dict[str, str]:
    """Return what must be the same where a run is resumed; the config only says what it came from."""
    return {
        "model": describe_structure(state.model),
        "optimizer": type(state.optimizer).__name__,
        "data": state.data.digest[:12],
        "config": state.info.config_digest,
    } | ({"base": state.info.base} if state.info.base and list_frozen(state.model) else {})


def describe_numerics(state: State, needs: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Return what the bits of a step rest on besides its inputs.

    A C kernel that has not been loaded is not built for this, but where `needs`, an earlier description, names it.
    """
    kernels: dict[str, str] = {}
    for name, get_kernel in (("ternary_kernel", ternary.get_library), ("adamw_kernel", fused.get_library)):
        is_used = get_kernel.cache_info().currsize or needs.get(name, NOT_LOADED) != NOT_LOADED
        kernels[name] = NOT_LOADED if not is_used else "built" if get_kernel() else "not built"
    if kernels["ternary_kernel"] == "built":
        kernels["ternary_kernel"] = os.environ.get(ISA_ENV_VAR) or next(iter(cast(Any, ternary.get_library()).isas))
    variables = (
        f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(("MKL_", "DNNL_", "ONEDNN_"))
    )
    return {
        "device": state.info.device,
        "processes": distributed.world_size(),
        "grad_accum": state.batches.grad_accum,
        "processor": read_processor(),
        "variables": " ".join(variables) or "nothing",
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "fast_bf16": bool(FAST_BF16),
        "fast_int8": bool(FAST_INT8),
        "torch": torch.__version__,
        "numpy": np.__version__,
    } | kernels


def warn_of_other_numerics(there: Mapping[str, Any], state: State) -> None:
    """Say in one line what the bits of the steps rest on that is not as it was. Version 1 did not record it."""
    here = describe_numerics(state, there)
    changed = {name: value for name, value in there.items() if value not in (NOT_LOADED, here.get(name))}
    if changed:
        parts = [f"{NUMERICS.get(name, name)} is {here.get(name)}, was {value}" for name, value in changed.items()]
        fix = f"; set OMP_NUM_THREADS={changed['threads']} for as many threads" if "threads" in changed else ""
        log.warning("resume: the run continues, but not bit for bit: %s%s", "; ".join(parts), fix)


def resume(state: State, path: Path, until: float = math.inf) -> None:
    """Go on from the newest good checkpoint that `path` means, of no later step than `until`.

    Settings of the optimizer that were changed since are those given now: lr=1e-4 beside resume= means that lr. The
    averages are the weights where the checkpoint has none. Raise ValueError where no checkpoint is intact, where
    the model, the optimizer or the data is another one, or where more steps are done than are requested.
    """
    folder, snapshot = load_newest(path, until)
    _check_identity(snapshot, state, path, ("model", "base", "optimizer", "data"))
    warn_of_other_numerics(snapshot.manifest.numerics, state)
    if snapshot.step > state.info.steps:
        done = f"step {snapshot.step} of {state.info.steps} is done"
        raise ValueError(f"resume: {done}; give trainer.steps more than {snapshot.step}")
    with explain_misfit(folder):
        _load_run(snapshot, folder, state)


@contextmanager
def explain_misfit(folder: Path) -> Iterator[None]:
    """Raise ValueError where a checkpoint holds other things than it names: its files are whole, but of another run."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        message = f"resume={folder}: its files do not belong together: {type(error).__name__}: {first_line(error)}"
        raise ValueError(f"{message}\ngive another checkpoint") from error


def _load_run(snapshot: Snapshot, folder: Path, state: State) -> None:
    """Load all of a checkpoint into the run."""
    _load_tensors(snapshot, folder, state)
    stateful = snapshot.state["parts" if snapshot.manifest.version == 1 else "stateful"]
    for name, part in state.stateful.items():
        if saved := stateful.get(name):
            part.load_state_dict(saved)
    progress = {PROGRESS_V1.get(key, key): value for key, value in snapshot.state["progress"].items()}
    if snapshot.manifest.samples is None:  # version 1 did not count them
        progress["samples"] = snapshot.step * (_read_batch_size_v1(folder) or state.info.batch_size)
    state.progress.load_state_dict(progress)
    if state.progress.task != state.info.task:
        state.progress.best, state.progress.task = {}, state.info.task  # of another monitor or of other samples
        state.progress.eval_pending |= state.progress.step == state.info.steps  # or else there would be no result
    state.first_step, state.seconds_before = state.progress.step, state.progress.seconds


def _read_batch_size_v1(checkpoint_folder: Path) -> int:
    """Return the batch size of a run of version 1, which stands in its config.yaml alone; 0 where that is not to be read."""
    file = to_run_folder(checkpoint_folder) / "config.yaml"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    # The reader of configurations, and the rooms that know yaml, stand above this one.
    match = re.search(r"^trainer:\n(?:  .*\n)*?  batch_size: (\d+)$", text, re.MULTILINE)
    return int(match[1]) if match else 0


@contract
def initialize_from(state: State, path: Path) -> None:
    """Give a fresh run the weights alone of the newest good checkpoint that `path` means: the averages where it has them.

    Raise ValueError where no checkpoint is intact or the model is another one.
    """
    folder, snapshot = load_newest(path)
    _check_identity(snapshot, state, path, ("model", "base"))
    with explain_misfit(folder):
        load_weights(state.model, folder, snapshot)
    if state.average:
        state.average.load()


@contract
def load_weights(model: nn.Module, folder: Path, snapshot: Snapshot) -> None:
    """Load a checkpoint's weights into the model that it is of: the averages where it has them."""
    if snapshot.manifest.is_sharded:
        average = Average(model, decay=0.0)
        sharding.load_shards(model, folder / SHARDS_FOLDER, snapshot.manifest.files, average=average)
        average.copy_to_model(average.averages)
    else:
        load_tensors(model, snapshot, snapshot.tensors["model"] | snapshot.tensors.get("average", {}))


def load_tensors(model: nn.Module, snapshot: Snapshot, tensors: Mapping[str, Tensor]) -> None:
    """Load the tensors of a checkpoint; the model has those already that it leaves out, as they are its base's."""
    frozen = list_frozen(model) - tensors.keys() if "base" in snapshot.manifest.identity else ()
    sharding.load_full(model, {**tensors, **{name: tensor for name, tensor in model.state_dict().items() if name in frozen}})


def _check_identity(snapshot: Snapshot, state: State, path: Path, keys: tuple[str, ...]) -> None:
    """Raise ValueError where the checkpoint is of another model, optimizer or data set, or its base has changed."""
    here, saved = get_identity(state), snapshot.manifest.identity
    keys = tuple(key for key in keys if key != "base" or key in saved)  # other checkpoints hold all weights
    differing = [
        f"{key} is {here.get(key)} here, was {saved.get(key)} there" for key in keys if here.get(key) != saved.get(key)
    ]
    if differing:
        fix = "give what it was trained with, or resume.weights_only=true for a fresh run from its weights"
        if "base" in saved and here["model"] != saved["model"]:
            own = format_choice(snapshot.manifest.config)
            fix = f"it holds adapters alone: give {own}, with the finetune.* settings that it was trained with"
        elif "base" in saved and here.get("base") != saved["base"]:
            base = (state.info.config.get("finetune") or {}).get("base")
            fix = f"{base or 'model.folder'} has other weights than the run was fine-tuned from: give those by finetune.base"
        raise ValueError(f"resume={path} is of another run: {'; '.join(differing)}\n{fix}")


def _load_tensors(snapshot: Snapshot, folder: Path, state: State) -> None:
    """Load weights, averages and the optimizer's memory; keep settings that were changed on the command line."""
    initial = [group[INITIAL_SETTINGS] for group in state.optimizer.param_groups]
    if snapshot.manifest.is_sharded:
        shards, listed = folder / SHARDS_FOLDER, snapshot.manifest.files
        sharding.load_shards(state.model, shards, listed, state.optimizer, state.average)
    elif state.sharded:
        raise ValueError(f"resume={folder} was not saved by trainer=fsdp\ngo on without it, or give resume.weights_only=true")
    else:
        if state.average and "average" in snapshot.tensors:
            saved = {name: tensor.shape for name, tensor in snapshot.tensors["average"].items()}
            sharding.check_tensors(state.average.averages, saved, "average of")
        load_tensors(state.model, snapshot, snapshot.tensors["model"])
        if state.average:
            state.average.load(snapshot.tensors.get("average", snapshot.tensors["model"]))
        try:
            state.optimizer.load_state_dict(snapshot.state["optimizer"])
        except ValueError as error:
            fix = "give the optim.* and finetune.* settings that it was trained with, or resume.weights_only=true"
            raise ValueError(f"resume={folder}: the optimizer groups other parameters here: {error}\n{fix}") from error
    if distributed.rank() == 0:
        _warn_of_jump(snapshot, state)
    for group, now in zip(state.optimizer.param_groups, initial, strict=True):
        then = group.get(INITIAL_SETTINGS, {})
        group.update({key: value for key, value in now.items() if key not in then or then[key] != value})
        group[INITIAL_SETTINGS] = now


def _warn_of_jump(snapshot: Snapshot, state: State) -> None:
    """Log it where the schedule as it is now would have given the last step another factor on lr than it had."""
    group, steps = state.optimizer.param_groups[0], state.info.steps
    if not (initial := group.get(INITIAL_SETTINGS, {}).get("lr")) or not snapshot.step:
        return
    factors = [state.schedule(step, steps) for step in (snapshot.step - 1, min(snapshot.step, steps - 1))]
    last, following = (factor[0] if isinstance(factor, tuple) else factor for factor in factors)
    before = group["lr"] / initial
    if math.isclose(before, last, rel_tol=1e-6, abs_tol=1e-9) or math.isclose(before, following, rel_tol=5e-3):
        return
    trainer, schedule = (snapshot.manifest.config.get(key) or {} for key in ("trainer", "schedule"))
    old = schedule.get("end") or trainer.get("steps", snapshot.step)
    has_end = "end" in signature(state.schedule).parameters
    keep = f"; to keep the end that it had, give +schedule.end={old} with resume=RUN, its folder, not with auto"
    final = state.schedule(old - 1, old)
    learns = (final[0] if isinstance(final, tuple) else final) > 0  # or else no step beyond that end would
    fix = keep if has_end and old != steps and learns else ""
    message = "resume: the schedule's factor on lr jumps from %.3g to %.3g at step %d of %d%s"
    log.warning(message, before, following, snapshot.step, steps, fix)
