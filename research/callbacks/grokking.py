"""When does a network generalise, how long after it has memorised, and does it stay there (Power et al. 2022, 2201.02177)?"""

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from research import rules
from research.ranges import OpenFraction, PositiveInt
from research.run_dir import write_json
from research.training.state import Callback, State

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
SPLITS = ("train", "val")
LEVELS = (0.95, 0.99)  # accuracies
AccuracyPoint = tuple[
    int, float, float
]  # step; accuracy on the training samples, NaN where they are not judged; and on those held back


@dataclass(frozen=True)
class Milestone:
    """When an accuracy was reached. Steps; None: not within the run."""

    first: int | None  # seen for the first time
    held: int | None  # the first of `hold` evaluations in a row that all saw it
    lowest: float | None  # accuracy seen after the first time


def find_milestone(curve: list[tuple[int, float]], level: float, hold: int) -> Milestone:
    """What a curve of (step, accuracy) tells; the evaluations of a run that has ended count as they are."""
    above = [value >= level for _, value in curve]
    if not any(above):
        return Milestone(None, None, None)
    first = above.index(True)
    starts = (start for start in range(first, len(above) - hold + 1) if all(above[start : start + hold]))
    held = next(starts, None)
    return Milestone(curve[first][0], None if held is None else curve[held][0], min(value for _, value in curve[first:]))


