"""What rounding does to the weights while they are trained, layer by layer."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from research import rules
from research.nn.bitlinear import BitLinear, bitlinear_layers
from research.nn.packed import count_packed_bytes
from research.ranges import PositiveInt
from research.training.state import Callback, State

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
MAX_LEGEND_LAYERS = 28  # at most so many layers in the legend
Measurement = tuple[int, dict[str, float]]  # step, and each fact
FACTS = {
    "error": "error of rounding",  # |W - rounded W| / |W|, Frobenius
    "zero": "share of zeros",
    "flips": "codes that changed since the last look",
    "scale": "scale",  # what a code of 1 stands for; of several the mean
}


class Ternary(Callback):
    """Every `every` steps, with the metrics: of each BitLinear the error of rounding, the share of zeros, the share of codes
    that changed since the last look (from the second on), and the scale; the model's size once packed, and how often that
    goes into float32.

    plots/ternary.png, at the end, has a line a layer.
    """

    def __init__(self, every: PositiveInt = 50) -> None:  # steps: a multiple of the trainer's log_every or eval_every
        self.every = every
        self.codes: dict[str, Tensor] = {}
        self.history: dict[str, list[Measurement]] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"codes": dict(self.codes), "history": {name: list(looks) for name, looks in self.history.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.codes = dict(state["codes"])
        self.history = {name: [(int(step), dict(facts)) for step, facts in looks] for name, looks in state["history"].items()}

    def on_start(self, state: State) -> None:
        rules.enforce(rules.check_whole_tensors("ternary", state.sharded))
        if conflict := rules.check_callback_every("ternary", self.every, state.log_every, state.eval_every):
            log.warning("%s", conflict)
        if not bitlinear_layers(state.model):
            log.warning("callbacks.ternary has nothing to tell, as the model has no BitLinears: ~callbacks.ternary")

    @torch.no_grad()
    def on_gradients(self, state: State) -> None:
        """Before the update: what was told is logged with this step's loss, which these very weights gave."""
        step = state.step + 1
        if step % self.every:
            return
        found = bitlinear_layers(state.model)
        for name, layer in found.items():
            facts = self._measure(name, layer)
            self.history.setdefault(name, []).append((step, facts))
            state.extra_metrics |= {f"ternary/{fact}/{name}": value for fact, value in facts.items()}
        if found:
            packed = count_packed_bytes(state.model)
            whole = 4 * sum(p.numel() for p in state.model.parameters())
            state.extra_metrics |= {"ternary/packed_mb": packed / 1e6, "ternary/ratio": whole / packed}

    def _measure(self, name: str, layer: BitLinear) -> dict[str, float]:
        codes, step = layer.quantizer.quantize_weight(layer.weight)
        error = (layer.weight - codes * step).norm() / layer.weight.norm().clamp(min=1e-30)
        codes = codes.to(torch.int8)
        before, self.codes[name] = self.codes.get(name), codes
        facts = {"error": error, "zero": (codes == 0).float().mean(), "scale": step.mean()}
        if before is not None:
            facts["flips"] = (codes != before.to(codes.device)).float().mean()
        return dict(zip(facts, torch.stack(list(facts.values())).tolist(), strict=True))  # one wait for a device, not four

    def on_end(self, state: State) -> None:
        if state.folder is None or not self.history:
            return
        (state.folder / "plots").mkdir(exist_ok=True)
        draw(self.history, state.name).savefig(state.folder / "plots" / "ternary.png", dpi=120)


def draw(history: Mapping[str, list[Measurement]], title: str) -> "Figure":
    """A line a layer; of many only some are named."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # not pyplot: no global state, no window

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True).flatten()
    apart = -(-len(history) // MAX_LEGEND_LAYERS)
    for place, (name, looks) in enumerate(history.items()):
        color = colormaps["viridis"](place / max(1, len(history) - 1))
        for axis, fact in zip(axes, FACTS, strict=True):
            seen = [(step, facts[fact]) for step, facts in looks if fact in facts]
            label = None if place % apart else name
            axis.plot([step for step, _ in seen], [value for _, value in seen], color=color, linewidth=1, label=label)
    for axis, fact in zip(axes, FACTS.values(), strict=True):
        axis.set(title=fact)
        axis.grid(alpha=0.3)
    for axis in axes[2:]:
        axis.set(xlabel="step")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=6)
    figure.suptitle(title, fontsize=10)
    return figure
