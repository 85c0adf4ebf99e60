"""How far a run is and what it has reached."""

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from research.contracts import contract


@dataclass
class Progress:
    """How far a run is and what it has reached. All of it is in the checkpoint."""

    step: int = 0  # optimizer steps done
    samples: int = 0  # training samples consumed, over all processes
    eval_pending: bool = False  # the last step still has to be logged and evaluated
    loss_sum: float | Tensor = 0.0  # the losses since the last log point; on the device while training
    loss_count: int | Tensor = 0  # steps in loss_sum
    grad_norm: float | Tensor = math.nan  # before clipping
    extra_metrics: dict[str, float] = field(default_factory=dict)  # what callbacks add to the next log point
    metrics: dict[str, float] = field(default_factory=dict)  # the newest value of each metric
    best: dict[str, float] = field(default_factory=dict)  # all metrics at the best evaluation, and its "step"
    task: str = ""  # what `best` is of
    last_finite_checkpoint: int = -1  # the last one before numbers were not finite: it is kept
    rollbacks: int = 0  # times that the run went back to a checkpoint
    oom_halvings: int = 0  # times that the micro-batch was halved, for want of memory
    seconds: float = 0.0  # of training, evaluations included, in all processes that this run has had

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers, texts and dicts."""
        numbers = {"loss_sum": float(self.loss_sum), "loss_count": int(self.loss_count), "grad_norm": float(self.grad_norm)}
        return vars(self) | numbers | {"extra_metrics": {name: float(value) for name, value in self.extra_metrics.items()}}

    @contract
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over saved progress; a key that it lacks keeps its value. Raise ValueError for counts below 0."""
        if wrong := [f"{key}={state[key]}" for key in ("step", "samples", "seconds") if state.get(key, 0) < 0]:
            raise ValueError(f"a checkpoint counts from 0, and this one has {', '.join(wrong)}")
        vars(self).update(state)
