"""A callback that logs the size of the gradients block by block, and warns of vanishing and exploding ones."""

import logging
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from research.callbacks.measurement import Measurement, make_figure, save_figure
from research.contracts import contract
from research.nn.blocks import find_blocks
from research.ranges import NonNegativeFloat, PositiveFloat, PositiveInt, check_settings
from research.training.state import State

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
DECADES = torch.arange(-12.0, 3.0)  # bins of the histogram: powers of ten


class GradientHealth(Measurement):
    """Log every `every` steps the norm of each block's gradient before clipping, and its share of zeros.

    Warn once of each block whose norm is below `vanishing` or above `exploding`. Draw a histogram of the gradients' sizes,
    plots/gradients_STEP.png, every `histogram`-th time.
    """

    name = "gradients"

    def __init__(
        self,
        every: PositiveInt = 50,  # steps
        vanishing: NonNegativeFloat = 1e-7,
        exploding: PositiveFloat = 1e2,
        histogram: PositiveInt = 5,  # times that the gradients are measured
    ) -> None:
        check_settings("callbacks.gradients", GradientHealth.__init__.__annotations__, locals())
        self.every, self.vanishing, self.exploding, self.histogram = every, vanishing, exploding, histogram
        self.warned_pairs: set[tuple[str, str]] = set()

    def state_dict(self) -> dict[str, Any]:
        return {"told": sorted(self.warned_pairs)}  # the key is frozen: saved runs have it

    @contract
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.warned_pairs = {(block, problem) for block, problem in state["told"]}

    @contract
    def measure(self, state: State, step: int) -> None:
        gradients = group_by_block(state)
        norms = {block: math.hypot(*(g.norm().item() for g in group)) for block, group in gradients.items()}
        # grad_norm is from before clipping: the ratio of both norms undoes it.
        unclipped = float(state.progress.grad_norm) / max(math.hypot(*norms.values()), 1e-30)
        for block, group in gradients.items():
            norm = norms[block] * unclipped
            zeros = sum((g == 0).sum().item() for g in group) / sum(g.numel() for g in group)
            state.progress.extra_metrics |= {f"grad/norm/{block}": norm, f"grad/zero/{block}": zeros}
            self._warn_once(block, norm, step)
        if step // self.every % self.histogram == 0 and state.info.folder:
            title = f"{state.info.name}, step {step}"
            save_figure(lambda: draw(gradients, unclipped, title), state, f"gradients_{step:08d}")

    def _warn_once(self, block: str, norm: float, step: int) -> None:
        problem = "vanishing" if norm < self.vanishing else "exploding" if norm > self.exploding else ""
        if problem and (block, problem) not in self.warned_pairs:
            self.warned_pairs.add((block, problem))
            bound = self.vanishing if problem == "vanishing" else self.exploding
            message = "the gradient of %s is %s at step %d: its norm is %.2g, callbacks.gradients.%s is %.2g"
            log.warning(message, block, problem, step, norm, problem, bound)


def group_by_block(state: State) -> dict[str, list[Tensor]]:
    """Return the gradients of each block; those outside of the blocks stand under the name of their module."""
    names = list(find_blocks(state.model))
    groups: dict[str, list[Tensor]] = {}
    for name, p in state.model.named_parameters():
        if p.grad is not None:
            block = next((block for block in names if name.startswith(f"{block}.")), name.partition(".")[0])
            groups.setdefault(block, []).append(p.grad)
    return groups


@contract
def draw(gradients: dict[str, list[Tensor]], unclip_factor: float, title: str) -> "Figure":
    """Draw the share of gradients of each size, a line a block."""
    figure = make_figure(6, 3.2, title)
    axis = figure.subplots()
    for name, group in gradients.items():
        sizes = torch.cat([g.flatten() for g in group]).abs().mul(unclip_factor).clamp(min=1e-30).log10()
        counts = torch.histogram(sizes.float().cpu(), DECADES).hist
        axis.step(DECADES[:-1], counts / len(sizes), where="post", label=name)
    axis.set(xlabel="log10 of the gradient's size", ylabel="share")
    axis.legend(fontsize=7)
    return figure
