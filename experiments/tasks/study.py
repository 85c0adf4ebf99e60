"""What each preset of a task reaches, beside a trivial predictor: README.md has the result."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from experiments.base import format_table
from experiments.seeds import Row, SeedStudy, format_mean, get_values

PRESETS = ("lm_bpe", "text_classification", "vision", "segmentation", "tabular", "seq2seq")


class Tasks(SeedStudy):
    """Every preset as it stands."""

    folder = Path(__file__).parent
    arms: Mapping[str, tuple[str, ...]] = {name: (f"experiment={name}",) for name in PRESETS}

    def make_table(self, rows: Mapping[str, list[Row]]) -> str:
        lines = []
        for name, runs in rows.items():
            seeds = ", ".join(f"{value:.3f}" for value in get_values(runs))
            predictor = f"{float(runs[0]['baseline']):.3f} ({runs[0]['predictor']})" if runs[0]["baseline"] else "-"
            seconds = max(get_values(runs, "seconds"))
            lines.append([name, runs[0]["metric"], format_mean(runs), seeds, predictor, runs[0]["steps"], f"{seconds:.0f} s"])
        head = ["preset", "metric", "mean, 95 % interval", "seeds 0, 1, 2", "trivial predictor", "steps", "at most"]
        return format_table(head, lines)

    def draw(self, rows: Mapping[str, list[Row]]) -> Figure:
        """Draw each preset's seeds, and the trivial predictor as a line, on an axis of its own."""
        figure = Figure(figsize=(7, 3), layout="constrained")
        for axis, (name, runs) in zip(figure.subplots(1, len(rows)), rows.items(), strict=True):
            axis.plot([0] * len(runs), get_values(runs), "o", color="tab:blue", alpha=0.6)
            if runs[0]["baseline"]:
                axis.axhline(float(runs[0]["baseline"]), color="tab:gray", linestyle="--")
            axis.set(title=name.replace("_", "\n"), xlabel=runs[0]["metric"], xticks=[])
            axis.title.set_fontsize(8)
            axis.margins(y=0.3)
        return figure


if __name__ == "__main__":
    Tasks().main()
