"""What callbacks that measure share: when they may measure, and how they draw."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from research import rules
from research.cli import first_line
from research.contracts import contract
from research.run_dir import replace_file
from research.training.state import Callback, State

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)


class Measurement(Callback):
    """Measures whole tensors every `every` steps, before the update: its numbers are logged with the loss that they gave."""

    name: str  # in conf/callbacks
    every: int  # steps

    @contract
    def on_start(self, state: State) -> None:
        rules.enforce(rules.check_whole_tensors(self.name, state.sharded))
        if conflict := rules.check_callback_every(self.name, self.every, state.info.log_every, state.info.eval_every):
            log.warning("%s", conflict)

    @torch.no_grad()
    def on_gradients(self, state: State) -> None:
        step = state.progress.step + 1
        if step % self.every == 0:
            self.measure(state, step)

    def measure(self, state: State, step: int) -> None:
        """Measure weights or gradients, of which the update under way will be number `step`."""


@contract
def make_figure(width: float, height: float, title: str) -> "Figure":
    """Return an empty figure of a size in inches."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no window

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title.replace("$", r"\$"), fontsize=10)
    return figure


@contract
def save_figure(draw: Callable[[], "Figure"], state: State, name: str) -> None:
    """Save a figure in the run folder, as plots/NAME.png. Warn where its numbers cannot be drawn: the run itself is whole."""
    assert state.info.folder
    (state.info.folder / "plots").mkdir(exist_ok=True)
    try:
        with np.errstate(all="ignore"), replace_file(state.info.folder / "plots" / f"{name}.png") as draft:
            draw().savefig(draft, dpi=120, format="png")
    except (ValueError, ArithmeticError) as error:  # matplotlib has no class of its own
        log.warning("plots/%s.png could not be drawn: %s", name, first_line(error))
