"""Metrics of conf/metrics: their numbers against scikit-learn's and by hand."""

import json
import logging
import math
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from sklearn.metrics import f1_score, jaccard_score, mean_absolute_error, r2_score, roc_auc_score, root_mean_squared_error
from test_conf import compose_config
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAUROC, MulticlassCalibrationError
from torchmetrics.text import Perplexity as LibraryPerplexity

from research.data.spec import Dataset, Images, MemoryDataset, Shape, Split, Tokens, Vectors
from research.load import instantiate
from research.losses import IGNORE, Loss, classification, last_token, next_token, per_pixel, regression
from research.metrics import CalibrationNull, Torchmetric, calibration_error, num_correct
from research.options.trigger import is_better
from research.training.evaluate import evaluate
from research.training.task import check_task


class Recall(nn.Module):
    """A model whose logits are known: those of the sample whose number is its input."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits[x[:, 0].long()]


def judge(logits: Tensor, targets: Tensor, loss: Loss, option: str, batch_size: int = 7) -> dict[str, float]:
    """What an evaluation with the metrics of an option reports."""
    metrics = {name: instantiate(node) for name, node in compose_config(f"metrics={option}").metrics.items()}
    split = Split(torch.arange(len(targets))[:, None], targets)
    return evaluate(Recall(logits), split, loss, batch_size, metrics=metrics)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


MANY = 100_003  # in batches of 7,001: the last one has 1,989


@pytest.mark.parametrize(
    ("logits", "y"),
    [
        (2 * draw(50, 4), torch.arange(50) % 4),
        (draw(20, 3), torch.ones(20).long()),  # one class alone
        (draw(1, 3), torch.ones(1).long()),
        (torch.zeros(30, 5), torch.arange(30) % 5),  # ties; each confidence is the end of a bin
        (torch.tensor([[20.0, 0], [24, 0], [0, 30], [22, 0]]), torch.tensor([1, 0, 1, 0])),  # all sure, one wrong
        (2 * draw(MANY, 4), torch.arange(MANY) % 4),
    ],
)
def test_classification_is_that_of_sklearn(logits: Tensor, y: Tensor) -> None:
    classes, size = range(logits.shape[1]), 7001 if len(y) == MANY else 7
    found, p, best = judge(logits, y, classification, "classification", size), logits.double().softmax(1), logits.argmax(1)
    assert found["val/f1"] == pytest.approx(f1_score(y, best, average="macro"), abs=1e-6)
    has_all = len(y.unique()) == len(classes)
    each = [roc_auc_score(y == number, p[:, number]) for number in classes] if has_all else [math.nan]
    assert found["val/auroc"] == pytest.approx(sum(each) / len(each), abs=1e-6, nan_ok=True)
    confidence = logits.softmax(1).amax(1)
    assert found["val/confidence"] == pytest.approx(confidence.mean().item(), abs=1e-6)
    ends = torch.linspace(0, 1, 16).tolist()
    bins = [(confidence >= low) & (confidence < high) for low, high in zip(ends[:-1], [*ends[1:-1], 2.0], strict=True)]
    gaps = [((best == y).double()[some].sum() - confidence.double()[some].sum()).abs().item() for some in bins]
    assert found["val/calibration_error"] == pytest.approx(sum(gaps) / len(y), abs=1e-6)
    assert calibration_error(confidence.double(), best == y) == pytest.approx(found["val/calibration_error"], abs=1e-6)
    assert found["val/acc"] == pytest.approx((best == y).float().mean().item())


@pytest.mark.parametrize(
    ("loss", "option", "logits"),
    [
        (classification, "classification", (4, 3)),
        (regression, "regression", (4, 1)),
        (per_pixel, "segmentation", (4, 3, 2, 2)),
        (next_token, "seq2seq", (4, 2, 3)),
        (next_token, "language", (4, 2, 3)),
    ],
)
def test_a_logit_that_is_nan_makes_all_of_them_nan(loss: Loss, option: str, logits: tuple[int, ...]) -> None:
    outputs, size = draw(*logits), {4: (2, 2), 3: (2,), 2: ()}[len(logits)]
    outputs.view(-1)[0] = math.nan
    targets = draw(4) if loss is regression else torch.zeros(4, *size, dtype=torch.int64)
    assert all(math.isnan(value) for value in judge(outputs, targets, loss, option, 3).values())


def test_the_last_position_answers_for_a_sequence() -> None:
    logits, y = draw(20, 3, 4), torch.arange(20) % 4
    assert judge(logits, y, last_token, "classification") == judge(logits[:, -1], y, classification, "classification")


def test_pixels_are_counted_one_by_one_and_ignored_ones_not() -> None:
    logits, y = draw(5, 3, 4, 6), torch.randint(3, (5, 4, 6), generator=torch.Generator().manual_seed(3))
    y[0, :2] = IGNORE
    found, valid = judge(logits, y, per_pixel, "segmentation", batch_size=2), y != IGNORE
    best = logits.argmax(1)
    assert found["val/iou"] == pytest.approx(jaccard_score(y[valid], best[valid], average="macro"), abs=1e-6)
    assert found["val/f1"] == pytest.approx(f1_score(y[valid], best[valid], average="macro"), abs=1e-6)
    assert found["val/acc"] == pytest.approx((best == y)[valid].float().mean().item(), abs=1e-6)
    assert int(num_correct(logits, y)) == int((best == y).sum())


def test_tokens_have_a_perplexity_and_answers_an_exact_match() -> None:
    y = torch.tensor([[IGNORE, 1, 2], [IGNORE, IGNORE, 0], [1, 1, 1], [IGNORE, IGNORE, IGNORE]])
    logits = 3 * torch.eye(3)[y.clamp(min=0)] + draw(4, 3, 3) / 10
    logits[2, 1] = torch.tensor([9.0, 0.0, 0.0])  # one wrong token in the third answer
    found = judge(logits, y, next_token, "seq2seq", batch_size=3)
    assert found["val/exact_match"] == pytest.approx(2 / 3)
    assert found["val/perplexity"] == pytest.approx(math.exp(found["val/loss"]), rel=1e-6)
    library = LibraryPerplexity(ignore_index=IGNORE)(logits, y)
    assert found["val/perplexity"] == pytest.approx(library.item(), rel=1e-5)
    assert judge(logits, y, next_token, "language")["val/perplexity"] == pytest.approx(found["val/perplexity"])


@pytest.mark.parametrize(
    ("logits", "y"),
    [
        (draw(30, 1), draw(30, 1, seed=1)),
        (draw(30, 3), draw(30, 3, seed=1)),
        (draw(30, 1), torch.full((30, 1), 0.1)),  # equal targets
        (1e20 * draw(30, 1), 1e20 * draw(30, 1, seed=1)),  # squares beyond float32
        (1e3 + draw(MANY, 1), 1e3 + draw(MANY, 1, seed=1)),
    ],
)
def test_numbers_keep_their_unit(logits: Tensor, y: Tensor) -> None:
    targets = y[:, 0] if y.shape[1] == 1 else y
    found, logits, y = (
        judge(logits, targets, regression, "regression", 7001 if len(y) == MANY else 7),
        logits.double(),
        y.double(),
    )
    assert found["val/mae"] == pytest.approx(mean_absolute_error(y, logits), rel=1e-6)
    assert found["val/rmse"] == pytest.approx(root_mean_squared_error(y.flatten(), logits.flatten()), rel=1e-6)
    assert found["val/r2"] == pytest.approx(r2_score(y, logits), abs=1e-6)
    assert found["val/loss"] == pytest.approx(found["val/rmse"] ** 2, rel=1e-5) or y.max() > 1e19
    assert "val/acc" not in found


def test_half_precision_and_batches_do_not_count() -> None:
    logits, y = draw(40, 4).bfloat16(), torch.arange(40) % 4
    whole = judge(logits, y, classification, "classification", 40)
    cut = judge(logits.float(), y, classification, "classification", 3)
    assert whole == pytest.approx(cut | {"val/loss": whole["val/loss"]}, abs=1e-6)
    assert whole == judge(logits, y, classification, "classification", 40), "twice the same evaluation, twice the same bits"


def test_the_null_is_what_a_perfect_model_shows() -> None:
    """359 predictions that are right as often as they claim: the error is far from 0, and as large as the null says."""
    generator = torch.Generator().manual_seed(0)
    confidences = torch.rand(359, generator=generator, dtype=torch.float64) / 2 + 0.5
    trials = torch.stack([torch.rand(359, generator=generator) < confidences for _ in range(300)])
    errors = [calibration_error(confidences, trial) for trial in trials]
    null = CalibrationNull(None).compute(confidences)
    assert 0.03 < null < 0.08
    assert null == pytest.approx(sum(errors) / 300, rel=0.05)
    assert null == CalibrationNull(None).compute(confidences.flip(0)), "the order of batches and processes does not matter"
    library = MulticlassCalibrationError(2)(torch.stack((confidences, 1 - confidences), 1), 1 - trials[0].long())
    assert library.item() == pytest.approx(errors[0], abs=1e-6)
    assert CalibrationNull(None).compute(torch.ones(10)) == 0.0, "who is sure and right is calibrated"
    assert CalibrationNull(None, n_bins=1).compute(confidences) < null / 2


def test_the_null_has_the_bins_of_the_error() -> None:
    few = compose_config("metrics=classification", "metrics.calibration_error.metric.n_bins=3")
    assert few.metrics.calibration_null.n_bins == 3
    assert compose_config("metrics=classification", "~metrics.calibration_error").metrics.calibration_null.n_bins == 15


def test_a_class_without_a_target_has_no_auroc(caplog: pytest.LogCaptureFixture) -> None:
    logits, y = draw(20, 4), torch.arange(20) % 3
    with caplog.at_level(logging.WARNING):
        found = judge(logits, y, classification, "classification")
    assert math.isnan(found["val/auroc"])
    assert "MulticlassAUROC is NaN: the split has no target of class 3" in caplog.text
    metric = instantiate(compose_config("metrics=classification").metrics.auroc)
    check_task(replace(CLASSES, classes=("cat", "dog", "cow")), classification, {"auroc": metric}, "val/loss")
    metric.merge([metric])
    assert "no target of class 1 dog, 2 cow, 3" in caplog.text
    assert not is_better("val/auroc", math.nan, 0.1, {"val/auroc": True}), "a NaN never wins"
    assert not math.isnan(found["val/f1"])


def test_r2_of_one_sample_is_nan(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert math.isnan(judge(draw(1, 1), torch.ones(1), regression, "regression")["val/r2"])
    assert "R2Score is NaN" in caplog.text


def make_data(shape: Shape, x: Tensor, y: Tensor) -> Dataset[Any]:
    return MemoryDataset(shape, Split(x, y), Split(x, y), "digest", "source", "sample")


NUMBERS = make_data(Vectors(2, 1), torch.zeros(3, 2), torch.ones(3))
CLASSES = make_data(Vectors(2, 4), torch.zeros(3, 2), torch.tensor([0, 1, 2]))
PIXELS = make_data(Images(1, 2, 2, 3, per_pixel=True), torch.zeros(3, 1, 2, 2), torch.zeros(3, 2, 2, dtype=torch.int64))
SEQUENCES = make_data(Tokens(5, 3, num_classes=4), torch.zeros(3, 3), torch.tensor([0, 1, 2]))


@pytest.mark.parametrize(
    ("data", "loss", "option"),
    [
        (NUMBERS, regression, "regression"),
        (CLASSES, classification, "classification"),
        (PIXELS, per_pixel, "segmentation"),
        (SEQUENCES, last_token, "classification"),
    ],
)
def test_metrics_fit_the_data_that_name_them(data: Dataset[Any], loss: Loss, option: str) -> None:
    metrics = {name: instantiate(node) for name, node in compose_config(f"metrics={option}").metrics.items()}
    check_task(data, loss, metrics, "val/loss")


@pytest.mark.parametrize(
    ("data", "loss", "option"), [(NUMBERS, regression, "classification"), (CLASSES, classification, "regression")]
)
def test_metrics_of_other_data_are_refused(data: Dataset[Any], loss: Loss, option: str) -> None:
    metrics = {name: instantiate(node) for name, node in compose_config(f"metrics={option}").metrics.items()}
    name = next(iter(metrics))
    with pytest.raises(
        ValueError, match=rf"metrics\.{name} does not fit these data, whose targets are .*\nleave it out with ~metrics\.{name}"
    ):
        check_task(data, loss, metrics, "val/loss")


def test_a_name_that_is_taken_is_refused() -> None:
    metric = Torchmetric(True, partial(MulticlassAUROC, average="macro"))
    with pytest.raises(ValueError, match=r"metrics\.acc: evaluations would report it as val/acc"):
        check_task(CLASSES, classification, {"acc": metric}, "val/loss")


def report(rank: int, folder: str) -> None:
    """What one of two processes does: it joins the other, and writes down what its evaluation reports."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = judge(2 * draw(9, 4), torch.arange(9) % 4, classification, "classification", batch_size=4)
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # the children use one thread
def test_two_processes_report_what_one_does(tmp_path: Path) -> None:
    """The last batch has one sample, so one process has none of it."""
    alone = judge(2 * draw(9, 4), torch.arange(9) % 4, classification, "classification", batch_size=4)
    both = [get_context("fork").Process(target=report, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first == pytest.approx(alone, abs=1e-6)
    assert first["val/calibration_null"] == alone["val/calibration_null"]
