"""What the user sees, on a terminal and elsewhere; and what ends a run."""

import io
import math
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console as Terminal
from torch import nn

from research.callbacks.console import Console, build_summary, describe_precision
from research.callbacks.curve import Curve
from research.callbacks.early_stop import EarlyStop
from research.callbacks.gradients import GradientHealth
from research.callbacks.grokking import Grokking
from research.callbacks.ternary import FACTS, Ternary, draw
from research.callbacks.time_limit import TimeLimit
from research.data.modular import modular
from research.losses import last_token
from research.models.transformer import Transformer
from research.nn.bitlinear import BitLinear, bitlinear_layers
from research.nn.packed import count_packed_bytes
from research.optim.schedules import constant
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


def test_elsewhere_than_on_a_terminal_it_is_plain_lines(tmp_path: Path) -> None:
    paper = io.StringIO()
    fit(Console(every=1e-9, terminal=Terminal(file=paper, width=60)), folder=tmp_path)
    text = paper.getvalue()
    assert "\x1b" not in text, "escape codes"
    lines = text.splitlines()
    assert re.match(r"run +trial$", lines[0])
    for word in ("Transformer", "ternary", "kB packed", "training and", "AdamW", "lr 0.001", "threads", str(tmp_path)):
        assert word in text
    steps = [line for line in lines if line.startswith("step ")]
    assert [int(line.split("/")[0].removeprefix("step ")) for line in steps] == [1, 2, 3, 4, 5, 6]
    for name in ("train/loss", "val/loss", "val/acc", "lr", "grad/norm", "samples/s", "ETA"):
        assert name in steps[-1]
    end = "\n".join(lines[lines.index(steps[-1]) :])
    for word in ("best val/acc", "final val/acc", "baseline val/acc", "time", "MB", "resume=", "-m seed=0,1,2"):
        assert word in end


def test_the_kind_of_the_weights_is_reported() -> None:
    linears = nn.Linear(32, 32), BitLinear(32, 32), BitLinear(32, 32, weight_bits=2)
    told = [describe_precision(nn.Sequential(nn.Linear(4, 4), linear)) for linear in linears]
    assert told[0] == "full precision"
    assert told[1].startswith("1,024 of them ternary: ")
    assert told[2].startswith("1,024 of them rounded: ")


def test_a_line_comes_only_every_few_seconds() -> None:
    paper = io.StringIO()
    fit(Console(every=1000, terminal=Terminal(file=paper, width=60)))
    assert [line[:8] for line in paper.getvalue().splitlines() if line.startswith("step ")] == ["step 6/6"]


def test_on_a_terminal_it_is_one_live_line() -> None:
    screen = io.StringIO()
    fit(Console(terminal=Terminal(file=screen, width=250, force_terminal=True, color_system=None)))
    text = screen.getvalue()
    assert "\x1b[" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "\n")
    assert "step 6/6" in plain
    assert "━" in plain, "no bar"
    assert "Done" in plain


def test_a_run_that_fails_has_no_table_of_results() -> None:
    paper = io.StringIO()
    with pytest.raises(FloatingPointError, match=r"not finite at step 1, with lr=1e\+30"):
        fit(Break(), Console(terminal=Terminal(file=paper)), lr=1e30)
    assert "best val/acc" not in paper.getvalue()


class Break(Callback):
    def on_start(self, state: State) -> None:
        nn.init.constant_(next(state.model.parameters()), float("nan"))


def test_early_stop_holds_for_as_many_evaluations() -> None:
    assert fit(EarlyStop(target=100.0), monitor="val/loss").stop == "val/loss reached 100"
    assert fit(EarlyStop(target=100.0, hold=2), monitor="val/loss").progress.step == 4
    assert fit(EarlyStop(target=1.1)).progress.step == 6
    assert fit(EarlyStop()).stop == ""


@pytest.mark.parametrize(
    ("callback", "longer", "remaining"),
    [
        (EarlyStop(target=0.0), "trainer.steps=80 target=null", ["callbacks.grokking.end=0"]),
        (Grokking(hold=1, end=1e-9), "trainer.steps=80 callbacks.grokking.end=null", ["target=0"]),
        (TimeLimit(1e-9), "trainer.steps=80", ["target=0", "callbacks.grokking.end=0"]),
    ],
)
def test_the_command_to_go_on_lifts_what_ended_the_run(
    callback: Callback, longer: str, remaining: list[str], tmp_path: Path
) -> None:
    """And nothing else that was asked for."""
    (tmp_path / "overrides.txt").write_text("lr=1e-3\ntarget=0\ncallbacks.grokking.end=0\nsteps=6\n")
    state = fit(callback, steps=40, folder=tmp_path)
    assert state.progress.step < 40
    words = dict(build_summary(state))["go on"].split()
    assert words == ["python", "train.py", "lr=1e-3", *remaining, f"resume={tmp_path}", *longer.split()]


def test_the_step_at_which_time_runs_out_is_evaluated() -> None:
    state = fit(TimeLimit(1e-9))
    assert (state.progress.step, state.stop) == (2, "1e-09 s are over")
    assert "val/acc" in state.progress.metrics


