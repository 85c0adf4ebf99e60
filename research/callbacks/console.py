"""A callback that prints: a header, a live line (elsewhere than on a terminal plain lines), and results at the end."""

import logging
import signal
import sys
import time
from pathlib import Path

import torch
from rich.cells import cell_len, set_cell_size
from rich.console import Console as Terminal
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from torch import nn

from research.cli import format_count, format_duration
from research.composition.overrides import format_command, to_argument
from research.contracts import contract
from research.nn.bitlinear import bitlinear_layers
from research.nn.lowrank import count_learning
from research.nn.packed import count_packed_bytes
from research.optim.param_groups import INITIAL_SETTINGS
from research.options.trigger import higher_is_better, shorten_name
from research.ranges import PositiveFloat, check_settings
from research.training import distributed
from research.training.oom import get_peak_rss_mb
from research.training.outcome import describe_data
from research.training.state import Callback, State

log = logging.getLogger(__name__)
DROPPED_FIRST = ("grad/norm", "lr")  # columns, where the terminal is too narrow for all; then from right to left
MIN_BAR, MAX_BAR = 8, 20  # characters of the bar
MIN_NAME = 8  # characters that stay of the monitor's name
REFRESH = 0.1  # seconds between redraws of the live line; a shorter time slows the steps down


def build_header(state: State) -> list[tuple[str, str]]:
    """Return the rows (name, value) that are printed before the first step."""
    model, data, info = state.model, state.data, state.info
    kind, count = type(model).__name__.removeprefix("FSDP"), sum(p.numel() for p in model.parameters())
    learning, group = count_learning(model), state.optimizer.param_groups[0]
    group = group | group.get(INITIAL_SETTINGS, {})  # not the rate that the schedule has set
    keys = ("lr", "grokfast_alpha", "window", "lamb", "weight_decay")
    settings = ", ".join(f"{k.removeprefix('grokfast_')} {group[k]:g}" for k in keys if k in group)
    hardware = f"{info.device}, {distributed.describe(state.sharded)}, {format_count(torch.get_num_threads(), 'thread')}"
    rows = [
        ("run", info.name),
        ("model", f"{kind}, {count:,} parameters, {describe_precision(model)}"),
        *([("learn", f"{learning:,} of them ({learning / count:.2%}), on a frozen base")] if learning < count else []),
        ("data", describe_data(data)),
        *(("", note) for note in data.notes),
        ("optimizer", f"{type(state.optimizer).__name__}, {settings}"),
        ("device", f"{hardware}, torch {torch.__version__}"),
    ]
    if state.first_step:
        rows.append(("resumed", f"at step {state.first_step}"))
    return [*rows, ("folder", str(info.folder))] if info.folder else rows


def describe_precision(model: nn.Module) -> str:
    """Return how the weights of the linear layers are quantized, and the size of the model packed and in float32."""
    layers = bitlinear_layers(model).values()
    if not layers:
        return "full precision"
    kind = "ternary" if all(layer.quantizer.is_ternary for layer in layers) else "quantized"
    float32_bytes = 4 * sum(p.numel() for p in model.parameters())
    sizes = f"{count_packed_bytes(model) / 1e3:,.0f} kB packed, {float32_bytes / 1e3:,.0f} kB in float32"
    return f"{sum(layer.weight.numel() for layer in layers):,} of them {kind}: {sizes}"


def format_progress(state: State, width: int | None = None) -> str:
    """Return one line with the step, the newest metrics, the speed and the time to the last step.

    In a `width` of cells the columns that matter least are left out. The step, the monitor and the time left stay; where
    these have no room the monitor's name is shortened.
    """
    progress, info = state.progress, state.info
    styles = {"train/loss": ".4f", "val/loss": ".4f", "val/acc": ".4f", "val/bpb": ".3f"} | {info.monitor: ".4f"}
    styles |= {"val/bpb": ".3f", "lr": ".2g", "grad/norm": ".2g"}
    fields = {key: f"{key} {progress.metrics[key]:{style}}" for key, style in styles.items() if key in progress.metrics}
    fields = {"step": f"step {progress.step}/{info.steps}"} | fields
    fields["speed"] = f"{state.compute_throughput():,.0f} {state.data.unit}s/s"
    if steps := progress.step - state.first_step:
        seconds = (info.steps - progress.step) * (progress.seconds - state.seconds_before) / steps
        fields["ETA"] = f"ETA {format_duration(seconds)}"
    for key in [key for key in (*DROPPED_FIRST, *reversed(fields)) if key not in ("step", info.monitor, "ETA")]:
        if width is not None and cell_len("  ".join(fields.values())) > width:
            fields.pop(key, None)
    line = "  ".join(fields.values())
    if width is None or cell_len(line) <= width:
        return line
    line = line.removeprefix("step ")
    room = cell_len(info.monitor) - max(0, cell_len(line) - width)
    return line.replace(info.monitor, shorten_name(info.monitor, max(MIN_NAME, room)), 1)


def build_progress_bar(state: State, width: int) -> Table:
    """Return the live line of `width` characters at most: the text of `format_progress`, and a bar where it has room."""
    row = Table.grid(padding=(0, 1))
    text = format_progress(state, width - MIN_BAR - 1)
    bar_width = min(MAX_BAR, width - cell_len(text) - 1)
    has_bar = bar_width >= MIN_BAR and "…" not in text  # the monitor's whole name comes first
    bar = [ProgressBar(state.info.steps, state.progress.step, width=bar_width)] if has_bar else []
    row.add_row(*bar, Text(text if bar else format_progress(state, width), overflow="ellipsis", no_wrap=True))
    return row


