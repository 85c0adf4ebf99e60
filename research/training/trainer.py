"""The loop. Everything a step consumes is a pure function of (seed, step), so nothing about the past needs restoring.

Accelerate gives the device, the precision and the processes. It does not touch data, schedule or saving, where it would
cost exactness and, for small models, more time than the step itself.
"""

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from research import rules
from research.data.spec import Dataset, Samples
from research.losses import Loss, Objective, check_losses, make_plain
from research.metrics import Metric, find_directions
from research.nn.bitlinear import bitlinear_layers, count_warmup
from research.nn.blocks import recompute
from research.optim.filter import Filter
from research.optim.param_groups import remember_settings
from research.optim.schedules import get_lr, set_rates
from research.ranges import NonNegativeInt, OpenFraction, PositiveFloat, PositiveInt, check_fields
from research.run_dir import ROOT
from research.signals import Stopped, Watch, watch
from research.training import distributed, sharding, snapshot
from research.training.batches import Batches
from research.training.ema import Average
from research.training.evaluate import Autocast, evaluate
from research.training.nonfinite import Guard, supports_found_inf
from research.training.oom import retry_on_oom
from research.training.progress import Progress
from research.training.state import Callback, RunInfo, Schedule, State, around_callbacks, select_callbacks
from research.training.task import balance_classes, check_logits, check_parts, check_task

STOP = 1  # what the processes agree on: a callback's wish to end; higher numbers are signals, STOP above their own


@dataclass(frozen=True)
class Supervised:
    """The objective that a plain loss makes: the loss of the model's logits."""

    loss: Loss
    shape: object = None  # of the data

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss (nats) of each target. Raise ValueError for logits that are not of the data's classes."""
        return self.loss(check_logits(model(x), y, model, self.loss, self.shape), y)


