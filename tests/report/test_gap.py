"""What quantized weights cost, from trials that nobody ran: every number against one worked out by hand."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from program import ROOT, TINY, train

from research.data.spec import Tokens
from research.load import instantiate
from research.nn.bitlinear import bitlinear_layers
from research.preflight.check import find_mistakes
from research.report import gap, report
from research.report.results import Row, Sweep
from research.run_dir import Summary
from research.tracking.study_spec import parse_study_spec

SPACE = {"model": "2 values: transformer, bitnet", "model.dim": "32, 64", "lr": "1e-3, 1e-2", "seed": "0, 1, 2"}
HALF_WIDTH = 4.30 * 0.2 / 3**0.5 / 3**0.5  # of 0.2, 0.4 and 0.2, which scatter by 0.2 / sqrt(3)
Values = Mapping[tuple[str, ...], float | None]


def make_sweep(values: Values, space: Mapping[str, str] = SPACE, **changes: Any) -> Sweep:
    """A grid whose runs reached these bits per byte, and an accuracy of 1 - bits / 10; None: a run that was not evaluated.

    The values of a key that a run does not have are empty. `changes` are of the sweep's spec.
    """
    rows = []
    for number, (key, bits) in enumerate(values.items()):
        params = {name: value for name, value in zip(space, key, strict=True) if value}
        best: dict[str, float | None] = {}
        best |= {} if bits is None else {"val/bpb": bits, "val/loss": bits / 2, "val/acc": 1 - bits / 10}
        is_quantized = params.get("linear", params.get("model")) not in ("full", "transformer")
        run = Summary("FINISHED", best=best, quantized_params=int(is_quantized))
        rows.append(Row(number, "COMPLETE", (bits or 0.0,), params, folder=str(number), runs={Path(): run}))
    spec = {"directions": ["minimize"], "space": space, "repeats": None} | changes
    return Sweep("study", parse_study_spec(spec), ["val/bpb"], "val/bpb", "", rows)


def combine(*choices: list[str]) -> dict[tuple[str, ...], float | None]:
    """All combinations, each worse than the one before."""
    return {key: 1 + number / 100 for number, key in enumerate(product(*choices))}


def make_grid() -> dict[tuple[str, ...], float]:
    """Full precision is best at lr 1e-3, ternary at 1e-2; the third seed is 0.1 worse; one lucky seed at the wrong lr."""
    values: dict[tuple[str, ...], float] = {}
    for model, good, base in (("transformer", "1e-3", 2.0), ("bitnet", "1e-2", 2.2)):
        for dim in ("32", "64"):
            for lr in ("1e-3", "1e-2"):
                for seed in ("0", "1", "2"):
                    value = base - 0.2 * (dim == "64") + 0.5 * (lr != good) + 0.1 * (seed == "2")
                    values[model, dim, lr, seed] = value
    values["transformer", "32", "1e-2", "1"] = 0.9  # lucky once: its mean is (2.5 + 0.9 + 2.6) / 3 = 2.0
    values["transformer", "32", "1e-3", "1"] = 1.8  # and (2.0 + 1.8 + 2.1) / 3 = 1.9667 is better
    return values


def test_gaps_are_paired_by_seed_at_the_best_setting_of_each() -> None:
    arms = gap.collect_arms(make_sweep(make_grid()))
    assert {(arm.name, arm.format_best(), arm.is_quantized) for arm in arms} == {
        ("transformer dim=32", "lr=1e-3*", False),
        ("transformer dim=64", "lr=1e-3*", False),
        ("bitnet dim=32", "lr=1e-2*", True),
        ("bitnet dim=64", "lr=1e-2*", True),
    }
    assert gap.describe_budget(arms) == "Each network at each size was tuned over 2 settings in 6 runs."
    (comparison, full, ternary), *more = gap.iter_pairs(arms)
    assert [comparison, *(pair[0] for pair in more)] == ["equal width", "twice the width", "equal width"]
    bits = gap.compute_gap("val/bpb", full, ternary)
    assert bits == pytest.approx((5.9 / 3, 6.7 / 3, 0.8 / 5.9, HALF_WIDTH / (5.9 / 3), 3))
    accuracy = gap.compute_gap("val/acc", full, ternary)  # 0.80, 0.82 and 0.79 became 0.78, 0.78 and 0.77
    assert accuracy == pytest.approx((2.41 / 3, 2.33 / 3, 0.08 / 2.41, HALF_WIDTH / 10 / (2.41 / 3), 3))
    head, *rows = gap.table_rows(arms)
    assert rows[0] == ("transformer dim=32", "lr=1e-3*", "bitnet dim=32", "lr=1e-2*", "equal width", "val/bpb",
                       "1.9667", "2.2333", "+13.6% ± 14.6%", "3")  # fmt: skip
    assert {row[head.index("metric")] for row in rows} == {"val/bpb", "val/acc"}


def test_what_failed_was_tuned_too() -> None:
    """Of the largest rate nothing came in full precision: its best is no longer at the edge, and the budget is the same."""
    sweep = make_sweep(make_grid() | {(model, "32", "1", "0"): 9.0 for model in ("transformer", "bitnet")})
    rows = list(sweep.rows)
    for n, row in enumerate(sweep.rows):
        if (row.params["lr"], row.params["model"]) == ("1", "transformer"):
            rows[n] = replace(row, state="FAIL")
    arms = {arm.name: arm for arm in gap.collect_arms(replace(sweep, rows=rows))}
    assert arms["transformer dim=32"].budget == arms["bitnet dim=32"].budget == (3, 7)
    assert arms["bitnet dim=32"].format_best() == "lr=1e-2"
    arms = {name: arm for name, arm in arms.items() if "32" in name}
    assert gap.describe_budget(list(arms.values())) == (
        "Each network at each size was tuned over 3 settings in 7 runs. "
        "Of these failed or were pruned: 1 of transformer dim=32."
    )


def test_settings_may_have_keys_of_their_own() -> None:
    sweep = make_sweep(make_grid())
    for row in sweep.rows[::2]:
        assert isinstance(row.params, dict)
        row.params["optim.lamb"] = "2.0"
    assert len(list(gap.table_rows(gap.collect_arms(sweep)))) > 1


def test_unequal_tuning_is_reported() -> None:
    values = {key: value for key, value in make_grid().items() if key[:3] != ("bitnet", "64", "1e-3")}
    start = "Tuning was not equal: transformer dim=32 had 2 settings in 6 runs; "
    assert gap.describe_budget(gap.collect_arms(make_sweep(values))).startswith(start)
    assert gap.describe_budget(gap.collect_arms(make_sweep(values))).endswith("bitnet dim=64 had 1 setting in 3 runs.")


@pytest.mark.parametrize("lost", ["not run", "not judged"])
def test_a_setting_that_lost_seeds_is_not_the_best(lost: str) -> None:
    without = [("bitnet", "32", "1e-2", "1"), ("bitnet", "32", "1e-2", "2")]
    values = {key: None if key in without else value for key, value in make_grid().items()}
    arms = gap.collect_arms(make_sweep({key: value for key, value in values.items() if value or lost == "not judged"}))
    assert {arm.name: dict(arm.best)["lr"] for arm in arms if arm.is_quantized} == {
        "bitnet dim=32": "1e-3",
        "bitnet dim=64": "1e-2",
    }
    assert "bitnet dim=32 had 2 settings in 4 runs" in gap.describe_budget(arms)


def test_a_network_that_was_never_evaluated_is_left_out() -> None:
    arms = gap.collect_arms(
        make_sweep({key: None if key[:2] == ("bitnet", "32") else value for key, value in make_grid().items()})
    )
    assert [arm.name for arm in arms] == ["transformer dim=32", "transformer dim=64", "bitnet dim=64"]
    assert gap.collect_arms(make_sweep(dict.fromkeys(make_grid()))) == []


def test_an_interval_needs_two_seeds_and_a_gap_one_in_common() -> None:
    one = gap.collect_arms(make_sweep({key: value for key, value in make_grid().items() if key[3] == "0"}))
    assert {row[-2:] for row in gap.table_rows(one)} == {("lost", "seeds"), ("+10.0%", "1"), ("+2.5%", "1"), ("+0.0%", "1"),
                                                    ("+11.1%", "1"), ("+2.4%", "1"), ("+0.0%", "1")}  # fmt: skip
    none = gap.collect_arms(
        make_sweep({key: value for key, value in make_grid().items() if (key[0] == "bitnet") == (key[3] == "0")})
    )
    assert {row[-4:] for row in gap.table_rows(none)} == {("full", "quantized", "lost", "seeds"), ("", "", "", "")}


def test_how_weights_are_rounded_tells_networks_apart() -> None:
    """All of them are compared; a full-precision model has no such key. What is set besides is tuned."""
    keys = ["model", "model.linear.weight_bits", "model.linear.warmup", "model.dropout", "model.tie_embeddings", "seed"]
    bitnet = combine(["bitnet", "bitnet_2b4t"], ["1.58", "2"], ["0", "9"], ["0", "0.1"], ["true", "false"], ["0", "1"])
    full = combine(["transformer"], [""], [""], ["0", "0.1"], ["true", "false"], ["0", "1"])
    arms = gap.collect_arms(make_sweep(bitnet | full, dict.fromkeys(keys, "")))
    networks = ["bitnet weight_bits=1.58", "bitnet weight_bits=2", "bitnet_2b4t weight_bits=1.58", "bitnet_2b4t weight_bits=2"]
    assert [(comparison, first.name, second.name) for comparison, first, second in gap.iter_pairs(arms)] == [
        ("equal width", "transformer", network) for network in networks
    ]
    assert {arm.format_best() for arm in arms if arm.is_quantized} == {
        "model.linear.warmup=0* model.dropout=0* model.tie_embeddings=true"
    }


@pytest.mark.parametrize("dim_key", ["model.dim", "model.fields.hidden_size"])
def test_sizes_are_the_same_however_they_are_written(dim_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And stand in the picture in the order of their numbers."""
    space = dict.fromkeys(["model", dim_key, "model.depth", "seed"], "")
    values = combine(["transformer"], ["128", "64"], ["2"], ["0", "1"]) | combine(
        ["hub"], ["128.0", "64.0", "256"], ["2"], ["0", "1"]
    )
    arms = gap.collect_arms(make_sweep(values, space))
    sizes = [
        (comparison, dict(full.size)[dim_key], dict(quantized.size)[dim_key])
        for comparison, full, quantized in gap.iter_pairs(arms)
    ]
    assert sizes == [
        ("equal width", 128, 128),
        ("twice the width", 128, 256),
        ("twice the width", 64, 128),
        ("equal width", 64, 64),
    ]
    drawn: list[Figure] = []
    save = Figure.savefig

    def savefig(figure: Figure, *args: Any, **options: Any) -> None:
        drawn.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    gap.draw(arms, tmp_path)
    labels = [label.get_text() for label in drawn[0].axes[0].get_xticklabels()]
    assert labels == [f"{dim_key.removeprefix('model.')} {size}\ndepth 2" for size in (64, 128, 256)]
    for container, places in zip(drawn[0].axes[0].containers, ([0, 1], [0, 1, 2]), strict=True):
        assert list(container[0].get_xdata()) == places