def test_the_curve_is_a_picture(tmp_path: Path) -> None:
    fit(Curve(), folder=tmp_path)
    assert (tmp_path / "plots" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_health_of_gradients_is_logged_by_block(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Norms before clipping, and zeros, each against what they are."""
    seen: list[State] = []

    class Look(Callback):
        def on_gradients(self, state: State) -> None:
            grads = {name: p.grad.clone() for name, p in state.model.named_parameters() if p.grad is not None}
            self.seen = grads, float(state.progress.grad_norm)

        def on_step(self, state: State) -> None:
            seen.append(state)

    look = Look()
    state = fit(GradientHealth(every=2, vanishing=1e3, exploding=1e9, histogram=1), look, steps=4, folder=tmp_path)
    grads, norm = look.seen
    clipped = torch.stack([g.norm() for g in grads.values()]).norm().item()
    block = torch.stack([g.norm() for name, g in grads.items() if name.startswith("blocks.0.")]).norm().item()
    assert state.progress.metrics["grad/norm/blocks.0"] == pytest.approx(block * norm / clipped, rel=1e-4)
    assert state.progress.metrics["grad/norm/embed"] == pytest.approx(
        grads["embed.weight"].norm().item() * norm / clipped, rel=1e-4
    )
    assert state.progress.metrics["grad/zero/embed"] == pytest.approx((grads["embed.weight"] == 0).float().mean().item())
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["gradients_00000002.png", "gradients_00000004.png"]
    told = [record.message for record in caplog.records if "vanishing" in record.message]
    assert len(told) == len({line.split()[3] for line in told}) > 1, "each block once"


def test_what_rounding_does_to_the_weights_is_logged_by_layer(tmp_path: Path) -> None:
    """Against the weights themselves, one number after the other; the flips against a look of our own."""
    seen: list[dict[str, list[float]]] = []

    class Look(Callback):
        def on_gradients(self, state: State) -> None:
            seen.append({f"{name}.": layer.weight.flatten().tolist() for name, layer in bitlinear_layers(state.model).items()})

    state = fit(Ternary(every=2), Look(), steps=4, folder=tmp_path)
    assert len(seen[3]) == 7
    for name, weights in seen[3].items():
        scale = sum(map(abs, weights)) / len(weights)
        codes, before = compute_codes(weights), compute_codes(seen[1][name])
        error = math.dist(weights, [code * scale for code in codes]) / math.hypot(*weights)
        told = {fact: state.progress.metrics[f"ternary/{fact}/{name[:-1]}"] for fact in ("error", "zero", "flips", "scale")}
        assert told == pytest.approx({
            "error": error,
            "zero": codes.count(0) / len(codes),
            "flips": sum(a != b for a, b in zip(codes, before, strict=True)) / len(codes),
            "scale": scale,
        }, rel=1e-4)  # fmt: skip
    whole = 4 * sum(p.numel() for p in state.model.parameters())
    assert state.progress.metrics["ternary/ratio"] == pytest.approx(whole / count_packed_bytes(state.model))
    assert state.progress.metrics["ternary/packed_mb"] == pytest.approx(count_packed_bytes(state.model) / 1e6)
    assert (tmp_path / "plots" / "ternary.png").read_bytes().startswith(b"\x89PNG")


def test_of_many_layers_some_are_named() -> None:
    history = {f"layer {n}": [(step, dict.fromkeys(FACTS, 0.5)) for step in (1, 2)] for n in range(168)}
    figure = draw(history, "")
    assert [len(axis.lines) for axis in figure.axes] == [168] * 4
    assert 20 <= len(figure.legends[0].get_texts()) <= 28


def test_the_first_look_knows_of_no_flips(tmp_path: Path) -> None:
    """Nothing was seen before it: that is no share of zero. A run that goes on has what its checkpoint saw."""
    first = Ternary(every=2)
    state = fit(first, steps=2, folder=tmp_path)
    assert not [name for name in state.progress.metrics if "flips" in name]
    assert [name for name in state.progress.metrics if name.startswith("ternary/zero/")]
    assert (tmp_path / "plots" / "ternary.png").is_file()
    second = Ternary(every=2)
    second.load_state_dict(first.state_dict())
    flips = [value for name, value in fit(second, steps=2).progress.metrics.items() if "flips" in name]
    assert flips == [0] * 7, "the same two steps again"


def test_without_ternary_layers_there_is_nothing_to_tell(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = Transformer(DATA.shape, 16, 1, 2, nn.Linear)
    trainer = Trainer(4, 8, eval_every=2, device="cpu")
    optimizer = torch.optim.AdamW(model.parameters())
    state = trainer.fit(trainer.setup(model, optimizer, constant, last_token, DATA, [Ternary(every=2)], monitor="val/acc"))
    assert not [name for name in state.progress.metrics if name.startswith("ternary/")]
    assert [record.message for record in caplog.records if "callbacks.ternary" in record.message] == [
        "callbacks.ternary has nothing to tell, as the model has no BitLinears: ~callbacks.ternary"
    ]


def compute_codes(weights: list[float]) -> list[int]:
    """Ternary codes (2402.17764, eq. 1 to 3)."""
    scale = sum(map(abs, weights)) / len(weights)
    return [max(-1, min(1, round(w / scale))) for w in weights]
