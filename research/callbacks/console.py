"""What the user sees: a header, one live line (or a plain line now and then), and a table at the end."""

import logging
import shlex
import time

import torch
from rich.console import Console as Terminal
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from torch import nn

from research.nn.bitlinear import bitlinear_layers
from research.nn.packed import count_packed_bytes
from research.optim.param_groups import INITIAL_SETTINGS
from research.ranges import PositiveFloat
from research.run_dir import get_peak_rss_mb
from research.training import distributed
from research.training.state import Callback, State
from research.trigger import higher_is_better

log = logging.getLogger(__name__)
REFRESH = 0.1  # seconds; a faster eye is not worth the steps


def build_header(state: State) -> list[tuple[str, str]]:
    """What is about to be trained, on what, with what, where."""
    model, data = state.model, state.data
    count = sum(p.numel() for p in model.parameters())
    group = state.optimizer.param_groups[0]
    group = group | group.get(INITIAL_SETTINGS, {})  # a schedule moves lr
    keys = ("lr", "grokfast_alpha", "window", "lamb", "weight_decay")
    settings = ", ".join(f"{k.removeprefix('grokfast_')} {group[k]:g}" for k in keys if k in group)
    sizes = f"{len(data.train):,} training and {len(data.val):,} validation"
    rows = [
        ("run", state.info.name),
        (
            "model",
            f"{type(model).__name__.removeprefix('FSDP')}, {count:,} parameters, {describe_precision(model)}",
        ),
        ("data", f"{data.source}: {sizes} samples, digest {data.digest[:8]}"),
        *(("", note) for note in data.notes),
        ("optimizer", f"{type(state.optimizer).__name__}, {settings}"),
        (
            "device",
            f"{state.info.device}, {state.info.processes}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        ),
    ]
    if state.first_step:
        rows.append(("resumed", f"at step {state.first_step}"))
    return [*rows, ("folder", str(state.info.folder))] if state.info.folder else rows


def describe_precision(model: nn.Module) -> str:
    """What the weights of its linear layers are, and what that saves."""
    bits = bitlinear_layers(model).values()
    if not bits:
        return "full precision"
    kind = "ternary" if all(layer.quantizer.is_ternary for layer in bits) else "rounded"
    full = 4 * sum(p.numel() for p in model.parameters())
    sizes = f"{count_packed_bytes(model) / 1e3:,.0f} kB packed, {full / 1e3:,.0f} kB in float32"
    return f"{sum(layer.weight.numel() for layer in bits):,} of them {kind}: {sizes}"


def format_progress(state: State) -> str:
    """One line: where the run is and how it does."""
    fields = [f"step {state.progress.step}/{state.info.steps}"]
    styles = {"train/loss": ".4f", "val/loss": ".4f", "val/acc": ".4f", "val/bpb": ".3f", "lr": ".2g", "grad/norm": ".2g"}
    fields += [f"{key} {state.progress.metrics[key]:{style}}" for key, style in styles.items() if key in state.progress.metrics]
    steps = state.progress.step - state.first_step
    left = (state.info.steps - state.progress.step) * (state.progress.seconds - state.seconds_before) / max(1, steps)
    fields += [f"{state.compute_throughput():,.0f} {state.data.unit}s/s", f"ETA {left:.0f} s"]
    return "  ".join(fields)


def build_progress_bar(state: State) -> Table:
    """The live line: how far the run is, drawn and told."""
    row = Table.grid(padding=(0, 1))
    row.add_row(
        ProgressBar(state.info.steps, state.progress.step, width=20),
        Text(format_progress(state), overflow="ellipsis", no_wrap=True),
    )
    return row


def build_summary(state: State) -> list[tuple[str, str]]:
    """What came out, against what a guesser reaches, and where to go next."""
    key, rows = state.info.monitor, []
    if key in state.progress.best:
        rows.append((f"best {key}", f"{state.progress.best[key]:.4f} at step {state.progress.best['step']:.0f}"))
        reason = f" ({state.stop})" if state.stop else ""
        rows.append((f"final {key}", f"{state.progress.metrics[key]:.4f} at step {state.progress.step}{reason}"))
        better = "higher" if higher_is_better(key) else "lower"
        rows += [
            (f"baseline {k}", f"{v:.4f} ({better} is better)") for k, v in state.data.baseline.items() if k.startswith(key)
        ]
    rows += state.end_notes.items()
    speed = f"{state.compute_throughput():,.0f} {state.data.unit}s/s"
    rows.append(("time", f"{state.progress.seconds:.1f} s, {speed}, {get_peak_rss_mb():,.0f} MB at most"))
    if state.info.folder is None:
        return rows
    asked = (
        (state.info.folder / "overrides.txt").read_text().split("\n") if (state.info.folder / "overrides.txt").exists() else []
    )
    start = ["torchrun", "--nproc-per-node", str(distributed.world_size())] if distributed.world_size() > 1 else ["python"]
    command = shlex.join([*start, "train.py", *(o for o in asked if o and not o.startswith("resume."))])
    lifted = [state.resume_override.partition("=")[0] + "="] if state.resume_override else []
    moved = ("resume.", "steps=", "trainer.steps=", *lifted)
    longer = shlex.join([*start, "train.py", *(o for o in asked if o and not o.startswith(moved))])
    further = f"trainer.steps={2 * state.info.steps} {state.resume_override}".rstrip()
    return [
        *rows,
        ("folder", str(state.info.folder)),
        ("go on", f"{longer} resume={shlex.quote(str(state.info.folder))} {further}"),
        ("sweep", f"{command} -m seed=0,1,2"),
    ]


class Console(Callback):
    """On a terminal one live line, elsewhere a line every `every` seconds; each evaluation also goes to train.log."""

    def __init__(self, every: PositiveFloat = 5.0, terminal: Terminal | None = None) -> None:
        self.every, self.terminal = every, terminal or Terminal(highlight=False)
        self.live: Live | None = None
        self.in_sweep = False
        self.last_refresh = 0.0

    def on_start(self, state: State) -> None:
        for name, value in build_header(state):
            log.info("%s: %s", name, value)
        self.in_sweep = state.info.in_sweep  # a sweep has lines of its own: one for each run
        if not self.in_sweep:
            self._print(build_header(state), "Grokbit")
        if self.terminal.is_terminal:
            self.live = Live("", console=self.terminal, auto_refresh=False)
            self.live.start()
        self.last_refresh = time.monotonic()

    def on_step(self, state: State) -> None:
        if state.info.monitor in state.logged:
            log.info(format_progress(state))
        now, patience = time.monotonic(), REFRESH if self.live else self.every
        if now - self.last_refresh >= patience or (state.progress.step == state.info.steps and not self.in_sweep):
            self.last_refresh = now
            if self.live:
                self.live.update(build_progress_bar(state), refresh=True)
            else:
                self.terminal.print(format_progress(state), markup=False, soft_wrap=True)

    def on_end(self, state: State) -> None:
        if self.live:
            self.live.update(build_progress_bar(state), refresh=True)
            self.live.stop()
        if not state.error:
            for name, value in build_summary(state):
                log.info("%s: %s", name, value)
            if not self.in_sweep:
                self._print(build_summary(state), "Done")

    def _print(self, rows: list[tuple[str, str]], title: str) -> None:
        """One fact a line, never wrapped: for people who copy a command, for logs and for other programs."""
        if self.terminal.is_terminal:
            self.terminal.print(title, style="bold")
        width = max(16, *(len(name) for name, _ in rows))
        for name, value in rows:
            self.terminal.print(Text.assemble((f"{name:<{width}} ", "cyan"), value), soft_wrap=True)
