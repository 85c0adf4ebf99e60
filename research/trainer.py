"""The loop. Everything a step consumes is a pure function of (seed, step), so nothing about the past needs restoring.

Accelerate gives the device and the precision; it does not touch data, schedule or saving, where it would cost
exactness and, for small models, more time than the step itself.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer

from research import checkpoint
from research.callback import Callback, State
from research.dataset import Dataset, Split
from research.folder import ROOT
from research.metrics import accuracy, bits
from research.order import positions
from research.ranges import Count, Natural, Positive
from research.seeding import seed_step

Loss = Callable[[Tensor, Tensor], Float[Tensor, ""]]
Schedule = Callable[[int, int], float]


@dataclass
class Trainer:
    """Trains for `steps` optimizer steps of `batch_size` samples, each in `grad_accum` micro-batches."""

    steps: Count = 1000
    batch_size: Count = 64
    seed: Natural = 0
    grad_accum: Count = 1
    clip_norm: Positive | None = 1.0  # None: gradients are not clipped
    eval_every: Count = 50  # steps
    log_every: Count = 10  # steps; the loss leaves the device only then
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    device: Literal["auto", "cpu"] = "auto"
    overfit: Natural = 0  # train and judge on the first so many samples; 0: on all

    def __post_init__(self) -> None:
        if self.batch_size % self.grad_accum:
            raise ValueError(f"trainer.grad_accum={self.grad_accum} does not divide trainer.batch_size={self.batch_size}")
        AcceleratorState._reset_state(reset_partial_state=True)  # it is global: a sweep makes one after the other
        self.accelerator = Accelerator(
            cpu=self.device == "cpu", mixed_precision="no" if self.precision == "fp32" else self.precision
        )
        self.autocast: Callable[[], AbstractContextManager[Any]] = (
            nullcontext if self.precision == "fp32" else self.accelerator.autocast
        )
        if self.accelerator.num_processes > 1:
            raise ValueError(
                f"started as {self.accelerator.num_processes} processes; training runs in one: start it with python train.py"
            )

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
        resume: Path | None = None,
    ) -> State:
        """Train and return what was reached. Raises FloatingPointError once a loss is not finite, and ValueError where
        `resume` names no checkpoint of this model and optimizer, or one that has no steps left to do."""
        train, val, params = self._place(model, data)
        state = State(
            model=model,
            optimizer=optimizer,
            data=data,
            steps=self.steps,
            batch_size=self.batch_size,
            monitor=monitor,
            task=f"{monitor} of {data.digest}, overfit={self.overfit}",
            device=str(self.accelerator.device),
            name=name,
            folder=folder,
        )
        checkpoint.remember_settings(optimizer)
        if resume:
            state.resume(*checkpoint.restore(resume, model, optimizer, state.task))
        total = torch.zeros((), device=self.accelerator.device)
        try:
            for callback in callbacks:
                callback.on_start(state)
            state.begin()
            while state.step < self.steps and not state.stop:
                set_lr(optimizer, schedule(state.step, self.steps))
                seed_step(self.seed, state.step)
                self._accumulate(model, loss, train, state.step, total)
                if self.clip_norm or self._due(state.step + 1, self.log_every):
                    state.grad_norm = nn.utils.clip_grad_norm_(params, self.clip_norm or math.inf)
                for callback in callbacks:
                    callback.on_gradients(state)
                optimizer.step()
                optimizer.zero_grad()
                state.advance()
                if state.stop or self._due(state.step, self.log_every):
                    state.log(training_metrics(state, total))
                if state.stop or self._due(state.step, self.eval_every):
                    state.log(evaluate(model, val, loss, self.batch_size, self.autocast))
                for callback in callbacks:
                    callback.on_step(state)
        except BaseException as error:
            state.error = f"{type(error).__name__}: {error}"
            raise
        finally:
            end(callbacks, state)
        return state

    def _place(self, model: nn.Module, data: Dataset[Any]) -> tuple[Split, Split, list[nn.Parameter]]:
        """Model and data on the device, ready to train; the parameters listed once."""
        device = self.accelerator.device
        model.to(device).train()
        if self.compile:  # a cache of our own: a compile that was killed leaves a broken file in the shared one
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(ROOT / "outputs" / "compiled"))
            model.compile()
        some = slice(self.overfit or None)
        train, val = (Split(s.inputs[some], s.targets[some]) for s in (data.train, data.train if self.overfit else data.val))
        return train.to(device), val.to(device), [p for p in model.parameters() if p.requires_grad]

    def _accumulate(self, model: nn.Module, loss: Loss, train: Split, step: int, total: Float[Tensor, ""]) -> None:
        """The gradient of one step, a micro-batch at a time; its loss is added to `total` on the device."""
        for index in self._batches(step, len(train)):
            x, y = train[index]
            with self.autocast():
                value = loss(model(x), y) / self.grad_accum
            value.backward()
            total += value.detach()

    def _batches(self, step: int, n: int) -> Iterator[Int[Tensor, "micro"]]:
        """The sample numbers of one step, a micro-batch at a time."""
        micro = self.batch_size // self.grad_accum
        for start in range(step * self.batch_size, (step + 1) * self.batch_size, micro):
            yield positions(self.seed, start, micro, n).to(self.accelerator.device)

    def _due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.steps


def end(callbacks: Sequence[Callback], state: State) -> None:
    """Each callback has its end, in their order, even where that of another fails."""
    with ExitStack() as endings:
        for callback in reversed(callbacks):
            endings.callback(callback.on_end, state)


def set_lr(optimizer: Optimizer, factor: float) -> None:
    """Each group's lr is the one that it was built with times the schedule's factor."""
    for group in optimizer.param_groups:
        group["lr"] = group[checkpoint.SETTINGS]["lr"] * factor


def training_metrics(state: State, total: Float[Tensor, ""]) -> dict[str, float]:
    """Means since the last log point. Here, and only here, the host waits for the device."""
    steps, total_loss = state.step - state.logged_at, total.item()
    total.zero_()
    state.logged_at = state.step
    return {
        "train/loss": total_loss / steps,
        "lr": state.optimizer.param_groups[0]["lr"],
        "grad/norm": float(state.grad_norm),
        f"perf/{state.data.unit}s_per_s": state.rate(),
    }


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Split,
    loss: Loss,
    batch_size: int,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> dict[str, float]:
    """Loss (nats) and accuracy over a whole split, and bits a symbol where each position is judged."""
    was_training = model.training
    model.eval()
    losses, hits, count = [], [], len(split)
    for start in range(0, count, batch_size):
        x, y = split[slice(start, start + batch_size)]
        with autocast():
            logits = model(x)
            losses.append(loss(logits, y) * len(x))
        hits.append(accuracy(logits, y) * len(x))
    model.train(was_training)
    nats = torch.stack(losses).sum().item() / count
    metrics = {"val/loss": nats, "val/acc": torch.stack(hits).sum().item() / count}
    return metrics | ({"val/bpb": bits(nats)} if split.targets.ndim == 2 else {})
