"""The loop. Everything a step consumes is a pure function of (seed, step), so nothing about the past needs restoring.

Accelerate gives the device, the precision and the processes; it does not touch data, schedule or saving, where it would
cost exactness and, for small models, more time than the step itself.
"""

import logging
import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.optim import Optimizer

from research import rules
from research.data.spec import Dataset, Split
from research.nn.bitlinear import bitlinear_layers
from research.nn.blocks import recompute
from research.optim.param_groups import remember_settings
from research.optim.schedules import set_rates
from research.ranges import NonNegativeInt, OpenFraction, PositiveFloat, PositiveInt
from research.run_dir import ROOT
from research.signals import Stopped, Watch, watch
from research.training import distributed, oom, sharding, snapshot
from research.training.ema import Average
from research.training.evaluate import evaluate
from research.training.gradients import Gradients, Loss, notify_filter
from research.training.nonfinite import Guard, Policy, get_lr, supports_found_inf
from research.training.state import Callback, State

Schedule = Callable[[int, int], float | tuple[float, float]]  # factors on lr, and on weight decay
log = logging.getLogger(__name__)
STOP = 1  # what the processes agree on: a callback's wish to end; higher numbers are signals


@dataclass
class Trainer:
    """Trains for `steps` optimizer steps of `batch_size` samples, each in `grad_accum` micro-batches a process."""

    steps: PositiveInt = 1000
    batch_size: PositiveInt = 64
    seed: NonNegativeInt = 0
    grad_accum: PositiveInt = 1
    clip_norm: PositiveFloat | None = 1.0  # None: gradients are not clipped
    eval_every: PositiveInt = 50  # steps
    eval_train: bool = False  # evaluations tell train/acc too, over all training samples
    log_every: PositiveInt = 10  # steps; the loss leaves the device only then
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    device: Literal["auto", "cpu"] = "auto"
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"  # auto: ddp where several processes were started
    overfit: NonNegativeInt = 0  # train and judge on the first so many samples; 0: on all
    ema: OpenFraction | None = None  # decay of an average of the weights, which is judged in their place
    on_nonfinite: Policy = "stop"  # a loss or gradient that is not finite; skip leaves the update out
    max_skips: PositiveInt = 5  # in a row
    max_rollbacks: PositiveInt = 2  # to the newest checkpoint, each time with another order of samples
    checkpoint_activations: bool = False  # keep a block's input only, and compute the rest again in the backward pass

    def __post_init__(self) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)  # it is global: a sweep makes one after the other
        cpu = self.device == "cpu" or not torch.accelerator.is_available()  # else several processes on a CPU stay apart
        self.accelerator = Accelerator(cpu=cpu, mixed_precision="no" if self.precision == "fp32" else self.precision)
        self.world_size, (_, started) = self.accelerator.num_processes, distributed.get_launched_ranks()
        if self.world_size != started:
            raise ValueError(
                f"{started} processes were started, accelerate made {self.world_size} of them\n{rules.LAUNCH_HINT}"
            )
        self.autocast: Callable[[], AbstractContextManager[Any]] = (
            nullcontext if self.precision == "fp32" else self.accelerator.autocast
        )
        rules.enforce(
            rules.check_processes(self.parallel, self.world_size),
            rules.check_batch_size(self.batch_size, self.grad_accum, self.world_size),
        )

    def to_device(self, model: nn.Module) -> nn.Module:
        """The model on its device, spread over the processes under fsdp. Before the optimizer is built over it."""
        model.to(self.accelerator.device)
        if self.parallel == "fsdp":
            sharding.shard(model)
        return model

    def fit(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: Schedule,
        loss: Loss,
        data: Dataset[Any],
        callbacks: Sequence[Callback] = (),
        *,
        monitor: str = "val/loss",
        name: str = "run",
        folder: Path | None = None,
        config: str = "",
        resume: Path | None = None,
        weights_only: bool = False,
    ) -> State:
        """Train and return what was reached; `state.signum` tells whether a signal ended it early.

        `resume` is a run folder or a checkpoint: to go on from, or with `weights_only` to begin from. Raises ValueError
        where it holds none of this model, optimizer and data, and FloatingPointError for numbers that are not finite.
        """
        callbacks = self._select_callbacks(callbacks)
        state = self._create_state(model, optimizer, data, callbacks, monitor=monitor, name=name, folder=folder, config=config)
        gradients, val = self._prepare(state, loss)
        guard = self._create_guard(optimizer)
        if resume:
            (snapshot.begin_from if weights_only else snapshot.resume)(state, resume)
        with watch() as signals:
            try:
                start_callbacks(callbacks, state)
                state.stop = distributed.broadcast(state.stop)  # a run that goes on may have reached its aim before
                while state.eval_pending or (state.step < self.steps and not state.stop):
                    if not state.eval_pending:
                        set_rates(optimizer, schedule(state.step, self.steps))
                        notify_filter(optimizer, state)
                        with signals.raise_immediately(self._will_compile(state.step == state.first_step)):
                            value = gradients(state, state.step)
                        self.scaler.unscale_(optimizer)
                        state.grad_norm = gradients.clip(self.clip_norm)
                        for callback in callbacks:
                            callback.on_gradients(state)
                        if guard.is_finite(state, value):
                            self.scaler.step(optimizer)  # optimizer.step(), unless gradients in fp16 overflowed
                        self._finish_step(state)
                    self._sync_stop(state, signals)
                    if self._should_check(state, guard) and guard.handle_nonfinite(state, partial(gradients, state)):
                        continue
                    self._log_and_evaluate(state, gradients, val, signals)
                    for callback in callbacks:
                        callback.on_step(state)
                    self._sync_stop(state, signals, evaluated=True)
            except Stopped as stopped:
                state.signum = stopped.signum
            except BaseException as error:
                state.error = f"{type(error).__name__}: {error}"
                raise
            finally:
                end_callbacks(callbacks, state)
        return state

    def _select_callbacks(self, callbacks: Sequence[Callback]) -> list[Callback]:
        """The callbacks of this process, those that save last: what they save includes the others' state."""
        if distributed.rank() > 0:
            callbacks = [callback for callback in callbacks if callback.saves and self.parallel == "fsdp"]
        return sorted(callbacks, key=lambda callback: callback.saves)

    def _create_state(
        self, model: nn.Module, optimizer: Optimizer, data: Dataset[Any], callbacks: list[Callback], **facts: Any
    ) -> State:
        """The run before its first step."""
        known = {id(p) for p in model.parameters()}
        if any(id(p) not in known for group in optimizer.param_groups for p in group["params"]):
            raise ValueError("the optimizer has other parameters than the model: build it after trainer.place(model)")
        rules.enforce(*(rules.check_warmup(layer.warmup, self.steps) for layer in bitlinear_layers(model).values()))
        self.scaler = torch.amp.GradScaler(self.accelerator.device.type, enabled=self.precision == "fp16")
        names = [type(callback).__name__ for callback in callbacks]
        parts: dict[str, Any] = {f"{n} {names[:i].count(n)}": callbacks[i] for i, n in enumerate(names)}
        remember_settings(optimizer)
        return State(
            model=self.to_device(model),
            optimizer=optimizer,
            data=data,
            steps=self.steps,
            batch_size=self.batch_size,
            task=f"{facts['monitor']} of {data.digest}, overfit={self.overfit}, ema={self.ema}",
            device=str(self.accelerator.device),
            processes=self.describe_processes(),
            average=Average(model, self.ema) if self.ema else None,
            stateful=parts | {"scaler": self.scaler},
            sharded=self.parallel == "fsdp",
            log_every=self.log_every,
            eval_every=self.eval_every,
            loss_sum=torch.zeros((), device=self.accelerator.device),
            **facts,
        )

    def describe_processes(self) -> str:
        """What this run really is: launchers have more than one way to start something else than was meant."""
        if self.world_size == 1:
            return "1 process"
        how = "fsdp" if self.parallel == "fsdp" else "ddp"
        return f"{self.world_size} processes, {how} over {torch.distributed.get_backend()}"

    def _prepare(self, state: State, loss: Loss) -> tuple[Gradients, Split]:
        """What the loop calls, over the model compiled and wrapped as was asked; and what is held back."""
        model = net = state.model.train()
        self.evaluated = False
        if self.checkpoint_activations:
            recompute(model)
        if self.compile:  # a cache of our own: a compile that was killed leaves a broken file in the shared one
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(ROOT / "outputs" / "compiled"))
            model.compile()
        if self.world_size > 1 and not state.sharded:
            net = nn.parallel.DistributedDataParallel(model)
        some = slice(self.overfit or None)
        splits = (state.data.train, state.data.train if self.overfit else state.data.val)
        train, val = (Split(split.inputs[some], split.targets[some]).to(self.accelerator.device) for split in splits)
        return Gradients(net, loss, train, self.batch_size, self.grad_accum, self.seed, self.scaler, self.autocast), val

    def _finish_step(self, state: State) -> None:
        """What follows an update."""
        self.scaler.update()
        state.optimizer.zero_grad()
        if state.average:
            state.average.update()
        state.advance()

    def _create_guard(self, optimizer: Optimizer) -> Guard:
        waits = self.accelerator.device.type != "cpu" and supports_found_inf(optimizer) and not self.scaler.is_enabled()
        return Guard(self.on_nonfinite, self.max_skips, self.max_rollbacks, waits, self.scaler.get_scale)

    def _should_check(self, state: State, guard: Guard) -> bool:
        """On a device the guard's verdict is looked at only where the host waits for the device anyway."""
        due = self._is_due(state.step, self.log_every) or self._is_due(state.step, self.eval_every)
        return due or bool(state.stop) or not guard.on_device

    def _sync_stop(self, state: State, signals: Watch, evaluated: bool = False) -> None:
        """All processes end for the same reason, in the same step. Raises Stopped after a signal to any of them.

        But not once the run is at its end anyway, its last step `judged`: then it has FINISHED.
        """
        signum = signals.signum  # once: another one that comes meanwhile is agreed on next time
        if self.world_size > 1:
            agreed = distributed.all_reduce_max(signum or (STOP if state.stop else 0))
            signum = agreed if agreed > STOP else 0
            state.stop = state.stop or ("another process said so" if agreed == STOP else "")
        if signum and not (evaluated and (state.stop or state.step == self.steps)):
            raise Stopped(signum)

    def _log_and_evaluate(self, state: State, gradients: Gradients, val: Split, signals: Watch) -> None:
        """Log and evaluate where it is time; if a signal comes meanwhile, the run that goes on does all of it."""
        found: dict[str, float] = {}
        if state.stop or self._is_due(state.step, self.eval_every):
            averaged = state.average.use_averages() if state.average else nullcontext()

            def evaluate_splits() -> dict[str, float]:
                size = -(-self.batch_size // (self.grad_accum * 2**state.oom_halvings))
                poll = partial(self._sync_stop, state, signals)
                found = evaluate(gradients.net, val, gradients.loss, size, self.autocast, poll)
                if self.eval_train:
                    seen = evaluate(gradients.net, gradients.train, gradients.loss, size, self.autocast, poll)
                    found["train/acc"] = seen["val/acc"]
                return found

            with averaged, signals.raise_immediately(self._will_compile(not self.evaluated)):
                found = oom.retry_on_oom(evaluate_splits, state, self.grad_accum)
            self.evaluated = True
        state.eval_pending = False
        if state.stop or self._is_due(state.step, self.log_every):
            state.log(collect_training_metrics(state))
        if found:
            state.log(found)
        if not math.isfinite(found.get("val/loss", 0.0)) and self.on_nonfinite == "stop":
            raise FloatingPointError(
                f"val/loss is {found['val/loss']} at step {state.step}, with lr={get_lr(state.optimizer):.3g}"
            )

    def _will_compile(self, is_first: bool) -> bool:
        """The first step, as the first evaluation, is compiled: minutes in which a signal must not wait.

        Not with several processes: one that leaves a collective call would leave the others hanging in it.
        """
        return self.compile and self.world_size == 1 and is_first

    def _is_due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.steps


def start_callbacks(callbacks: Sequence[Callback], state: State) -> None:
    """Before the first step of this process."""
    for callback in callbacks:
        callback.on_start(state)
    state.begin()


def end_callbacks(callbacks: Sequence[Callback], state: State) -> None:
    """Each callback has its end, in their order, even where that of another fails. What was told last counts after that."""
    try:
        with ExitStack() as endings:
            for callback in reversed(callbacks):
                endings.callback(callback.on_end, state)
    finally:
        state.metrics |= state.extra_metrics


def collect_training_metrics(state: State) -> dict[str, float]:
    """Means since the last log point. Here, and only here, the host waits for the device."""
    total, counted = float(state.loss_sum), int(state.loss_count)
    state.loss_sum, state.loss_count = state.loss_sum * 0, 0
    losses = {"train/loss": total / counted} if counted else {}  # every update may have been left out
    return losses | {
        "lr": get_lr(state.optimizer),
        "grad/norm": float(state.grad_norm),
        f"perf/{state.data.unit}s_per_s": state.compute_throughput(),
    }
