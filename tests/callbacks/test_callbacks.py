"""The callbacks: what the console prints, what ends a run, what is logged of gradients and ternary weights."""

import io
import math
import re
import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fitting import make_state
from rich.cells import cell_len
from rich.console import Console as Terminal
from torch import nn

from research.callbacks.console import (
    Console,
    build_progress_bar,
    build_summary,
    describe_end,
    describe_precision,
    format_progress,
)
from research.callbacks.curve import Curve
from research.callbacks.early_stop import EarlyStop
from research.callbacks.gradients import GradientHealth
from research.callbacks.grokking import Grokking
from research.callbacks.ternary import FACTS, Ternary, draw
from research.callbacks.time_limit import TimeLimit
from research.composition.overrides import to_argument
from research.data.modular import modular
from research.losses import last_token
from research.models.transformer import Transformer
from research.nn.bitlinear import BitLinear, bitlinear_layers
from research.nn.packed import count_packed_bytes
from research.optim.schedules import constant
from research.run_dir import Summary
from research.training.outcome import is_finished
from research.training.state import Callback, State
from research.training.trainer import Trainer

DATA = modular(p=7)


def fit(*callbacks: Callback, steps: int = 6, folder: Path | None = None, monitor: str = "val/acc", lr: float = 1e-3) -> State:
    torch.manual_seed(0)
    model = Transformer(DATA.shape, 16, 1, 2, BitLinear)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    trainer = Trainer(steps, 8, eval_every=2, log_every=1, device="cpu")
    return trainer.fit(
        trainer.setup(model, optimizer, constant, last_token, DATA, callbacks, monitor=monitor, name="trial", folder=folder)
    )


def test_the_console_prints_plain_lines_without_a_terminal(tmp_path: Path) -> None:
    output = io.StringIO()
    fit(Console(every=1e-9, terminal=Terminal(file=output, width=60)), folder=tmp_path)
    text = output.getvalue()
    assert "\x1b" not in text, "escape codes"
    lines = text.splitlines()
    assert re.match(r"run +trial$", lines[0])
    for word in ("Transformer", "ternary", "kB packed", "training and", "AdamW", "lr 0.001", "1 thread,", str(tmp_path)):
        assert word in text
    steps = [line for line in lines if line.startswith("step ")]
    assert [int(line.split("/")[0].removeprefix("step ")) for line in steps] == [1, 2, 3, 4, 5, 6]
    for name in ("train/loss", "val/loss", "val/acc", "lr", "grad/norm", "samples/s", "ETA"):
        assert name in steps[-1]
    end = "\n".join(lines[lines.index(steps[-1]) :])
    for word in ("best val/acc", "final val/acc", "baseline val/acc", "time", "peak memory", "resume=", "-m seed=0,1,2"):
        assert word in end


@pytest.mark.parametrize(
    ("linear", "start"),
    [
        (nn.Linear(32, 32), "full precision"),
        (BitLinear(32, 32), "1,024 of them ternary: "),
        (BitLinear(32, 32, weight_bits=2), "1,024 of them quantized: "),
    ],
    ids=["full", "ternary", "2 bits"],
)
def test_the_precision_of_the_weights_is_described(linear: nn.Module, start: str) -> None:
    assert describe_precision(nn.Sequential(nn.Linear(4, 4), linear)).startswith(start)


def test_a_line_is_printed_every_few_seconds() -> None:
    output = io.StringIO()
    fit(Console(every=1000, terminal=Terminal(file=output, width=60)))
    assert [line[:8] for line in output.getvalue().splitlines() if line.startswith("step ")] == ["step 6/6"]


def test_a_terminal_has_one_live_line() -> None:
    screen = io.StringIO()
    fit(Console(terminal=Terminal(file=screen, width=250, force_terminal=True, color_system=None)))
    text = screen.getvalue()
    assert "\x1b[" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "\n")
    assert "step 6/6" in plain
    assert "━" in plain, "no bar"
    assert "Done" in plain


def test_a_failed_run_prints_no_results() -> None:
    output = io.StringIO()
    with pytest.raises(FloatingPointError, match=r"not finite at step 1, with lr=1e\+30"):
        fit(Break(), Console(terminal=Terminal(file=output)), lr=1e30)
    assert "best val/acc" not in output.getvalue()


class Break(Callback):
    def on_start(self, state: State) -> None:
        nn.init.constant_(next(state.model.parameters()), float("nan"))


