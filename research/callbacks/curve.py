"""A callback that draws the learning curves of a run."""

from typing import TYPE_CHECKING, Any

from research.callbacks.measurement import make_figure, save_figure
from research.contracts import contract
from research.training.state import Callback, State

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSSES = {"train/loss": "tab:gray", "val/loss": "tab:blue"}  # with their colours


class Curve(Callback):
    """Write plots/curves.png: losses on the left, the monitor on the right where it is no loss, against the step."""

    def __init__(self) -> None:
        self.history: dict[str, list[tuple[int, float]]] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    @contract
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = state["history"]

    def on_step(self, state: State) -> None:
        for key in [key for key in dict.fromkeys((*LOSSES, state.info.monitor)) if key in state.logged]:
            self.history.setdefault(key, []).append((state.progress.step, state.logged[key]))

    def on_end(self, state: State) -> None:
        if state.info.folder is not None and self.history:
            save_figure(lambda: self._draw(state), state, "curves")

    def _draw(self, state: State) -> "Figure":
        monitor = state.info.monitor
        panels = [[*LOSSES], *([] if monitor in LOSSES or monitor not in self.history else [[monitor]])]
        figure = make_figure(4.5 * len(panels), 3.2, state.info.name)
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, keys in zip(axes, panels, strict=True):
            for key in keys:
                if points := self.history.get(key):
                    axis.plot(*zip(*points, strict=True), label=key, color=LOSSES.get(key, "tab:blue"))
            axis.set(xlabel="step", xscale="log" if state.progress.step > 100 else "linear", ylabel=keys[-1])
            axis.grid(alpha=0.3)
        is_positive = all(value > 0 for key in LOSSES for _, value in self.history.get(key, ()))
        axes[0].set(ylabel="loss (nats)" if state.data.val.has_classes else "loss", yscale="log" if is_positive else "linear")
        axes[0].legend()
        for name, value in state.data.baseline.items():
            if len(panels) > 1 and name.split()[0] == monitor:
                axes[1].axhline(value, color="tab:red", linestyle=":" if axes[1].get_legend() else "--", label=name.split()[-1])
                axes[1].legend()
        return figure
