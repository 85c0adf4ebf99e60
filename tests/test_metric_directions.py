"""Which way a metric is better: its yaml says it, and what compares runs goes by it."""

import json
from pathlib import Path

import pytest
import torchmetrics
from program import ROOT, make_environment, read_summaries, run
from test_conf import compose_config

from research.load import instantiate
from research.metrics import Torchmetric
from research.options.trigger import Trigger, higher_is_better, read_directions
from research.preflight.check import find_mistakes
from research.sweep.study import parse_directions


def test_each_metric_of_conf_says_which_way_is_better() -> None:
    ways = dict[str, bool]()
    for option in ("classification", "segmentation", "language", "seq2seq", "regression"):
        cfg = compose_config(f"metrics={option}")
        ways |= read_directions(cfg)
        for name, node in cfg.metrics.items():
            metric = instantiate(node)
            if isinstance(metric, Torchmetric) and issubclass(metric.make.func, torchmetrics.Metric):  # type: ignore[attr-defined]
                assert metric.make.func.higher_is_better == node.higher_is_better, name  # type: ignore[attr-defined]
    higher = {"val/f1", "val/auroc", "val/iou", "val/exact_match", "val/r2"}
    assert {name for name, better in ways.items() if better} == higher
    assert {name for name, better in ways.items() if not better} == {
        *("val/calibration_error", "val/perplexity", "val/rmse", "val/mae"),
    }


def test_the_metric_decides_before_its_name() -> None:
    own = {"val/bad_acc": False, "val/mine": True}
    assert [higher_is_better(name, own) for name in ("val/bad_acc", "val/mine", "val/acc", "val/loss")] == [0, 1, 1, 0]
    assert read_directions({}) == read_directions({"metrics": None}) == {}, "an older run has no metrics"
    assert parse_directions(None, ("val/mine", "val/loss"), own) == ["maximize", "minimize"]
    fires = [Trigger(metric="val/mine", value=0.5).fires(0, {"val/mine": value}, own) for value in (0.4, 0.6)]
    assert fires == [False, True]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "monitor=val/f1 target=null",
            ["monitor takes val/loss, val/acc, val/bpb", "give metrics=classification monitor=val/f1"],
        ),
        ("metrics=classification monitor=val/f2 target=null", ["val/auroc", "did you mean: monitor=val/f1"]),
        ("metrics=classification monitor=val/confidence target=null", ["monitor takes", '"val/confidence"']),
        ("metrics=clasification", ["metrics=clasification", "did you mean: metrics=classification"]),
        ("metrics=classification ~metrics.f1.higher_is_better", ["does not say which way is better"]),
        (
            "metrics=classification ~metrics.f1.higher_is_better monitor=val/f1 target=null",
            ["does not say which way is better"],
        ),
        ("metrics=classification metrics.f1.higher_is_better=2", ["metrics.f1.higher_is_better takes true or false"]),
        ("metrics=language +metrics.acc._target_=research.metrics.Perplexity +metrics.acc.higher_is_better=false", ["val/acc"]),
        ("metrics=classification metrics.calibration_null.draws=0", ["draws takes a whole number in [1, inf)"]),
        ("metrics=classification monitor=val/f1", ["target=0.99 is meant for val/acc"]),
        ("metrics=classification monitor=val/f1 target=null", []),
        ("metrics=classification ~metrics.auroc", []),
        ("-m metrics=classification,segmentation monitor=val/f1 target=null", ["give hydra.sweeper.direction=maximize"]),
        ("-m metrics=classification,segmentation monitor=val/f1 target=null hydra.sweeper.direction=maximize", []),
        ("-m metrics=classification lr=1,2 monitor=val/f1 target=null", []),
    ],
)
def test_the_preflight_knows_the_metrics(line: str, words: list[str]) -> None:
    mistakes = find_mistakes([word for word in line.split() if word != "-m"], line.startswith("-m"))
    assert len(mistakes) == bool(words), mistakes
    assert all(word in mistakes[0] for word in words), mistakes[0]


OWN = """
from jaxtyping import Float
from torch import Tensor

from research.metrics import RowMetric, select_valid


class Sureness(RowMetric):
    def measure(self, logits: Tensor, targets: Tensor) -> Float[Tensor, "n"]:
        return select_valid(logits, targets)[0].amax(-1)

    def compute(self, rows: Float[Tensor, "n"]) -> float:
        return float(rows.mean())
"""


def test_a_metric_of_ones_own_is_two_files_and_a_sweep_goes_its_way(tmp_path: Path) -> None:
    """A larger rate makes larger logits: the metric says that more is better, so its best trial is the one to be best."""
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "conf/metrics").mkdir(parents=True)
    (tmp_path / "conf/metrics/mine.yaml").write_text("sureness:\n  _target_: mine.Sureness\n  higher_is_better: true\n")
    entry = ROOT / "train.py"
    lines = ("import runpy, sys", f"sys.path.insert(1, {str(ROOT)!r})", f"runpy.run_path({str(entry)!r}, run_name='__main__')")
    (tmp_path / "train.py").write_text("\n".join(lines))  # beside mine.py, as the user's would be
    arguments = ["-m", "model=mlp", "data=digits", "metrics=mine", "monitor=val/sureness", "optim=sgd", "lr=0.001,0.3",
                 "name=own", "steps=8", "eval_every=4", "batch_size=16", "model.dim=8", "model.depth=1", "tracker=none",
                 "target=null", "~callbacks.curve", "hydra.sweeper.plots=false",
                 f"out={tmp_path / 'out'}", "--config-dir", str(tmp_path / "conf")]  # fmt: skip
    done = run([str(tmp_path / "train.py"), *arguments], tmp_path, make_environment(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    values = [summary["value"] for summary in read_summaries(tmp_path)]
    assert values[1] > values[0] > 0
    assert "maximize" in done.stdout + done.stderr
    (study,) = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("study.json")]
    assert study["directions"] == ["maximize"]
