"""Byte pairs against bytes for a ternary language model, in equal time and at equal packed size: README.md has the result."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from experiments.base import format_table
from experiments.results import compute_ratio
from experiments.seeds import Row, SeedStudy, format_mean, get_values
from research.contracts import contract

BASE = ("experiment=text", "callbacks.time_limit.seconds=null", "eval_every=1000")
PAIRS = (*BASE, "tokenizer=bpe")
BYTES = "bytes"


@contract
class Tokens(SeedStudy):
    """Bytes, byte pairs of two vocabularies, and a wider network on bytes that is as large, packed, as the second of these.

    Each has the steps that take a minute of one core here, as its steps were measured in turn; the last as many as `bytes`.
    """

    folder = Path(__file__).parent
    arms: Mapping[str, tuple[str, ...]] = {
        BYTES: (*BASE, "steps=435"),
        "bpe_1024": (*PAIRS, "data.tokenizer.vocab_size=1024", "steps=398"),
        "bpe_4096": (*PAIRS, "data.tokenizer.vocab_size=4096", "batch_size=4", "steps=418"),
        "bytes_wide": (*BASE, "model.dim=400", "steps=82"),
        "bytes_wide_long": (*BASE, "model.dim=400", "steps=435"),
    }

    def make_table(self, rows: Mapping[str, list[Row]]) -> str:
        lines, bytes_alone = [], get_values(rows[BYTES])
        for name, runs in rows.items():
            middle, low, high = compute_ratio(get_values(runs), bytes_alone, paired=True)
            ratio = "-" if name == BYTES else f"{middle:.3f} ({low:.3f} to {high:.3f})"
            packed = float(runs[0]["packed_bytes"]) / 1e6
            lines.append([name, format_mean(runs), ratio, runs[0]["steps"], f"{packed:.2f} MB"])
        return format_table(["tokens", "bits per byte", "over bytes", "steps", "packed"], lines)

    def draw(self, rows: Mapping[str, list[Row]]) -> Figure:
        """Draw bits per byte over the packed size, a mark a seed."""
        figure = Figure(figsize=(6, 3.2), layout="constrained")
        axis = figure.subplots()
        for name, runs in rows.items():
            axis.plot(get_values(runs, "packed_bytes"), get_values(runs), "o", alpha=0.6, label=name)
        axis.set(xscale="log", xlabel="bytes of the packed model", ylabel="bits per byte")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
        return figure


if __name__ == "__main__":
    Tokens().main()
