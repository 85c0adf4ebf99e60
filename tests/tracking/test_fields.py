"""What a run says of itself in MLflow: which settings are params, and what its metrics are called there."""

import pytest

from research.tracking.fields import collect_results, flatten_config, rename_metric, select_params

CONFIG = {
    "lr": 1e-3,
    "steps": 9,
    "target": None,
    "name": "modular",
    "out": "outputs",
    "optim": {"_target_": "research.optim.grokfast.ema", "lr": 1e-3, "base": {"_partial_": True, "betas": [0.9, 0.98]}},
    "trainer": {"steps": 3, "seed": 0},
    "model": {"dim": 3, "kv_heads": None},
    "callbacks": {"curve": {"every": 5}},
}


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        (
            [],
            {"lr": 1e-3, "steps": 9, "optim.base.betas": [0.9, 0.98], "trainer.steps": 3, "trainer.seed": 0, "model.dim": 3},
        ),
        (["target", "optim.lr"], {"target": None, "optim.lr": 1e-3, "lr": 1e-3}),
    ],
)
def test_params_are_settings_that_say_something(requested: list[str], expected: dict[str, object]) -> None:
    params = select_params(flatten_config(CONFIG), dict.fromkeys(requested, ""))
    assert {key: params[key] for key in expected} == expected
    assert list(params)[: len(requested)] == requested, "what was asked for stands first"
    if not requested:
        assert params == expected


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        ("val/acc", "val/acc"),
        ("perf/tokens_per_s", "system/tokens_per_s"),
        ("grad/norm", "grad_norm"),
        ("grok/gap", "grok/gap"),
    ],
)
def test_a_metric_has_one_name_in_mlflow(metric: str, name: str) -> None:
    assert rename_metric(metric) == name


def test_results_are_numbers_that_no_curve_ends_with() -> None:
    summary = {"best": {"val/acc": 0.5, "val/loss": None, "step": 75}, "metrics": {"val/acc": 0.4}, "wall_s": 2, "steps": 100}
    assert collect_results(summary) == {"best.val_acc": 0.5, "best.step": 75.0, "system/wall_s": 2.0}