@dataclass
class Trainer:
    """Trains for `steps` optimizer steps of `batch_size` samples, each in `grad_accum` micro-batches a process."""

    steps: PositiveInt = 1000
    batch_size: PositiveInt = 64
    seed: NonNegativeInt = 0
    grad_accum: PositiveInt = 1
    clip_norm: PositiveFloat | None = 1.0  # None: gradients are not clipped
    eval_every: PositiveInt = 50  # steps
    eval_train: bool = False  # also evaluate train/acc, over all training samples
    log_every: PositiveInt = 10  # steps; the loss leaves the device only then
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    device: Literal["auto", "cpu"] = "auto"
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"  # auto: ddp where several processes were started
    overfit: NonNegativeInt = 0  # train and evaluate on the first so many samples; 0: on all
    ema: OpenFraction | None = None  # decay of an average of the weights, which is evaluated in their place
    guard: Guard = field(default_factory=Guard)  # against a loss or gradient that is not finite
    checkpoint_activations: bool = False  # keep a block's input only, and compute the rest again in the backward pass

    def __post_init__(self) -> None:
        check_fields("trainer", self)
        self.accelerator = distributed.make_accelerator(self.device, self.precision)
        self.world_size = self.accelerator.num_processes
        self.check()
        self.autocast: Autocast = nullcontext if self.precision == "fp32" else self.accelerator.autocast

    def check(self) -> None:
        """Raise ValueError for a wrong setting. They may be assigned until a run is set up."""
        check_fields("trainer", self)
        if not isinstance(self.guard, Guard):
            raise ValueError(f"trainer.guard takes a Guard, as Guard(policy='skip'); got {self.guard!r}")
        check_fields("trainer.guard", self.guard)
        rules.enforce(rules.check_processes(self.parallel, self.world_size))
        rules.enforce(rules.check_batch_size(self.batch_size, self.grad_accum, self.world_size))

    def to_device(self, model: nn.Module) -> nn.Module:
        """Move the model to its device, and shard it under fsdp. Before the optimizer is built over it."""
        model.to(self.accelerator.device)
        if self.parallel == "fsdp":
            sharding.shard(model)
        return model

    def setup(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: Schedule,
        loss: Loss,
        data: Dataset[Any],
        callbacks: Sequence[Callback] = (),
        *,
        objective: Objective | None = None,
        metrics: Mapping[str, Metric] | None = None,
        monitor: str = "val/loss",
        name: str = "run",
        folder: Path | None = None,
        config: Mapping[str, Any] | None = None,
        config_digest: str = "",
        in_sweep: bool = False,
        resume: Path | None = None,
        weights_only: bool = False,
    ) -> State:
        """Return a run before its first step, or where it is resumed.

        `loss` is minimised, or else `objective`; evaluations report the loss without the settings that are for training alone.
        `resume` is a run folder or a checkpoint: to continue, or with `weights_only` to take the weights from. Raise
        ValueError for another model, optimizer or data.
        """
        self.check()
        known = {id(p) for p in model.parameters()}
        if any(id(p) not in known for group in optimizer.param_groups for p in group["params"]):
            raise ValueError("the optimizer has other parameters than the model: build it after trainer.to_device(model)")
        count_warmup(bitlinear_layers(model).values(), self.steps)
        remember_settings(optimizer)
        device, sharded = self.accelerator.device, self.parallel == "fsdp"
        check_parts(model, schedule, callbacks, data)
        check_task(data, loss, metrics or {}, monitor, tries_loss=False)
        task = f"{monitor} of {data.digest}, overfit={self.overfit}, ema={self.ema}"
        facts: Any = {"config": config or {}, "config_digest": config_digest, "in_sweep": in_sweep, "device": str(device)}
        facts |= {"batch_size": self.batch_size, "log_every": self.log_every, "eval_every": self.eval_every, "folder": folder}
        info = RunInfo(self.steps, monitor=monitor, task=task, name=name, directions=find_directions(metrics or {}), **facts)
        splits = (data.train, data.train if self.overfit else data.val)
        train, val = (split.take(self.overfit or None).to(device) for split in splits)
        net = self._wrap(self.to_device(model))
        batches = Batches(net, train, self.batch_size, self.grad_accum, self.seed, cache_weights=not sharded)
        objective, plain = objective or Supervised(balance_classes(loss, data), data.shape), make_plain(loss)
        state = State(model, net, optimizer, schedule, plain, objective, data, val, batches, info)
        state.progress, state.metrics = Progress(task=task, loss_sum=torch.zeros((), device=device)), dict(metrics or {})
        state.callbacks, state.sharded = select_callbacks(callbacks, sharded), sharded
        state.average = Average(model, self.ema) if self.ema else None
        state.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        if resume:
            (snapshot.initialize_from if weights_only else snapshot.resume)(state, resume)
        return state

    def _wrap(self, model: nn.Module) -> nn.Module:
        """Return what the loop calls: the model, compiled and wrapped as requested."""
        model.train()
        if self.checkpoint_activations:
            recompute(model)
        if self.compile:  # a cache of our own: a compile that was killed leaves a broken file in the shared one
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(ROOT / "outputs" / "compiled"))
            model.compile()
        ddp = self.world_size > 1 and self.parallel != "fsdp"
        return nn.parallel.DistributedDataParallel(model) if ddp else model

    def fit(self, state: State) -> State:
        """Train to `steps`, a stop or a signal; `state.signum` tells whether a signal ended it early.

        Raise FloatingPointError for numbers that are not finite, as `guard` says.
        """
        optimizer, progress = state.optimizer, state.progress
        on_device = self.accelerator.device.type != "cpu" and supports_found_inf(optimizer) and not state.scaler.is_enabled()
        self.guard.reset(on_device)
        with watch() as signals, around_callbacks(state):
            state.stop = distributed.broadcast(state.stop)  # a run that is resumed may have reached its aim before
            while progress.eval_pending or (progress.step < self.steps and not state.stop):
                if not progress.eval_pending:  # or else it was resumed between a step and its evaluation
                    set_rates(optimizer, state.schedule(progress.step, self.steps))
                    self._notify_filter(state)
                    with signals.raise_immediately(self._will_compile(progress.step == state.first_step)):
                        loss = self.forward_backward(state, progress.step)
                    state.scaler.unscale_(optimizer)
                    progress.grad_norm = self.clip(state)
                    for callback in state.callbacks:
                        callback.on_gradients(state)
                    if self.guard.accepts(state, loss):
                        state.scaler.step(optimizer)  # optimizer.step(), unless gradients in fp16 overflowed
                    state.scaler.update()
                    optimizer.zero_grad()
                    if state.average:
                        state.average.update(progress.step)
                    state.advance()
                self._agree_on_stop(state, signals)
                if self._should_check_guard(state) and self.guard.rolls_back(state, partial(self.forward_backward, state)):
                    continue
                self._log_and_evaluate(state, signals)
                for callback in state.callbacks:
                    callback.on_step(state)
                self._agree_on_stop(state, signals, evaluated=True)
            self._evaluate_test(state, signals)
        return state

    def forward_backward(self, state: State, step: int) -> Float[Tensor, ""]:
        """Leave a step's gradient in the parameters; return its loss (nats), the mean over all targets that count.

        However many micro-batches and processes share the step, its samples and its gradient are the same. Where memory
        runs out, it is done again with smaller micro-batches.
        """

        def run_micro_batches() -> Tensor:
            # Samples, their order and dropout: functions of (seed, step).
            micro_batches, num_targets = state.batches.draw(state.progress, step)
            shares = []
            for x, y in micro_batches:
                with self.autocast():
                    losses = state.objective(state.net, x, y)  # Supervised, above: loss(model(x), y), one number a target
                check_losses(losses, y)
                share = losses.sum() / num_targets
                state.scaler.scale(share * self.world_size if self.world_size > 1 else share).backward()  # DDP averages
                shares.append(share.detach())
            return distributed.all_reduce_sum(shares[0] if len(shares) == 1 else torch.stack(shares).sum())

        return retry_on_oom(run_micro_batches, state)

    def clip(self, state: State) -> Float[Tensor, ""]:
        """Return the norm of the gradient, which then is no longer than `clip_norm`."""
        return sharding.full_tensor(nn.utils.clip_grad_norm_(state.batches.params, self.clip_norm or math.inf))

    def _notify_filter(self, state: State) -> None:
        """Tell a Grokfast filter how far the run is. All processes use the metrics of the first one."""
        optimizer = state.optimizer
        if isinstance(optimizer, Filter):
            optimizer.directions = state.info.directions
            has_news = bool(state.logged) or state.progress.step == state.first_step
            if has_news and optimizer.needs_metrics():
                state.shared_metrics = distributed.broadcast(state.progress.metrics)
            optimizer.on_step_begin(state.progress.step, state.shared_metrics)

    def _should_check_guard(self, state: State) -> bool:
        """On a device the guard's verdict is looked at only where the host waits for the device anyway."""
        due = self._is_due(state, self.log_every) or self._is_due(state, self.eval_every)
        return due or bool(state.stop) or not self.guard.on_device

    def _agree_on_stop(self, state: State, signals: Watch, evaluated: bool = False) -> None:
        """Let all processes end for the same reason, in the same step. Raise Stopped after a signal to any of them.

        But not once the run is at its end anyway, its last step `evaluated`: then it has FINISHED.
        """
        signum = signals.signum  # once: another one that comes meanwhile is agreed on next time
        if self.world_size > 1:
            agreed = distributed.all_reduce_max(signum + STOP if signum else STOP if state.stop else 0)
            signum = max(0, agreed - STOP)
            state.stop = state.stop or ("stopped by another process" if agreed == STOP else "")
        if signum and not (evaluated and (state.stop or state.progress.step == self.steps)):
            raise Stopped(signum)

    def _log_and_evaluate(self, state: State, signals: Watch) -> None:
        """Log and evaluate where it is due. If a signal comes meanwhile, the run that is resumed does all of it."""
        metrics: dict[str, float] = {}
        if state.stop or self._is_due(state, self.eval_every):
            averaged = state.average.use_averages() if state.average else nullcontext()
            with averaged, signals.raise_immediately(self._will_compile(not state.has_evaluated)):
                metrics = retry_on_oom(partial(self._evaluate_splits, state, signals), state)
            state.has_evaluated = True
        state.progress.eval_pending = False
        if state.stop or self._is_due(state, self.log_every):
            state.log(state.collect_training_metrics())
        if metrics:
            state.log(metrics)
        if not math.isfinite(metrics.get("val/loss", 0.0)) and self.guard.policy == "stop":
            step, lr = state.progress.step, get_lr(state.optimizer)
            raise FloatingPointError(f"val/loss is {metrics['val/loss']} at step {step}, with lr={lr:.3g}")

    def _evaluate_splits(self, state: State, signals: Watch) -> dict[str, float]:
        """Return the metrics of the held-back split, and with `eval_train` train/acc."""
        metrics = self._evaluate(state, signals, state.val, state.metrics)
        train = self._evaluate(state, signals, state.batches.train, {}) if self.eval_train else {}
        return metrics | ({"train/acc": train["val/acc"]} if "val/acc" in train else {})

    def _evaluate_test(self, state: State, signals: Watch) -> None:
        """Take in the metrics of the split that nothing is chosen by, of the last weights: test/loss and so on."""
        if test := state.data.test:
            run = partial(self._evaluate, state, signals, test.to(self.accelerator.device), state.metrics)
            with state.average.use_averages() if state.average else nullcontext():
                state.progress.metrics |= {name.replace("val/", "test/", 1): v for name, v in retry_on_oom(run, state).items()}

    def _evaluate(self, state: State, signals: Watch, split: Samples, metrics: Mapping[str, Metric]) -> dict[str, float]:
        size = -(-self.batch_size // (self.grad_accum * 2**state.progress.oom_halvings))
        poll = partial(self._agree_on_stop, state, signals)
        return evaluate(state.net, split, state.loss, size, self.autocast, poll, metrics)

    def _will_compile(self, is_first: bool) -> bool:
        """The first step, as the first evaluation, is compiled: minutes in which a signal must not wait.

        Not with several processes: one that leaves a collective call would leave the others hanging in it.
        """
        return self.compile and self.world_size == 1 and is_first

    def _is_due(self, state: State, every: int) -> bool:
        return state.progress.step % every == 0 or state.progress.step == self.steps
