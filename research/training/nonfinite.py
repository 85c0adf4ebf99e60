"""Numbers that are not finite: found before they reach the weights, named, and met as the user asked."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from research.run_dir import list_checkpoints
from research.training import distributed, snapshot
from research.training.state import Callback, State

Policy = Literal["stop", "skip", "rollback"]
log = logging.getLogger(__name__)


@dataclass
class Guard:
    """Judges loss and gradient norm before each update.

    On the host where that is free (a CPU) or cannot be helped. On a GPU, with an optimizer that leaves an update out
    where its `found_inf` is not 0 (torch's fused ones, and the Grokfast filters over them), the verdict stays there and
    no step waits for it: the host learns of it at the next log point. Until then stop and rollback let no update through.
    Gradients in fp16 that overflow are their scaler's to see to, until it has nothing left to scale down.
    """

    policy: Policy
    max_skips: int  # updates that may be left out in a row
    max_rollbacks: int
    on_device: bool
    get_loss_scale: Callable[[], float] = lambda: 1.0  # of the loss, in fp16: gradients overflow until it is small enough
    last_nonfinite: bool | Tensor = False  # the last verdict
    first_bad_step: int | Tensor = -1  # the step that ended badly since the last look, counted from 0; -1: none
    num_bad_in_row: int | Tensor = 0  # bad steps in a row
    max_bad_in_row: int | Tensor = 0  # such row since the last look
    nonfinite_location: str = ""  # the gradient that was not finite

    def is_finite(self, state: State, loss: Tensor) -> bool:
        """Whether to update the weights; on a device always, for there the optimizer itself leaves it out."""
        if self.on_device:
            self._check_on_device(state, loss, torch.as_tensor(state.grad_norm))
            return True
        self.last_nonfinite = not (
            math.isfinite(loss.item()) and (math.isfinite(float(state.grad_norm)) or self.get_loss_scale() > 1)
        )
        if self.last_nonfinite:
            self.first_bad_step, self.nonfinite_location = (
                (state.step, find_nonfinite_gradient(state.model))
                if self.first_bad_step < 0
                else (self.first_bad_step, self.nonfinite_location)
            )
        else:
            state.loss_sum += loss
            state.loss_count += 1
        self.num_bad_in_row = (self.num_bad_in_row + 1) * self.last_nonfinite
        self.max_bad_in_row = max(self.max_bad_in_row, self.num_bad_in_row)
        return not self.last_nonfinite

    def _check_on_device(self, state: State, loss: Tensor, grad_norm: Tensor) -> None:
        """The same without a look at any number."""
        bad = ~(torch.isfinite(loss) & torch.isfinite(grad_norm))
        if self.policy != "skip":
            bad = bad | self.last_nonfinite
        state.loss_sum += torch.where(bad, 0.0, loss)
        state.loss_count = state.loss_count + ~bad
        first = torch.as_tensor(self.first_bad_step, device=loss.device)
        self.first_bad_step = torch.where(bad & (first < 0), state.step, first)
        self.num_bad_in_row = (self.num_bad_in_row + 1) * bad
        self.max_bad_in_row = torch.maximum(torch.as_tensor(self.max_bad_in_row, device=loss.device), self.num_bad_in_row)
        self.last_nonfinite = bad
        state.skipped_on_device = bad if self.policy != "skip" else None  # a weight that was left out is as good as before
        state.optimizer.grad_scale, state.optimizer.found_inf = None, bad.float()  # type: ignore[attr-defined]

    def handle_nonfinite(self, state: State, replay: Callable[[int], object]) -> bool:
        """Meet what has happened since the last look: true once the run is at an earlier checkpoint.

        `replay` computes the gradient of a step again: nothing was updated since. Raises FloatingPointError where the
        run has to end.
        """
        first, longest = int(self.first_bad_step), int(self.max_bad_in_row)
        self.first_bad_step, self.max_bad_in_row = -1, 0
        if first < 0:
            return False
        if self.on_device:
            replay(first)
            self.nonfinite_location = find_nonfinite_gradient(state.model)
            state.optimizer.zero_grad()
        for part in state.stateful.values():
            if isinstance(part, Callback):
                part.flush()  # a checkpoint may still be on its way
        saved = list_checkpoints(state.folder) if state.folder else {}
        state.last_finite_checkpoint = distributed.broadcast(max((step for step in saved if step <= first), default=-1))
        kept = f"saved is step {state.last_finite_checkpoint}" if state.last_finite_checkpoint >= 0 else "none is saved"
        told = f"the loss or the gradient is not finite at step {first + 1}, with lr={get_lr(state.optimizer):.3g}: "
        told += f"{self.nonfinite_location}; the last good step is {first}, {kept}"
        if self.policy == "skip" and longest <= self.max_skips:
            log.warning("%s; its update is left out", told)
            return False
        if self.policy == "rollback" and state.rollbacks < self.max_rollbacks and state.last_finite_checkpoint >= 0:
            assert state.folder
            log.warning("%s; going back there, with another order of samples", told)
            self._roll_back(state, state.folder)
            return True
        ended = {
            "stop": "lower lr, set trainer.clip_norm, or see trainer.on_nonfinite",
            "skip": f"that was {longest} times in a row, over trainer.max_skips={self.max_skips}: lower lr",
            "rollback": f"went back {state.rollbacks} times (trainer.max_rollbacks={self.max_rollbacks}): lower lr"
            if state.last_finite_checkpoint >= 0
            else "there is no checkpoint to go back to: give callbacks.checkpoint.every",
        }
        raise FloatingPointError(f"{told}\n{ended[self.policy]}")

    def _roll_back(self, state: State, folder: Path) -> None:
        times, seconds = state.rollbacks + 1, state.seconds
        snapshot.resume(state, folder, until=state.last_finite_checkpoint)
        state.rollbacks, state.last_finite_checkpoint, state.logged = times, state.step, {}
        state.seconds = state.seconds_before = seconds  # what was lost took its time too
        state.begin()
        self.last_nonfinite, self.num_bad_in_row = False, 0


def get_lr(optimizer: Optimizer) -> float:
    """That of the first group, as it is now."""
    return float(optimizer.param_groups[0]["lr"])


def supports_found_inf(optimizer: Optimizer) -> bool:
    """Whether the optimizer leaves an update out by itself where its `found_inf` is not 0."""
    fused = getattr(optimizer, "_step_supports_amp_scaling", False)  # torch's own mark
    return bool(getattr(optimizer, "supports_found_inf", fused))


def find_nonfinite_gradient(model: nn.Module) -> str:
    """The first parameter whose gradient is not finite."""
    for name, p in model.named_parameters():
        if p.grad is not None and not bool(torch.isfinite(p.grad).all()):
            return f"the gradient of {name} is the first that is not"
    return "every gradient is"
