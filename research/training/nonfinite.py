"""The guard against numbers that are not finite: it finds them before they reach the weights, and says where they are."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from research.contracts import contract
from research.optim.schedules import get_lr
from research.ranges import PositiveInt, check_fields
from research.run_dir import list_checkpoints
from research.training import distributed, snapshot
from research.training.state import RunObjective, State

log = logging.getLogger(__name__)


@dataclass
class Guard:
    """Checks loss and gradient norm before each update.

    On a CPU it checks at once. On a GPU the verdict stays on the device, so no step waits for it. The host reads it at the
    next log point; until then stop and rollback let no update through. That needs an optimizer that leaves an update out
    where its `found_inf` is not 0: torch's fused ones, and the Grokfast filters over them. Gradients in fp16 that overflow
    are left to the scaler, until it has nothing left to scale down.
    """

    # skip leaves the update out; rollback goes to the newest checkpoint, with another order of samples
    policy: Literal["stop", "skip", "rollback"] = "stop"
    max_skips: PositiveInt = 5  # updates left out in a row
    max_rollbacks: PositiveInt = 2

    def __post_init__(self) -> None:
        check_fields("trainer.guard", self)

    def reset(self, on_device: bool) -> None:
        """Forget the verdicts of another run; those of the next one stay on the device, or are read at each step."""
        self.on_device, self.location = on_device, ""  # where a gradient was not finite
        self.verdicts: list[Any] = []  # for each step since the last check a bool, or a tensor: is a number not finite?
        self.num_bad_in_row = 0  # up to the last check

    def accepts(self, state: State, loss: Tensor) -> bool:
        """Return whether to update the weights, and count the loss if so. On a device the optimizer leaves the update out."""
        progress, grad_norm = state.progress, state.progress.grad_norm
        if not self.on_device:
            # A scale above 1 is the scaler's to lower, as fp16 has overflowed.
            bad = not (math.isfinite(loss.item()) and (math.isfinite(grad_norm) or state.scaler.get_scale() > 1))
            if bad:
                self.location = find_nonfinite_gradient(state.model)
            else:
                progress.loss_sum += loss
                progress.loss_count += 1
            self.verdicts.append(bad)
            return not bad
        verdict = ~(torch.isfinite(loss) & torch.isfinite(torch.as_tensor(grad_norm)))  # from here on no number is read
        if self.policy != "skip" and self.verdicts:
            verdict = verdict | self.verdicts[-1]
        progress.loss_sum += torch.where(verdict, 0.0, loss)
        progress.loss_count = progress.loss_count + ~verdict
        self.verdicts.append(verdict)
        state.skipped_on_device = verdict if self.policy != "skip" else None  # a weight that was left out is as good as before
        state.optimizer.grad_scale, state.optimizer.found_inf = None, verdict.float()  # type: ignore[attr-defined]
        return True

    def rolls_back(self, state: State, replay: Callable[[int], object]) -> bool:
        """Apply the policy to what happened since the last check. Return true once the run is at an earlier checkpoint.

        `replay` computes the gradient of a step again: nothing was updated since. Raise FloatingPointError where the
        run has to end.
        """
        progress = state.progress
        verdicts: list[bool] = torch.stack(self.verdicts).tolist() if self.on_device and self.verdicts else self.verdicts
        self.verdicts, longest = [], 0
        for bad in verdicts:
            self.num_bad_in_row = (self.num_bad_in_row + 1) * bad
            longest = max(longest, self.num_bad_in_row)
        if not longest:
            return False
        first = progress.step - len(verdicts) + verdicts.index(True)  # counted from 0
        if self.on_device:
            replay(first)
            self.location = find_nonfinite_gradient(state.model)
            state.optimizer.zero_grad()
            if isinstance(state.objective, RunObjective):
                state.objective.drop_step()
        for callback in state.callbacks:
            callback.flush()  # a checkpoint may still be on its way
        steps = list_checkpoints(state.info.folder) if state.info.folder else {}
        last_good = distributed.broadcast(max((step for step in steps if step <= first), default=-1))
        progress.last_finite_checkpoint = last_good
        saved = f"saved is step {last_good}" if last_good >= 0 else "none is saved"
        where = f"step {first + 1}, with lr={get_lr(state.optimizer):.3g}: {self.location}"
        message = f"the loss or the gradient is not finite at {where}; the last good step is {first}, {saved}"
        if self.policy == "skip" and longest <= self.max_skips:
            log.warning("%s; its update is left out", message)
            return False
        if self.policy == "rollback" and progress.rollbacks < self.max_rollbacks and last_good >= 0:
            log.warning("%s; going back there, with another order of samples", message)
            self._roll_back(state)
            return True
        fixes = {
            "stop": "lower lr, set trainer.clip_norm, or see trainer.guard.policy",
            "skip": f"that was {longest} times in a row, over trainer.guard.max_skips={self.max_skips}: lower lr",
            "rollback": f"went back {progress.rollbacks} times (trainer.guard.max_rollbacks={self.max_rollbacks}): lower lr",
        }
        if self.policy == "rollback" and last_good < 0:
            fixes["rollback"] = "there is no checkpoint to go back to: give callbacks.checkpoint.every"
        raise FloatingPointError(f"{message}\n{fixes[self.policy]}")

    def _roll_back(self, state: State) -> None:
        """Go back to the last good checkpoint; the time that was lost counts too."""
        progress, folder = state.progress, state.info.folder
        assert folder
        rollbacks, seconds = progress.rollbacks + 1, progress.seconds
        snapshot.resume(state, folder, until=progress.last_finite_checkpoint)
        progress.rollbacks, progress.last_finite_checkpoint = rollbacks, progress.step
        progress.seconds = state.seconds_before = seconds
        state.logged = {}
        state.start_clock()
        self.num_bad_in_row = 0


@contract
def supports_found_inf(optimizer: Optimizer) -> bool:
    """Return whether the optimizer leaves an update out by itself where its `found_inf` is not 0."""
    fused = getattr(optimizer, "_step_supports_amp_scaling", False)  # torch's own mark
    return bool(getattr(optimizer, "supports_found_inf", fused))


def find_nonfinite_gradient(model: nn.Module) -> str:
    """Name the first parameter whose gradient is not finite."""
    for name, p in model.named_parameters():
        if p.grad is not None and not bool(torch.isfinite(p.grad).all()):
            return f"the gradient of {name} is the first that is not"
    return "every gradient is"