class Grokking(Callback):
    """Of training samples (trainer.eval_train=true) and of those held back: the steps to 95 and 99 % accuracy, the delay
    between the two, whether accuracy stays there for `hold` evaluations, and the lowest that came after. Every `every` steps
    the norm of the weights and the effective rank of the embedding (Roy & Vetterli 2007: exp of the entropy of its
    normalised singular values).

    Ends the run `after` steps after the accuracy `end` on what is held back was held. What a run did not reach is told as
    "not reached in N". At the end grokking.json has all of it, plots/grokking.png the curves and the spectra.
    """

    def __init__(
        self,
        every: PositiveInt = 25,  # steps
        hold: PositiveInt = 10,  # evaluations in a row
        end: OpenFraction | None = None,  # accuracy; None: the run goes to its last step
        after: PositiveInt = 1,  # steps
    ) -> None:
        self.every, self.hold, self.end, self.after = every, hold, end, after
        self.evaluations: list[AccuracyPoint] = []
        self.norms: list[tuple[int, float, float]] = []  # step, norm of the weights, effective rank
        self.spectra: dict[int, Tensor] = {}  # step -> singular values of the embedding
        self.end_step: int | None = None  # the step that ends the run

    def state_dict(self) -> dict[str, Any]:
        return {
            "looks": [list(x) for x in self.evaluations],
            "norms": [list(x) for x in self.norms],
            "spectra": dict(self.spectra),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.evaluations = [(int(step), train, val) for step, train, val in state["looks"]]
        self.norms = [(int(step), norm, rank) for step, norm, rank in state["norms"]]
        self.spectra = dict(state["spectra"])
        self.end_step = self._find_end_step()

    def on_start(self, state: State) -> None:
        rules.enforce(rules.check_whole_tensors("grokking", state.sharded))
        if conflict := rules.check_callback_every("grokking", self.every, state.log_every, state.eval_every):
            log.warning("%s", conflict)
        if self.evaluations:  # a run that goes on: it may have been ended right after it had reached its aim
            self._report(state)
            self._stop_if_due(state, state.step)

    @torch.no_grad()
    def on_gradients(self, state: State) -> None:
        """Before the update: what was told is logged with this step's loss, which these very weights gave."""
        step = state.step + 1
        due = step % self.every == 0
        if due or not self.norms:
            norm, rank = self._measure_weights(state.model, step)
            self.norms.append((step, norm, rank))
            if due:  # else it would be logged with the loss of a later step
                state.extra_metrics |= {"grok/weight_norm": norm} | ({} if math.isnan(rank) else {"grok/embedding_rank": rank})
        self._stop_if_due(state, step)

    def on_step(self, state: State) -> None:
        if (value := state.logged.get("val/acc")) is None:
            return
        self.evaluations.append((state.step, state.logged.get("train/acc", math.nan), value))
        self.end_step = self._find_end_step()
        state.extra_metrics |= self._report(state)

    def on_end(self, state: State) -> None:
        if not self.evaluations or state.folder is None:
            return
        write_json(state.folder / "grokking.json", self.collect_milestones() | {"steps": state.step, "seconds": state.seconds})
        (state.folder / "plots").mkdir(exist_ok=True)
        draw(self, state.name).savefig(state.folder / "plots" / "grokking.png", dpi=120)

    def collect_milestones(self) -> dict[str, Any]:
        """For each level what each split reached, and the delay between the first times, in steps."""
        found: dict[str, Any] = {}
        for level in LEVELS:
            splits = {split: self.find_milestone(split, level) for split in SPLITS}
            train, val = (splits[split].first for split in SPLITS)
            delay = None if train is None or val is None else val - train
            found[f"{level:.2f}"] = {split: vars(told) for split, told in splits.items()} | {"delay": delay}
        return found

    def find_milestone(self, split: str, level: float) -> Milestone:
        return find_milestone([(look[0], look[1 + SPLITS.index(split)]) for look in self.evaluations], level, self.hold)

    def _report(self, state: State) -> dict[str, float]:
        """Words for the end of the run; and what was reached so far, as metrics."""
        facts = self.collect_milestones()
        judged = [split for place, split in enumerate(SPLITS, start=1) if any(look[place] >= 0 for look in self.evaluations)]
        for level in LEVELS:
            state.end_notes[f"grokking {level:.0%}"] = format_level(facts[f"{level:.2f}"], judged, self.evaluations[-1][0])
        return {f"grok/{name}": float(step) for name, step in to_metrics(facts).items()}

    def _find_end_step(self) -> int | None:
        """`after` steps after the evaluation that completed the first row of `hold`."""
        if self.end is None or (held := self.find_milestone("val", self.end).held) is None:
            return None
        steps = [look[0] for look in self.evaluations]
        return steps[steps.index(held) + self.hold - 1] + self.after

    def _stop_if_due(self, state: State, step: int) -> None:
        if self.end_step is not None and step >= self.end_step:
            state.stop = f"val/acc stayed at {self.end:g} or above for {self.hold} evaluations"
            state.resume_override = "callbacks.grokking.end=null"

    def _measure_weights(self, model: nn.Module, step: int) -> tuple[float, float]:
        """The norm of all weights, and the effective rank of the first embedding; NaN without one."""
        norm = math.sqrt(sum(p.double().square().sum() for p in model.parameters()))  # one wait for a device
        embeddings = (module for module in model.modules() if isinstance(module, nn.Embedding))
        if (embedding := next(embeddings, None)) is None or not math.isfinite(norm):
            return norm, math.nan
        values = torch.linalg.svdvals(embedding.weight.float()).cpu()
        first = min(self.spectra, default=step)
        self.spectra = {first: self.spectra.get(first, values), step: values}  # the first and the last
        shares = values.double() / values.double().sum()
        return norm, float(torch.special.entr(shares).sum().exp())


def to_metrics(facts: dict[str, Any]) -> dict[str, int]:
    """What was reached so far, as metrics: train_95 and val_95, held_95 (of what is held back), delay_95."""
    found: dict[str, int] = {}
    for level, told in facts.items():
        percent = f"{float(level):.0%}".removesuffix("%")
        named = {f"{split}_{percent}": told[split]["first"] for split in SPLITS}
        named |= {f"held_{percent}": told["val"]["held"], f"delay_{percent}": told["delay"]}
        found |= {name: step for name, step in named.items() if step is not None}
    return found


def format_level(facts: dict[str, Any], splits: list[str], steps: int) -> str:
    """One level's facts for people, of the splits that were judged."""
    parts = []
    for split in splits:
        first = facts[split]["first"]
        parts.append(f"{split} {f'at step {first:,}' if first is not None else f'not reached in {steps:,}'}")
    said = ", ".join(parts)
    if (delay := facts["delay"]) is not None:
        said += f", {abs(delay):,} steps {'later' if delay >= 0 else 'earlier'}"
    if (val := facts["val"])["first"] is not None:
        held = "not held" if val["held"] is None else f"held from {val['held']:,}"
        said += f"; {held}, lowest since {val['lowest']:.3f}"
    return said


def draw(callback: Grokking, title: str) -> "Figure":
    """Accuracies, norm and rank against the step; the embedding's singular values at the first and the last look."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no window

    figure = Figure(figsize=(12, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    steps = [look[0] for look in callback.evaluations]
    for place, (split, colour) in enumerate(zip(SPLITS, ("tab:gray", "tab:blue"), strict=True), start=1):
        left.plot(steps, [look[place] for look in callback.evaluations], color=colour, label=f"{split}/acc")
        for level, style in zip(LEVELS, (":", "--"), strict=True):
            if (first := callback.find_milestone(split, level).first) is not None:
                left.axvline(first, color=colour, linestyle=style, linewidth=1, label=f"{level:.0%} at {first:,}")
    left.set(xlabel="step", xscale="log", ylabel="accuracy")
    left.legend(fontsize=7)
    steps = [look[0] for look in callback.norms]
    middle.plot(steps, [look[1] for look in callback.norms], color="tab:blue")
    middle.set(xlabel="step", xscale="log", ylabel="norm of the weights")
    other = middle.twinx()
    other.plot(steps, [look[2] for look in callback.norms], color="tab:orange")
    other.set_ylabel("effective rank of the embedding", color="tab:orange")
    for step, values in callback.spectra.items():
        right.plot(range(1, len(values) + 1), values, label=f"step {step:,}")
    right.set(xlabel="singular value of the embedding", yscale="log")
    if callback.spectra:
        right.legend(fontsize=7)
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    return figure