@contract
def describe_end(state: State) -> str:
    """Return how the run ended: "Done", or at which step it was stopped, and by which signal or for what reason."""
    reason = signal.Signals(state.signum).name if state.signum else state.stop
    steps = f"{state.progress.step} of {state.info.steps}"
    return f"Stopped at step {steps} ({reason})" if reason and state.progress.step < state.info.steps else "Done"


def build_summary(state: State) -> list[tuple[str, str]]:
    """Return the rows (name, value) that are printed at the end: results, baselines, time, and the next commands."""
    progress, info = state.progress, state.info
    key, rows = info.monitor, []
    if key in progress.best:
        rows.append((f"best {key}", f"{progress.best[key]:.4f} at step {progress.best['step']:.0f}"))
        reason = f" ({state.stop})" if state.stop else ""
        at = f"at step {state.last_eval_step}" if state.last_eval_step else f"before step {state.first_step + 1}"
        rows.append((f"final {key}", f"{progress.metrics[key]:.4f} {at}{reason}"))
        if (test := key.replace("val/", "test/", 1)) in progress.metrics:
            rows.append((f"final {test}", f"{progress.metrics[test]:.4f} (nothing was chosen by it)"))
        better = "higher" if higher_is_better(key, info.directions) else "lower"
        baselines = {name: value for name, value in state.data.baseline.items() if name.startswith(key)}
        rows += [(f"baseline {name}", f"{value:.4f} ({better} is better)") for name, value in baselines.items()]
    rows += state.end_notes.items()
    speed = f"{state.compute_throughput():,.0f} {state.data.unit}s/s"
    rows.append(("time", f"{format_duration(progress.seconds)}, {speed}, peak memory {get_peak_rss_mb():,.0f} MB"))
    if info.folder is None:
        return rows
    rows += [("folder", str(info.folder)), ("resume with", format_resume(state, info.folder))]
    return rows if state.signum else [*rows, ("sweep", f"{repeat_command(info.folder)} -m seed=0,1,2")]


def format_resume(state: State, folder: Path) -> str:
    """Return the command that goes on to the steps that were asked for, or where they are done to twice as many.

    The setting that ended the run gets a new value.
    """
    replaced, further = [], [state.resume_override] if state.resume_override else []
    if state.progress.step >= state.info.steps:
        config = state.info.config
        is_own = bool(config) and config.get("steps") != config["trainer"]["steps"]  # trainer=debug has a number of its own
        key = "trainer.steps" if is_own else "steps"
        replaced, further = ["steps=", "trainer.steps=", "epochs="], [f"{key}={2 * state.info.steps}", *further]
    replaced += [f"{word.partition('=')[0]}=" for word in further]
    return " ".join([repeat_command(folder, *replaced), to_argument("resume", str(folder)), *further])


def repeat_command(folder: Path, *left_out: str) -> str:
    """Return the command line of a run without resume and the overrides that begin with one of `left_out`."""
    path = folder / "overrides.txt"
    overrides = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    return format_command(overrides, left_out, distributed.world_size(), sys.argv)


class Console(Callback):
    """Print a live line on a terminal, elsewhere a line every `every` seconds; log each evaluation to train.log."""

    def __init__(self, every: PositiveFloat = 5.0, terminal: Terminal | None = None) -> None:
        check_settings("callbacks.console", Console.__init__.__annotations__, locals())
        self.every, self.terminal = every, terminal or Terminal(highlight=False)
        self.live: Live | None = None
        self.in_sweep, self.last_refresh = False, 0.0

    def on_start(self, state: State) -> None:
        self.in_sweep = state.info.in_sweep  # a sweep prints one line a trial instead
        self._print(build_header(state), "Grokbit")
        if self.terminal.is_terminal:
            self.live = Live("", console=self.terminal, auto_refresh=False)
            self.live.start()
        self.last_refresh = time.monotonic()

    def on_step(self, state: State) -> None:
        if state.info.monitor in state.logged:
            log.info(format_progress(state))
        now, interval = time.monotonic(), REFRESH if self.live else self.every
        if now - self.last_refresh >= interval or (state.progress.step == state.info.steps and not self.in_sweep):
            self.last_refresh = now
            if self.live:
                self.live.update(build_progress_bar(state, self.terminal.width), refresh=True)
            else:
                self.terminal.print(format_progress(state), markup=False, soft_wrap=True)

    def on_end(self, state: State) -> None:
        if self.live:
            self.live.update(build_progress_bar(state, self.terminal.width), refresh=True)
            self.live.stop()
        if not state.error:
            self._print(build_summary(state), describe_end(state))

    def _print(self, rows: list[tuple[str, str]], title: str) -> None:
        """Print one row a line, never wrapped, so that a command can be copied and a program can read the line; log it too."""
        log.info("%s", title)
        if (self.terminal.is_terminal or title.startswith("Stopped")) and not self.in_sweep:
            self.terminal.print(title, style="bold", markup=False, soft_wrap=True)
        width = max(16, *(cell_len(name) for name, _ in rows))
        for name, value in rows:
            log.info("%s: %s", name, value)
            if not self.in_sweep:
                self.terminal.print(Text.assemble((f"{set_cell_size(name, width)} ", "cyan"), value), soft_wrap=True)
