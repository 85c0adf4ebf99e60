"""A callback that draws the learning curves of a run."""

from typing import TYPE_CHECKING, Any

from research.callbacks.measurement import make_figure, save_figure
from research.training.state import Callback, State

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Curve(Callback):
    """Write plots/curves.png: losses on the left, accuracy (or bits per byte) on the right, against the step."""

    def __init__(self) -> None:
        self.history: dict[str, list[tuple[int, float]]] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = state["history"]

    def on_step(self, state: State) -> None:
        for key in ("train/loss", "val/loss", "val/acc", "val/bpb"):
            if key in state.logged:
                self.history.setdefault(key, []).append((state.progress.step, state.logged[key]))

    def on_end(self, state: State) -> None:
        if state.info.folder is not None and self.history:
            save_figure(lambda: self._draw(state), state, "curves")

    def _draw(self, state: State) -> "Figure":
        figure = make_figure(9, 3.2, state.info.name)
        left, right = figure.subplots(1, 2)
        second = "val/bpb" if "val/bpb" in self.history else "val/acc"
        curves = {"train/loss": (left, "tab:gray"), "val/loss": (left, "tab:blue"), second: (right, "tab:blue")}
        for key, (axis, color) in curves.items():
            if points := self.history.get(key):
                axis.plot(*zip(*points, strict=True), label=key, color=color)
        for axis in (left, right):
            axis.set(xlabel="step", xscale="log" if state.progress.step > 100 else "linear")
            axis.grid(alpha=0.3)
        left.set(ylabel="loss (nats)", yscale="log")
        left.legend()
        for name, value in state.data.baseline.items():
            if name.startswith(second):
                right.axhline(value, color="tab:red", linestyle=":" if right.get_legend() else "--", label=name.split()[-1])
                right.legend()
        right.set(ylabel=second)
        return figure
