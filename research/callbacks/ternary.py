"""A callback that logs how quantization changes the weights during training, layer by layer."""

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from research.callbacks.measurement import Measurement, make_figure, save_figure
from research.contracts import contract
from research.nn.bitlinear import BitLinear, bitlinear_layers
from research.nn.packed import count_packed_bytes
from research.ranges import PositiveInt, check_settings
from research.training.state import State

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
MAX_LEGEND_LAYERS = 28  # of more layers only some are named
History = dict[str, list[tuple[int, dict[str, float]]]]  # of each layer: step, and the value of each of FACTS
FACTS = {
    "error": "quantization error",  # |W - scale * codes| / |W|, Frobenius
    "zero": "share of zeros",
    "flips": "codes that changed since the last measurement",
    "scale": "scale",  # the weight that a code of 1 stands for; the mean of several scales
}


class Ternary(Measurement):
    """Log FACTS of each BitLinear every `every` steps; draw them at the end, plots/ternary.png with a line a layer.

    The share of changed codes is logged from the second measurement on. Also log the size of the packed model (MB) and how
    many times larger it is in float32.
    """

    name = "ternary"

    def __init__(self, every: PositiveInt = 50) -> None:  # steps: a multiple of the trainer's log_every or eval_every
        check_settings("callbacks.ternary", Ternary.__init__.__annotations__, locals())
        self.every = every
        self.codes: dict[str, Tensor] = {}
        self.history: History = {}

    def state_dict(self) -> dict[str, Any]:
        return {"codes": self.codes, "history": self.history}

    @contract
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.codes, self.history = state["codes"], state["history"]

    def on_start(self, state: State) -> None:
        super().on_start(state)
        if not bitlinear_layers(state.model):
            log.warning("callbacks.ternary logs nothing: the model has no BitLinear; leave it out with ~callbacks.ternary")

    @contract
    def measure(self, state: State, step: int) -> None:
        layers = bitlinear_layers(state.model)
        for name, layer in layers.items():
            facts = self._measure_layer(name, layer)
            self.history.setdefault(name, []).append((step, facts))
            state.progress.extra_metrics |= {f"ternary/{fact}/{name}": value for fact, value in facts.items()}
        if layers:
            packed = count_packed_bytes(state.model)
            float32_bytes = 4 * sum(p.numel() for p in state.model.parameters())
            state.progress.extra_metrics |= {"ternary/packed_mb": packed / 1e6, "ternary/ratio": float32_bytes / packed}

    def _measure_layer(self, name: str, layer: BitLinear) -> dict[str, float]:
        codes, scale = layer.quantizer.quantize_weight(layer.weight)
        error = (layer.weight - codes * scale).norm() / layer.weight.norm().clamp(min=1e-30)
        codes = codes.to(torch.int8)
        before, self.codes[name] = self.codes.get(name), codes
        facts = {"error": error, "zero": (codes == 0).float().mean(), "scale": scale.mean()}
        if before is not None:
            facts["flips"] = (codes != before.to(codes.device)).float().mean()
        return dict(zip(facts, torch.stack(list(facts.values())).tolist(), strict=True))  # one copy from the device, not four

    def on_end(self, state: State) -> None:
        if state.info.folder and self.history:
            save_figure(lambda: draw(self.history, state.info.name), state, "ternary")


@contract
def draw(history: History, title: str) -> "Figure":
    """Draw FACTS against the step, a line a layer; of more than MAX_LEGEND_LAYERS only some are named."""
    from matplotlib import colormaps

    figure = make_figure(9, 5.5, title)
    axes = figure.subplots(2, 2, sharex=True).flatten()
    stride = -(-len(history) // MAX_LEGEND_LAYERS)
    for number, (name, measurements) in enumerate(history.items()):
        color = colormaps["viridis"](number / max(1, len(history) - 1))
        for axis, fact in zip(axes, FACTS, strict=True):
            points = {step: facts[fact] for step, facts in measurements if fact in facts}
            label = None if number % stride else name
            axis.plot(list(points), list(points.values()), color=color, linewidth=1, label=label)
    for axis, fact in zip(axes, FACTS.values(), strict=True):
        axis.set(title=fact)
        axis.grid(alpha=0.3)
    for axis in axes[2:]:
        axis.set(xlabel="step")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=6)
    return figure