def test_early_stop_waits_for_enough_evaluations_in_a_row() -> None:
    assert fit(EarlyStop(target=100.0), monitor="val/loss").stop == "val/loss reached 100"
    assert fit(EarlyStop(target=100.0, hold=2), monitor="val/loss").progress.step == 4
    assert fit(EarlyStop(target=1.1)).progress.step == 6
    assert fit(EarlyStop()).stop == ""


class Pretend(Callback):
    """Gives the metric these values instead, an evaluation each."""

    def __init__(self, *values: float) -> None:
        self.values = iter(values)

    def on_step(self, state: State) -> None:
        if "val/acc" in state.logged:
            state.logged["val/acc"] = next(self.values)


@pytest.mark.parametrize(
    ("values", "patience", "evaluations"),
    [
        ((0.1, 0.2, 0.2, 0.1, 0.3), 2, 4),  # as good is not better
        ((0.1, 0.0, 0.2, 0.1, 0.3), 2, 5),  # a better one counts anew
        ((float("nan"), 0.1, float("nan"), 0.0, 0.3), 2, 4),  # NaN is never better, and anything is better than NaN
        ((0.3, 0.2, 0.4, 0.5, 0.6), 1, 2),
        ((float("nan"),) * 5, 2, 2),
    ],
)
def test_patience_counts_evaluations_without_a_better_value(values: tuple[float, ...], patience: int, evaluations: int) -> None:
    state = fit(Pretend(*values), EarlyStop(patience=patience), steps=10)
    assert state.progress.step == 2 * evaluations
    assert bool(state.stop) == (evaluations < 5)
    assert not state.stop or state.stop.endswith(f" in {patience} evaluation{'s' * (patience > 1)}")


@pytest.mark.parametrize(
    ("callback", "further", "remaining"),
    [
        (EarlyStop(target=0.0), ["target=null"], ["callbacks.grokking.end=0", "steps=6"]),
        (Grokking(hold=1, end=1e-9), ["callbacks.grokking.end=null"], ["target=0", "steps=6"]),
        (TimeLimit(1e-9), ["callbacks.time_limit.seconds=null"], ["target=0", "callbacks.grokking.end=0", "steps=6"]),
    ],
)
def test_the_resume_command_overrides_what_ended_the_run(
    callback: Callback, further: list[str], remaining: list[str], tmp_path: Path
) -> None:
    """And nothing else that was requested: the steps that were asked for are to come."""
    (tmp_path / "overrides.txt").write_text("lr=1e-3\ntarget=0\ncallbacks.grokking.end=0\nsteps=6\n")
    state = fit(callback, steps=40, folder=tmp_path)
    assert state.progress.step < 40
    words = dict(build_summary(state))["resume with"].split()
    assert words == ["python", "train.py", "lr=1e-3", *remaining, f"resume={tmp_path}", *further]


class Interrupt(Callback):
    """A SIGTERM after some steps."""

    def on_step(self, state: State) -> None:
        if state.progress.step == 5:
            signal.raise_signal(signal.SIGTERM)


def test_a_stopped_run_prints_where_and_what_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """To what was asked for: its steps, its options, its own folder of options, each word quoted."""
    output = io.StringIO()
    caplog.set_level("INFO")
    folder = tmp_path / "it's a run"
    folder.mkdir()
    (folder / "overrides.txt").write_text("optim=mine\ntrainer.steps=40\nname='a b'\nresume.path=auto\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", "--config-dir", "my conf", "optim=mine"])
        state = fit(Interrupt(), Console(every=1000, terminal=Terminal(file=output, width=60)), steps=40, folder=folder)
    assert state.signum == signal.SIGTERM
    lines = output.getvalue().splitlines()
    end = lines.index("Stopped at step 5 of 40 (SIGTERM)")
    rows = {line[:16].strip(): line[17:] for line in lines[end + 1 :]}
    assert rows["final val/acc"].endswith(" at step 4"), "the last that was evaluated"
    words = ["python", "train.py", "--config-dir=my conf", "optim=mine", "trainer.steps=40", "name='a b'"]
    assert shlex.split(rows["resume with"]) == [*words, shlex.split(to_argument("resume", str(folder)))[0]]
    assert "sweep" not in rows
    assert "Stopped at step 5 of 40 (SIGTERM)" in caplog.messages


