"""What each preset of a task reaches, beside a trivial predictor: README.md has the result."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from experiments.base import format_table
from experiments.seeds import Row, SeedStudy, format_mean, get_values
from research.contracts import contract

PRESETS = ("lm_bpe", "text_classification", "vision", "segmentation", "tabular", "seq2seq")


@contract
class Tasks(SeedStudy):
    """Every preset as it stands."""

    folder = Path(__file__).parent
    arms: Mapping[str, tuple[str, ...]] = {name: (f"experiment={name}",) for name in PRESETS}

    def make_table(self, rows: Mapping[str, list[Row]]) -> str:
        lines = []
        for name, runs in rows.items():
            seeds = ", ".join(f"{value:.3f}" for value in get_values(runs))
            predictor = f"{float(runs[0]['baseline']):.3f} ({runs[0]['predictor']})" if runs[0]["baseline"] else "-"
            steps = ", ".join(dict.fromkeys(run["steps"] for run in runs))
            lines.append([name, runs[0]["metric"], format_mean(runs), seeds, predictor, steps])
        head = ["preset", "metric", "mean, 95 % interval", "seeds 0, 1, 2", "trivial predictor", "steps"]
        return format_table(head, lines)

    def draw(self, rows: Mapping[str, list[Row]]) -> Figure:
        """Draw each preset's seeds, and its trivial predictor as a dash: bits per byte, and shares from 0 to 1."""
        figure = Figure(figsize=(7, 3), layout="constrained")
        bits, shares = figure.subplots(1, 2, width_ratios=(1, len(rows) - 1))
        bits.set(ylabel="bits per byte", ylim=(0, 3))
        shares.set(ylabel="share", ylim=(0, 1.03))
        for name, runs in rows.items():
            axis, label = bits if name == "lm_bpe" else shares, f"{name.replace('_', chr(10))}\n{runs[0]['metric']}"
            axis.plot([label] * len(runs), get_values(runs), "o", color="tab:blue", alpha=0.6)
            if runs[0]["baseline"]:
                axis.plot(label, float(runs[0]["baseline"]), "_", color="tab:gray", markersize=30, markeredgewidth=2)
            axis.tick_params(axis="x", labelsize=7)
            axis.margins(x=0.15)
        return figure


if __name__ == "__main__":
    Tasks().main()
