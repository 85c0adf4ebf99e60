"""A callback that prints: a header, a live line (elsewhere than on a terminal plain lines), and results at the end."""

import logging
import shlex
import time
from pathlib import Path

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
from research.preflight.overrides import to_argument
from research.ranges import PositiveFloat, check_settings
from research.training import distributed
from research.training.oom import get_peak_rss_mb
from research.training.state import Callback, State
from research.trigger import higher_is_better

log = logging.getLogger(__name__)
REFRESH = 0.1  # seconds between redraws of the live line; a shorter time slows the steps down


def build_header(state: State) -> list[tuple[str, str]]:
    """Return the rows (name, value) that are printed before the first step."""
    model, data, info = state.model, state.data, state.info
    kind, count = type(model).__name__.removeprefix("FSDP"), sum(p.numel() for p in model.parameters())
    group = state.optimizer.param_groups[0]
    group = group | group.get(INITIAL_SETTINGS, {})  # not the rate that the schedule has set
    keys = ("lr", "grokfast_alpha", "window", "lamb", "weight_decay")
    settings = ", ".join(f"{k.removeprefix('grokfast_')} {group[k]:g}" for k in keys if k in group)
    sizes = f"{len(data.train):,} training and {len(data.val):,} validation"
    hardware = f"{info.device}, {distributed.describe(state.sharded)}, {format_threads(torch.get_num_threads())}"
    rows = [
        ("run", info.name),
        ("model", f"{kind}, {count:,} parameters, {describe_precision(model)}"),
        ("data", f"{data.source}: {sizes} samples, digest {data.digest[:8]}"),
        *(("", note) for note in data.notes),
        ("optimizer", f"{type(state.optimizer).__name__}, {settings}"),
        ("device", f"{hardware}, torch {torch.__version__}"),
    ]
    if state.first_step:
        rows.append(("resumed", f"at step {state.first_step}"))
    return [*rows, ("folder", str(info.folder))] if info.folder else rows


def format_threads(count: int) -> str:
    """Return "1 thread" or "N threads"."""
    return f"{count} thread{'s' * (count != 1)}"


def describe_precision(model: nn.Module) -> str:
    """Return how the weights of the linear layers are quantized, and the size of the model packed and in float32."""
    layers = bitlinear_layers(model).values()
    if not layers:
        return "full precision"
    kind = "ternary" if all(layer.quantizer.is_ternary for layer in layers) else "quantized"
    float32_bytes = 4 * sum(p.numel() for p in model.parameters())
    sizes = f"{count_packed_bytes(model) / 1e3:,.0f} kB packed, {float32_bytes / 1e3:,.0f} kB in float32"
    return f"{sum(layer.weight.numel() for layer in layers):,} of them {kind}: {sizes}"


def format_progress(state: State) -> str:
    """Return one line with the step, the newest metrics, the speed and the time to the last step."""
    progress, info = state.progress, state.info
    fields = [f"step {progress.step}/{info.steps}"]
    styles = {"train/loss": ".4f", "val/loss": ".4f", "val/acc": ".4f", "val/bpb": ".3f", "lr": ".2g", "grad/norm": ".2g"}
    styles.setdefault(info.monitor, ".4f")
    fields += [f"{key} {progress.metrics[key]:{style}}" for key, style in styles.items() if key in progress.metrics]
    seconds_per_step = (progress.seconds - state.seconds_before) / max(1, progress.step - state.first_step)
    left = (info.steps - progress.step) * seconds_per_step
    fields += [f"{state.compute_throughput():,.0f} {state.data.unit}s/s", f"ETA {left:.0f} s"]
    return "  ".join(fields)


def build_progress_bar(state: State) -> Table:
    """Return the live line: a bar, and the text of `format_progress`."""
    row = Table.grid(padding=(0, 1))
    text = Text(format_progress(state), overflow="ellipsis", no_wrap=True)
    row.add_row(ProgressBar(state.info.steps, state.progress.step, width=20), text)
    return row


def build_summary(state: State) -> list[tuple[str, str]]:
    """Return the rows (name, value) that are printed at the end: results, baselines, time, and the next commands."""
    progress, info = state.progress, state.info
    key, rows = info.monitor, []
    if key in progress.best:
        rows.append((f"best {key}", f"{progress.best[key]:.4f} at step {progress.best['step']:.0f}"))
        reason = f" ({state.stop})" if state.stop else ""
        rows.append((f"final {key}", f"{progress.metrics[key]:.4f} at step {progress.step}{reason}"))
        better = "higher" if higher_is_better(key, info.directions) else "lower"
        baselines = {name: value for name, value in state.data.baseline.items() if name.startswith(key)}
        rows += [(f"baseline {name}", f"{value:.4f} ({better} is better)") for name, value in baselines.items()]
    rows += state.end_notes.items()
    speed = f"{state.compute_throughput():,.0f} {state.data.unit}s/s"
    rows.append(("time", f"{progress.seconds:.1f} s, {speed}, peak memory {get_peak_rss_mb():,.0f} MB"))
    if info.folder is None:
        return rows
    # To train further, the steps and the setting that ended the run get new values.
    ended_by = [state.resume_override.partition("=")[0] + "="] if state.resume_override else []
    longer = format_command(info.folder, "steps=", "trainer.steps=", *ended_by)
    further = f"{to_argument('resume', str(info.folder))} trainer.steps={2 * info.steps} {state.resume_override}".rstrip()
    rows += [("folder", str(info.folder)), ("resume with", f"{longer} {further}")]
    return [*rows, ("sweep", f"{format_command(info.folder)} -m seed=0,1,2")]


def format_command(folder: Path, *left_out: str) -> str:
    """Return the command line of a run without resume and the overrides that begin with one of `left_out`."""
    path, world_size = folder / "overrides.txt", distributed.world_size()
    overrides = path.read_text().split("\n") if path.exists() else []
    launcher = ["torchrun", "--nproc-per-node", str(world_size)] if world_size > 1 else ["python"]
    return shlex.join([*launcher, "train.py", *(o for o in overrides if o and not o.startswith(("resume.", *left_out)))])


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
                self.live.update(build_progress_bar(state), refresh=True)
            else:
                self.terminal.print(format_progress(state), markup=False, soft_wrap=True)

    def on_end(self, state: State) -> None:
        if self.live:
            self.live.update(build_progress_bar(state), refresh=True)
            self.live.stop()
        if not state.error:
            self._print(build_summary(state), "Done")

    def _print(self, rows: list[tuple[str, str]], title: str) -> None:
        """Print one row a line, never wrapped, so that a command can be copied and a program can read the line; log it too."""
        if self.terminal.is_terminal and not self.in_sweep:
            self.terminal.print(title, style="bold")
        width = max(16, *(len(name) for name, _ in rows))
        for name, value in rows:
            log.info("%s: %s", name, value)
            if not self.in_sweep:
                self.terminal.print(Text.assemble((f"{name:<{width}} ", "cyan"), value), soft_wrap=True)
