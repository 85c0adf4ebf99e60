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

from research import processes, snapshot
from research.callback import Callback, State
from research.folder import checkpoints

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
    scale: Callable[[], float] = lambda: 1.0  # of the loss, in fp16: gradients overflow until it is small enough
    bad: bool | Tensor = False  # the last verdict
    first: int | Tensor = -1  # the step that ended badly since the last look, counted from 0; -1: none
    row: int | Tensor = 0  # bad steps in a row
    longest: int | Tensor = 0  # such row since the last look
    where: str = ""  # the gradient that was not finite

    def allows(self, state: State, loss: Tensor) -> bool:
        """Whether to update the weights; on a device always, for there the optimizer itself leaves it out."""
        if self.on_device:
            self._allows_on_device(state, loss, torch.as_tensor(state.grad_norm))
            return True
        self.bad = not (math.isfinite(loss.item()) and (math.isfinite(float(state.grad_norm)) or self.scale() > 1))
        if self.bad:
            self.first, self.where = (state.step, culprit(state.model)) if self.first < 0 else (self.first, self.where)
        else:
            state.total += loss
            state.counted += 1
        self.row = (self.row + 1) * self.bad
        self.longest = max(self.longest, self.row)
        return not self.bad

    def _allows_on_device(self, state: State, loss: Tensor, norm: Tensor) -> None:
        """The same without a look at any number."""
        bad = ~(torch.isfinite(loss) & torch.isfinite(norm))
        if self.policy != "skip":
            bad = bad | self.bad
        state.total += torch.where(bad, 0.0, loss)
        state.counted = state.counted + ~bad
        first = torch.as_tensor(self.first, device=loss.device)
        self.first = torch.where(bad & (first < 0), state.step, first)
        self.row = (self.row + 1) * bad
        self.longest = torch.maximum(torch.as_tensor(self.longest, device=loss.device), self.row)
        self.bad = bad
        state.unsure = bad if self.policy != "skip" else None  # a weight that was left out is as good as before
        state.optimizer.grad_scale, state.optimizer.found_inf = None, bad.float()  # type: ignore[attr-defined]

    def goes_back(self, state: State, replay: Callable[[int], object]) -> bool:
        """Meet what has happened since the last look: true once the run is at an earlier checkpoint.

        `replay` computes the gradient of a step again: nothing was updated since. Raises FloatingPointError where the
        run has to end.
        """
        first, longest = int(self.first), int(self.longest)
        self.first, self.longest = -1, 0
        if first < 0:
            return False
        if self.on_device:
            replay(first)
            self.where = culprit(state.model)
            state.optimizer.zero_grad()
        for part in state.parts.values():
            if isinstance(part, Callback):
                part.settle()  # a checkpoint may still be on its way
        saved = checkpoints(state.folder) if state.folder else {}
        state.safe = processes.everywhere(max((step for step in saved if step <= first), default=-1))
        kept = f"saved is step {state.safe}" if state.safe >= 0 else "none is saved"
        told = f"the loss or the gradient is not finite at step {first + 1}, with lr={lr(state.optimizer):.3g}: {self.where}; "
        told += f"the last good step is {first}, {kept}"
        if self.policy == "skip" and longest <= self.max_skips:
            log.warning("%s; its update is left out", told)
            return False
        if self.policy == "rollback" and state.rollbacks < self.max_rollbacks and state.safe >= 0:
            assert state.folder
            log.warning("%s; going back there, with another order of samples", told)
            self._go_back(state, state.folder)
            return True
        ended = {
            "stop": "lower lr, set trainer.clip_norm, or see trainer.on_nonfinite",
            "skip": f"that was {longest} times in a row, over trainer.max_skips={self.max_skips}: lower lr",
            "rollback": f"went back {state.rollbacks} times (trainer.max_rollbacks={self.max_rollbacks}): lower lr"
            if state.safe >= 0
            else "there is no checkpoint to go back to: give callbacks.checkpoint.every",
        }
        raise FloatingPointError(f"{told}\n{ended[self.policy]}")

    def _go_back(self, state: State, folder: Path) -> None:
        times, seconds = state.rollbacks + 1, state.seconds
        snapshot.resume(state, folder, until=state.safe)
        state.rollbacks, state.safe, state.logged = times, state.step, {}
        state.seconds = state.before = seconds  # what was lost took its time too
        state.begin()
        self.bad, self.row = False, 0


def lr(optimizer: Optimizer) -> float:
    """That of the first group, as it is now."""
    return float(optimizer.param_groups[0]["lr"])


def heeds_found_inf(optimizer: Optimizer) -> bool:
    """Whether the optimizer leaves an update out by itself where its `found_inf` is not 0."""
    fused = getattr(optimizer, "_step_supports_amp_scaling", False)  # torch's own mark
    return bool(getattr(optimizer, "heeds_found_inf", fused))


def culprit(model: nn.Module) -> str:
    """The first parameter whose gradient is not finite."""
    for name, p in model.named_parameters():
        if p.grad is not None and not bool(torch.isfinite(p.grad).all()):
            return f"the gradient of {name} is the first that is not"
    return "every gradient is"
