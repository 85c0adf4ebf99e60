"""One model on one split: its metrics, computed as training computes them, and the influence of each part on them."""

import copy
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from research.contracts import contract
from research.data.spec import Samples
from research.evaluate.intervals import Influences, draw_groups, measure_jackknife, measure_ratio
from research.losses import IGNORE, Loss
from research.metrics import Metric, Torchmetric, nats_to_bits, put_classes_last
from research.training.evaluate import Autocast, evaluate, list_metrics

MAX_PENDING = 1 << 22  # numbers that wait for a metric of the jackknife


@dataclass
class Measurement:
    """What a model reaches."""

    values: dict[str, float]
    influences: dict[str, Influences]  # of the metrics that have some
    num_targets: int
    num_bytes: int | None  # of text
    seconds: float


@dataclass
class Observer:
    """Takes in each batch of an evaluation: sums by sample, and batches of each group for the jackknife."""

    split: Samples
    parts: Int[Tensor, "samples"]
    metrics: Mapping[str, Metric]  # those that say which way is better
    rows: list[Float[Tensor, "batch 4"]] = field(default_factory=list)  # loss, right targets, targets, their bytes
    pending: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    seen: int = 0
    num_pending: int = 0

    def __post_init__(self) -> None:
        self.groups = draw_groups(self.parts)
        self.copies = [copy.deepcopy(dict(self.metrics)) for _ in range(int(self.groups.max()) + 1)]
        for metric in (metric for group in self.copies for metric in group.values()):
            metric.reset()
            if isinstance(metric, Torchmetric):
                metric.has_warned = True  # the whole has

    @contract
    def observe(self, logits: Tensor, targets: Shaped[Tensor, "batch ..."], losses: Tensor) -> None:
        """Take in a batch; batches come in the order of the samples."""
        is_valid = torch.ones_like(targets, dtype=torch.bool) if targets.is_floating_point() else targets != IGNORE
        is_right = torch.zeros_like(is_valid)
        if not targets.is_floating_point():
            is_right = put_classes_last(logits, targets).argmax(-1) == targets
        num_bytes = is_valid.double()
        if self.split.token_bytes is not None:
            num_bytes = torch.where(is_valid, self.split.token_bytes[targets.clamp(min=0)], 0).double()
        columns = (losses, is_right & is_valid, is_valid, num_bytes)
        self.rows.append(torch.stack([column.double().reshape(len(targets), -1).sum(1) for column in columns], 1).cpu())
        groups = self.groups[self.seen : self.seen + len(targets)]
        self.seen += len(targets)
        if not self.metrics:
            return
        for group in groups.unique().tolist():
            index = (groups == group).nonzero()[:, 0].to(targets.device)
            self.pending.setdefault(group, []).append((logits[index], targets[index]))
        self.num_pending += logits.numel()
        if self.num_pending > MAX_PENDING:
            self.flush()

    def flush(self) -> None:
        """Give the metrics of each group what waits for them."""
        for group, batches in self.pending.items():
            logits, targets = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
            for metric in self.copies[group].values():
                metric.update(logits, targets)
        self.pending, self.num_pending = {}, 0

    def measure_influences(self, names: list[str]) -> dict[str, Influences]:
        """Return the influences on the metrics of a split by `names`, and on the others."""
        self.flush()
        loss, right, targets, num_bytes = torch.cat(self.rows).unbind(1)
        ratios = {"val/loss": (loss, targets), "val/acc": (right, targets), "val/bpb": (nats_to_bits(1.0) * loss, num_bytes)}
        influences = {name: measure_ratio(*ratios[name], self.parts) for name in names}
        for name in self.metrics if len(self.copies) > 1 else ():
            with suppress(RuntimeError, ValueError, IndexError):  # a part of the samples may have no number
                influences[f"val/{name}"] = measure_jackknife(
                    [self.leave_out(name, group) for group in range(len(self.copies))]
                )
        return influences

    def leave_out(self, name: str, group: int) -> float:
        """Return a metric over all samples but those of a group."""
        rest: list[Any] = [metrics[name] for number, metrics in enumerate(self.copies) if number != group]
        return float(rest[0].merge(rest))


@contract
def measure(
    model: nn.Module,
    split: Samples,
    loss: Loss,
    metrics: Mapping[str, Metric],
    parts: Int[Tensor, "samples"],
    batch_size: int,
    autocast: Autocast,
    poll: Callable[[], None],
) -> Measurement:
    """Return what a model reaches on a split: the same bits as training's own evaluation of it, in batches of one size."""
    start = time.perf_counter()
    directed = {name: metric for name, metric in metrics.items() if metric.higher_is_better is not None}
    observer = Observer(split, parts, directed)
    values = evaluate(model, split, loss, batch_size, autocast, poll, metrics, observer.observe)
    influences = observer.measure_influences(list_metrics(split))
    finite = {name: value for name, value in influences.items() if bool(value.isfinite().all()) and math.isfinite(values[name])}
    _, _, targets, num_bytes = torch.cat(observer.rows).sum(0).tolist()
    is_text = "val/bpb" in values
    return Measurement(values, finite, int(targets), int(num_bytes) if is_text else None, time.perf_counter() - start)
