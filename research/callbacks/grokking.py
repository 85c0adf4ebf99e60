"""A callback that measures grokking: when a network generalises, how long after memorising (Power et al. 2022, 2201.02177)."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from research.callbacks.measurement import Measurement, make_figure, save_figure
from research.cli import format_count
from research.contracts import contract
from research.ranges import OpenFraction, PositiveInt, check_settings
from research.run_dir import write_json
from research.training.state import State

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPLITS = ("train", "val")
LEVELS = (0.95, 0.99)  # accuracies
AccuracyPoint = tuple[int, float, float]  # step, training accuracy (NaN where it is not evaluated), validation accuracy


@dataclass(frozen=True)
class Milestone:
    """The steps at which an accuracy was reached; None: not within the run."""

    first: int | None  # the first evaluation at this accuracy or above
    held: int | None  # the first of `hold` such evaluations in a row
    lowest: float | None  # the lowest accuracy from `first` on


def find_milestone(curve: list[tuple[int, float]], level: float, hold: int) -> Milestone:
    """Return when a curve of (step, accuracy) reached `level`, and whether it stayed there for `hold` evaluations."""
    above = [value >= level for _, value in curve]
    if not any(above):
        return Milestone(None, None, None)
    first = above.index(True)
    rows = (curve[i : i + hold] for i in range(first, len(curve) - hold + 1) if all(above[i : i + hold]))
    held = next((row[0][0] for row in rows), None)
    return Milestone(curve[first][0], held, min(value for _, value in curve[first:]))


class Grokking(Measurement):
    """Log the steps to 95 and 99 % accuracy on training and validation samples, and the delay between the two.

    Training accuracy needs trainer.eval_train=true. Also log whether the accuracy stays there for `hold` evaluations, and
    the lowest accuracy after the first time. Log every `every` steps the norm of the weights and the effective rank of the
    embedding: exp of the entropy of its normalised singular values (Roy & Vetterli 2007, eq. 3 and 4).

    End the run `after` steps after the validation accuracy was held at `end`. Write grokking.json, and plots/grokking.png
    with the curves and the spectra.
    """

    name = "grokking"

    def __init__(
        self,
        every: PositiveInt = 25,  # steps
        hold: PositiveInt = 10,  # evaluations in a row
        end: OpenFraction | None = None,  # accuracy; None: the run goes to its last step
        after: PositiveInt = 1,  # steps
    ) -> None:
        check_settings("callbacks.grokking", Grokking.__init__.__annotations__, locals())
        self.every, self.hold, self.end, self.after = every, hold, end, after
        self.evaluations: list[AccuracyPoint] = []
        self.norms: list[tuple[int, float, float]] = []  # step, norm of the weights, effective rank
        self.spectra: dict[int, Tensor] = {}  # step -> singular values of the embedding
        self.end_step: int | None = None  # end the run here; None: not known yet

    def state_dict(self) -> dict[str, Any]:
        # The keys are frozen: saved runs have them.
        return {"looks": self.evaluations, "norms": self.norms, "spectra": self.spectra}

    @contract
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.evaluations, self.norms, self.spectra = state["looks"], state["norms"], state["spectra"]
        self.end_step = self._find_end_step()

    def on_start(self, state: State) -> None:
        super().on_start(state)
        if self.evaluations:  # a resumed run may have reached its last step before
            self._report(state)
            self._stop_if_due(state, state.progress.step)

    @torch.no_grad()
    def on_gradients(self, state: State) -> None:
        step = state.progress.step + 1
        due = step % self.every == 0
        if due or not self.norms:
            norm, rank = self._measure_weights(state.model, step)
            self.norms.append((step, norm, rank))
            metrics = {"grok/weight_norm": norm} | ({} if math.isnan(rank) else {"grok/embedding_rank": rank})
            if due:  # the first measurement is for the picture: it would be logged with the loss of a later step
                state.progress.extra_metrics |= metrics
        self._stop_if_due(state, step)

    def on_step(self, state: State) -> None:
        if (value := state.logged.get("val/acc")) is None:
            return
        self.evaluations.append((state.progress.step, state.logged.get("train/acc", math.nan), value))
        self.end_step = self._find_end_step()
        state.progress.extra_metrics |= self._report(state)

    def on_end(self, state: State) -> None:
        if not self.evaluations or state.info.folder is None:
            return
        run = {"steps": state.progress.step, "seconds": state.progress.seconds}
        write_json(state.info.folder / "grokking.json", self.collect_milestones() | run)
        save_figure(lambda: draw(self, state.info.name), state, "grokking")

    def collect_milestones(self) -> dict[str, Any]:
        """Return, for each level, the milestone of each split and the delay (steps) between the two."""
        milestones: dict[str, Any] = {}
        for level in LEVELS:
            splits = {split: self.find_milestone(split, level) for split in SPLITS}
            train, val = (splits[split].first for split in SPLITS)
            delay = None if train is None or val is None else val - train
            milestones[f"{level:.2f}"] = {split: vars(reached) for split, reached in splits.items()} | {"delay": delay}
        return milestones

    def find_milestone(self, split: str, level: float) -> Milestone:
        column = 1 + SPLITS.index(split)
        return find_milestone([(point[0], point[column]) for point in self.evaluations], level, self.hold)

    def _report(self, state: State) -> dict[str, float]:
        """Write the notes for the end of the run; return the milestones reached so far as metrics, as grok/val_95."""
        # NaN is not >= 0: training samples that were never evaluated have no row.
        evaluated = [split for i, split in enumerate(SPLITS, start=1) if any(point[i] >= 0 for point in self.evaluations)]
        metrics: dict[str, float] = {}
        for level, facts in self.collect_milestones().items():
            percent = f"{100 * float(level):.0f}"
            state.end_notes[f"grokking {percent}%"] = format_level(facts, evaluated, self.evaluations[-1][0])
            steps = {split: facts[split]["first"] for split in SPLITS} | {"held": facts["val"]["held"], "delay": facts["delay"]}
            metrics |= {f"grok/{name}_{percent}": float(step) for name, step in steps.items() if step is not None}
        return metrics

    def _find_end_step(self) -> int | None:
        """Return the step that is `after` steps after the first `hold` evaluations in a row at `end`."""
        if self.end is None or (held := self.find_milestone("val", self.end).held) is None:
            return None
        steps = [point[0] for point in self.evaluations]
        return steps[steps.index(held) + self.hold - 1] + self.after

    def _stop_if_due(self, state: State, step: int) -> None:
        if self.end_step is not None and step >= self.end_step:
            state.stop = f"val/acc stayed at {self.end:g} or above for {format_count(self.hold, 'evaluation')}"
            state.resume_override = "callbacks.grokking.end=null"

    def _measure_weights(self, model: nn.Module, step: int) -> tuple[float, float]:
        """Return the norm of all weights and the effective rank of the first embedding (NaN without one)."""
        norm = math.sqrt(sum(p.double().square().sum() for p in model.parameters()))  # one copy from the device
        embeddings = (module for module in model.modules() if isinstance(module, nn.Embedding))
        if (embedding := next(embeddings, None)) is None or not math.isfinite(norm):
            return norm, math.nan
        values = torch.linalg.svdvals(embedding.weight.float()).cpu()
        first = min(self.spectra, default=step)
        self.spectra = {first: self.spectra.get(first, values), step: values}  # the first and the newest
        shares = values.double() / values.double().sum()
        return norm, float(torch.special.entr(shares).sum().exp())


def format_level(facts: dict[str, Any], splits: list[str], steps: int) -> str:
    """Return one level's milestones as text, for the splits that were evaluated in `steps` steps."""
    firsts = {split: facts[split]["first"] for split in splits}
    text = ", ".join(
        f"{split} not reached in {steps:,}" if first is None else f"{split} at step {first:,}"
        for split, first in firsts.items()
    )
    if (delay := facts["delay"]) is not None:
        text += f", {abs(delay):,} steps {'later' if delay >= 0 else 'earlier'}"
    if (val := facts["val"])["first"] is not None:
        held = "not held" if val["held"] is None else f"held from {val['held']:,}"
        text += f"; {held}, lowest since {val['lowest']:.3f}"
    return text