def test_a_run_that_was_done_goes_on_to_twice_the_steps(tmp_path: Path) -> None:
    (tmp_path / "overrides.txt").write_text("lr=1e-3\nsteps=6\n")
    state = fit(steps=6, folder=tmp_path)
    assert dict(build_summary(state))["resume with"] == f"python train.py lr=1e-3 resume={tmp_path} steps=12"
    state.info = replace(state.info, config={"steps": 2000, "trainer": {"steps": 6}})  # trainer=debug has steps of its own
    assert dict(build_summary(state))["resume with"].endswith(f"resume={tmp_path} trainer.steps=12")
    assert describe_end(state) == "Done"


LONG = [f"val/{'share_of_words_that_are_right_' * 2}at_5", f"val/{'正确率' * 15}"]  # the letters of the second take two cells


@pytest.mark.parametrize("monitor", ["val/acc", "val/bpb", "val/calibration_error", *LONG])
@pytest.mark.parametrize("width", [60, 80, 100, 250])
def test_the_monitor_and_the_time_left_fit_any_width(width: int, monitor: str) -> None:
    """Other columns give way, and no line wraps; a long name of the monitor loses its middle."""
    state = make_state(nn.Linear(2, 2), data=DATA, steps=100_000)
    state.info = replace(state.info, monitor=monitor)
    state.progress.step, state.progress.seconds = 12_345, 1058.0
    values = {"train/loss": 2.3456, "val/loss": 2.4567, "val/acc": 0.9876, "val/bpb": 1.234, "lr": 1e-3, "grad/norm": 1.3}
    state.progress.metrics = {**values, monitor: 0.9123}
    screen = io.StringIO()
    terminal = Terminal(file=screen, width=width, force_terminal=True, color_system=None)
    terminal.print(build_progress_bar(state, terminal.width))
    (line,) = screen.getvalue().splitlines()
    assert cell_len(line) <= width
    assert "12345/100000  " in line
    assert f"{monitor[-4:]} 0.912" in line
    assert (f"{monitor} " in line) == (monitor not in LONG or width > 100)
    assert line.rstrip().endswith("ETA 2 h 05 min")
    if monitor not in LONG:
        assert ("train/loss" in line, "grad/norm" in line) == (width >= 80 + 20 * (len(monitor) > 9), width == 250)
        assert "…" not in line
    full = format_progress(state)
    assert all(f"{key} " in full for key in state.progress.metrics), "where it is piped, nothing is left out"


def test_a_run_goes_on_where_its_time_limit_ended_it() -> None:
    """But not a sweep's trial, nor a run that reached what it was to reach."""
    summaries = [Summary("FINISHED", stop=fit(callback).stop) for callback in (TimeLimit(1e-9), EarlyStop(target=0.0))]
    assert [is_finished(summary, in_sweep) for summary in summaries for in_sweep in (False, True)] == [False, True, True, True]


def test_the_last_step_of_a_time_limit_is_evaluated() -> None:
    state = fit(TimeLimit(1e-9))
    assert state.progress.step == 2
    assert "time limit of 1e-09 s" in state.stop
    assert "val/acc" in state.progress.metrics


