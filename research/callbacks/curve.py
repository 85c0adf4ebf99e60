"""A callback that draws the learning curves of a run."""

from collections import defaultdict
from typing import Any

from research.training.state import Callback, State


class Curve(Callback):
    """Write plots/curves.png: losses on the left, accuracy (or bits per byte) on the right, against the step."""

    def __init__(self) -> None:
        self.history: dict[str, list[tuple[int, float]]] = defaultdict(list)

    def state_dict(self) -> dict[str, Any]:
        return {"history": {key: list(points) for key, points in self.history.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = defaultdict(list, {key: [tuple(point) for point in points] for key, points in state["history"].items()})

    def on_step(self, state: State) -> None:
        for key in ("train/loss", "val/loss", "val/acc", "val/bpb"):
            if key in state.logged:
                self.history[key].append((state.progress.step, state.logged[key]))

    def on_end(self, state: State) -> None:
        if state.info.folder is None or not self.history:
            return
        from matplotlib.figure import Figure  # not pyplot: no global state, no window

        figure = Figure(figsize=(9, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        second = "val/bpb" if "val/bpb" in self.history else "val/acc"
        for axis, keys in ((left, ("train/loss", "val/loss")), (right, (second,))):
            for key in keys:
                if points := self.history[key]:
                    axis.plot(*zip(*points, strict=True), label=key, color="tab:gray" if key == "train/loss" else "tab:blue")
            axis.set(xlabel="step", xscale="log" if state.progress.step > 100 else "linear")
            axis.grid(alpha=0.3)
        left.set(ylabel="loss (nats)", yscale="log")
        left.legend()
        for name, value in state.data.baseline.items():
            if name.startswith(second):
                right.axhline(value, color="tab:red", linestyle=":" if right.get_legend() else "--", label=name.split()[-1])
                right.legend()
        right.set(ylabel=second)
        figure.suptitle(state.info.name, fontsize=10)
        (state.info.folder / "plots").mkdir(exist_ok=True)
        figure.savefig(state.info.folder / "plots" / "curves.png", dpi=120)