@contract
def draw(callback: Grokking, title: str) -> "Figure":
    """Draw accuracies, norm and rank against the step, and the first and last singular values of the embedding."""
    figure = make_figure(12, 3.4, title)
    left, middle, right = figure.subplots(1, 3)
    steps, *accuracies = zip(*callback.evaluations, strict=True)
    for split, values, colour in zip(SPLITS, accuracies, ("tab:gray", "tab:blue"), strict=True):
        left.plot(steps, values, color=colour, label=f"{split}/acc")
        for level, style in zip(LEVELS, (":", "--"), strict=True):
            if (first := callback.find_milestone(split, level).first) is not None:
                left.axvline(first, color=colour, linestyle=style, linewidth=1, label=f"{level:.0%} at {first:,}")
    left.set(xlabel="step", xscale="log", ylabel="accuracy")
    left.legend(fontsize=7)
    measured = [point[0] for point in callback.norms]
    middle.plot(measured, [point[1] for point in callback.norms], color="tab:blue")
    middle.set(xlabel="step", xscale="log", ylabel="norm of the weights")
    other = middle.twinx()
    other.plot(measured, [point[2] for point in callback.norms], color="tab:orange")
    other.set_ylabel("effective rank of the embedding", color="tab:orange")
    for step, spectrum in callback.spectra.items():
        right.plot(range(1, len(spectrum) + 1), spectrum, label=f"step {step:,}")
    right.set(xlabel="singular value of the embedding", yscale="log")
    if callback.spectra:
        right.legend(fontsize=7)
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
    return figure