def test_the_curves_are_a_png(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Numbers that matplotlib cannot draw end no run."""
    state = fit(curve := Curve(), folder=tmp_path)
    assert (tmp_path / "plots" / "curves.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "plots" / "curves.png").unlink()
    fit(Pretend(1e308, -1e308, 1e308), Curve(), folder=tmp_path)
    assert not list((tmp_path / "plots").iterdir())
    assert "plots/curves.png could not be drawn: " in caplog.text
    panels = [(axis.get_ylabel(), axis.get_yscale()) for axis in curve._draw(state).axes]
    assert panels == [("loss (nats)", "log"), ("val/acc", "linear")]
    state.info = replace(state.info, monitor="val/loss")
    curve.history["val/loss"] = [(2, -1.0)]
    (panel,) = curve._draw(state).axes
    assert panel.get_yscale() == "linear"


def test_gradient_norms_and_zeros_are_logged_by_block(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Norms are those before clipping."""

    class GradientRecorder(Callback):
        def on_gradients(self, state: State) -> None:
            grads = {name: p.grad.clone() for name, p in state.model.named_parameters() if p.grad is not None}
            self.recorded = grads, float(state.progress.grad_norm)

    recorder = GradientRecorder()
    state = fit(GradientHealth(every=2, vanishing=1e3, exploding=1e9, histogram=1), recorder, steps=4, folder=tmp_path)
    grads, norm = recorder.recorded
    clipped = torch.stack([g.norm() for g in grads.values()]).norm().item()
    block = torch.stack([g.norm() for name, g in grads.items() if name.startswith("blocks.0.")]).norm().item()
    assert state.progress.metrics["grad/norm/blocks.0"] == pytest.approx(block * norm / clipped, rel=1e-4)
    assert state.progress.metrics["grad/norm/embed"] == pytest.approx(
        grads["embed.weight"].norm().item() * norm / clipped, rel=1e-4
    )
    assert state.progress.metrics["grad/zero/embed"] == pytest.approx((grads["embed.weight"] == 0).float().mean().item())
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["gradients_00000002.png", "gradients_00000004.png"]
    warnings = [record.message for record in caplog.records if "callbacks.gradients.vanishing is 1e+03" in record.message]
    assert len(warnings) == len({line.split()[3] for line in warnings}) > 1, "one warning a block"


def test_quantization_facts_are_logged_by_layer(tmp_path: Path) -> None:
    """Each is recomputed from the weights as lists of numbers."""
    recorded: list[dict[str, list[float]]] = []

    class WeightRecorder(Callback):
        def on_gradients(self, state: State) -> None:
            recorded.append(
                {f"{name}.": layer.weight.flatten().tolist() for name, layer in bitlinear_layers(state.model).items()}
            )

    state = fit(Ternary(every=2), WeightRecorder(), steps=4, folder=tmp_path)
    assert len(recorded[3]) == 7
    for name, weights in recorded[3].items():
        scale = sum(map(abs, weights)) / len(weights)
        codes, before = compute_codes(weights), compute_codes(recorded[1][name])
        error = math.dist(weights, [code * scale for code in codes]) / math.hypot(*weights)
        logged = {fact: state.progress.metrics[f"ternary/{fact}/{name[:-1]}"] for fact in ("error", "zero", "flips", "scale")}
        assert logged == pytest.approx({
            "error": error,
            "zero": codes.count(0) / len(codes),
            "flips": sum(a != b for a, b in zip(codes, before, strict=True)) / len(codes),
            "scale": scale,
        }, rel=1e-4)  # fmt: skip
    float32_bytes = 4 * sum(p.numel() for p in state.model.parameters())
    assert state.progress.metrics["ternary/ratio"] == pytest.approx(float32_bytes / count_packed_bytes(state.model))
    assert state.progress.metrics["ternary/packed_mb"] == pytest.approx(count_packed_bytes(state.model) / 1e6)
    assert (tmp_path / "plots" / "ternary.png").read_bytes().startswith(b"\x89PNG")


def test_the_legend_names_some_of_many_layers() -> None:
    history = {f"layer {n}": [(step, dict.fromkeys(FACTS, 0.5)) for step in (1, 2)] for n in range(168)}
    figure = draw(history, "")
    assert [len(axis.lines) for axis in figure.axes] == [168] * 4
    assert 20 <= len(figure.legends[0].get_texts()) <= 28


def test_the_first_measurement_has_no_flips(tmp_path: Path) -> None:
    """There is nothing to compare with, which is not a share of 0. A resumed run compares with its checkpoint's codes."""
    first = Ternary(every=2)
    state = fit(first, steps=2, folder=tmp_path)
    assert not [name for name in state.progress.metrics if "flips" in name]
    assert [name for name in state.progress.metrics if name.startswith("ternary/zero/")]
    assert (tmp_path / "plots" / "ternary.png").is_file()
    second = Ternary(every=2)
    second.load_state_dict(first.state_dict())
    flips = [value for name, value in fit(second, steps=2).progress.metrics.items() if "flips" in name]
    assert flips == [0] * 7, "the same two steps again"


def test_a_model_without_ternary_layers_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = Transformer(DATA.shape, 16, 1, 2, nn.Linear)
    trainer = Trainer(4, 8, eval_every=2, device="cpu")
    optimizer = torch.optim.AdamW(model.parameters())
    state = trainer.fit(trainer.setup(model, optimizer, constant, last_token, DATA, [Ternary(every=2)], monitor="val/acc"))
    assert not [name for name in state.progress.metrics if name.startswith("ternary/")]
    (message,) = [record.message for record in caplog.records if "callbacks.ternary" in record.message]
    assert "no BitLinear" in message
    assert "~callbacks.ternary" in message


def compute_codes(weights: list[float]) -> list[int]:
    """Return the ternary codes of a layer (2402.17764, eq. 1 to 3)."""
    scale = sum(map(abs, weights)) / len(weights)
    return [max(-1, min(1, round(w / scale))) for w in weights]
