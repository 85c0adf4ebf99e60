"""Are the gradients in good health? Block by block."""

import logging
import math
from typing import Any

import torch
from torch import Tensor

from research import rules
from research.nn.blocks import find_blocks
from research.ranges import NonNegativeFloat, PositiveFloat, PositiveInt
from research.training.state import Callback, State

log = logging.getLogger(__name__)
DECADES = torch.arange(-12.0, 3.0)  # of the histogram: powers of ten


class GradientHealth(Callback):
    """Every `every` steps, with the metrics: the norm of each block's gradient before clipping and its share of zeros.

    A block whose norm is below `vanishing` or above `exploding` is told once. plots/gradients_STEP.png, at each
    `histogram`-th look, has the sizes of the gradients.
    """

    def __init__(
        self,
        every: PositiveInt = 50,  # steps
        vanishing: NonNegativeFloat = 1e-7,
        exploding: PositiveFloat = 1e2,
        histogram: PositiveInt = 5,  # looks
    ) -> None:
        self.every, self.vanishing, self.exploding, self.histogram = every, vanishing, exploding, histogram
        self.warned_pairs: set[tuple[str, str]] = set()

    def state_dict(self) -> dict[str, Any]:
        return {"told": [list(pair) for pair in sorted(self.warned_pairs)]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.warned_pairs = {(block, wrong) for block, wrong in state["told"]}

    def on_start(self, state: State) -> None:
        rules.enforce(rules.check_whole_tensors("gradients", state.sharded))
        if conflict := rules.check_callback_every("gradients", self.every, state.log_every, state.eval_every):
            log.warning("%s", conflict)

    @torch.no_grad()
    def on_gradients(self, state: State) -> None:
        step = state.step + 1
        if step % self.every:
            return
        gradients = group_by_block(state)
        norms = {name: math.hypot(*(g.norm().item() for g in held)) for name, held in gradients.items()}
        unclipped = float(state.grad_norm) / max(math.hypot(*norms.values()), 1e-30)
        for name, held in gradients.items():
            norm = state.extra_metrics[f"grad/norm/{name}"] = norms[name] * unclipped
            state.extra_metrics[f"grad/zero/{name}"] = sum((g == 0).sum().item() for g in held) / sum(g.numel() for g in held)
            self._warn_once(name, norm, step)
        if step // self.every % self.histogram == 0 and state.folder:
            draw(gradients, unclipped, state, step)

    def _warn_once(self, block: str, norm: float, step: int) -> None:
        wrong = "vanishing" if norm < self.vanishing else "exploding" if norm > self.exploding else ""
        if wrong and (block, wrong) not in self.warned_pairs:
            self.warned_pairs.add((block, wrong))
            bound = self.vanishing if wrong == "vanishing" else self.exploding
            log.warning(
                "the gradient of %s is %s at step %d: its norm is %.2g, the bound %.2g", block, wrong, step, norm, bound
            )


def group_by_block(state: State) -> dict[str, list[Tensor]]:
    """The gradients of each block, and of what stands outside of them by the name of its module."""
    names = list(find_blocks(state.model))
    found: dict[str, list[Tensor]] = {}
    for name, p in state.model.named_parameters():
        if p.grad is not None:
            block = next((block for block in names if name.startswith(f"{block}.")), name.partition(".")[0])
            found.setdefault(block, []).append(p.grad)
    return found


def draw(gradients: dict[str, list[Tensor]], unclip_factor: float, state: State, step: int) -> None:
    """How many gradients of each size, by block."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no window

    assert state.folder
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axis = figure.subplots()
    for name, held in gradients.items():
        sizes = torch.cat([g.flatten() for g in held]).abs().mul(unclip_factor).clamp(min=1e-30).log10()
        counts = torch.histogram(sizes.float().cpu(), DECADES).hist
        axis.step(DECADES[:-1], counts / len(sizes), where="post", label=name)
    axis.set(xlabel="log10 of the gradient's size", ylabel="share", title=f"{state.name}, step {step}")
    axis.legend(fontsize=7)
    (state.folder / "plots").mkdir(exist_ok=True)
    figure.savefig(state.folder / "plots" / f"gradients_{step:08d}.png", dpi=100)