@pytest.mark.parametrize("one", ["transformer", "bitnet"])
def test_one_kind_alone_has_no_gap(one: str) -> None:
    assert gap.collect_arms(make_sweep({key: value for key, value in make_grid().items() if key[0] == one})) == []


def test_the_switch_of_the_linear_layer_makes_twins() -> None:
    values: Values = {("full", "0"): 2.0, ("bitnet", "0"): 2.2}
    arms = gap.collect_arms(make_sweep(values, {"linear": "2 values: full, bitnet", "seed": "1 value: 0"}))
    ((_, full, quantized),) = gap.iter_pairs(arms)
    assert (full.name, quantized.name) == ("linear=full", "linear=bitnet")


def test_several_objectives_have_no_gap() -> None:
    assert gap.collect_arms(make_sweep(make_grid(), directions=["minimize", "maximize"])) == []


@pytest.mark.filterwarnings("ignore")  # transformers' own, at its import
def test_a_model_of_transformers_has_a_twin() -> None:
    pytest.importorskip("transformers", reason="needs pip install -e '.[hub]'")
    sizes = ["model.fields.hidden_size=32", "model.fields.num_hidden_layers=1"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        nodes = [compose("config", [f"model={name}", *sizes]).model for name in ("hub_full", "hub")]
    full, rounded = (instantiate(node, Tokens(11, 6)) for node in nodes)
    assert (len(bitlinear_layers(full)), len(bitlinear_layers(rounded))) == (0, 7)
    assert [(name, p.shape) for name, p in full.named_parameters()] == [(n, p.shape) for n, p in rounded.named_parameters()]
    assert find_mistakes(["model=hub,hub_full", "model.fields.hidden_size=32,64"], True) == []


def test_a_gap_that_fails_loses_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("of a kind that nobody thought of")

    monkeypatch.setattr(gap, "collect_arms", fail)
    files = report.write_files(make_sweep(make_grid()), tmp_path, plots=False)
    assert {path.name for path, _ in files} == {"trials.csv", "optimization_results.yaml", "best.yaml", "results.md"}
    assert "- no gap: ZeroDivisionError: of a kind that nobody thought of" in (tmp_path / "results.md").read_text()


def test_a_sweep_over_both_kinds_has_the_section_and_its_picture(tmp_path: Path) -> None:
    own = ["model=transformer,bitnet", "trainer.steps=6", "target=null"]
    bits = ["model.linear.weight_bits=1.58,2", "hydra.sweeper.when={model.linear.weight_bits: \"model == 'bitnet'\"}"]
    train(tmp_path, *TINY, *own, *bits, "tracker=jsonl", "-m")
    (folder,) = (tmp_path / "out").glob("*/sweep_*")
    text = (folder / "results.md").read_text()
    assert "## What quantized weights cost" in text
    assert "Each network at each size was tuned over 1 setting in 1 run." in text
    assert "A star marks the smallest or the largest number" in text
    for bits_of in ("1.58", "2"):
        assert f"| transformer |  | bitnet weight_bits={bits_of} |  | equal width | val/loss |" in text
    assert (folder / "plots" / "gap.png").read_bytes().startswith(b"\x89PNG")
