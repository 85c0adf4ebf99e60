"""Whether data, loss, metrics and monitor fit each other: told before anything is written, as each may be the user's own."""

import inspect
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from types import FunctionType
from typing import Any

import torch
from jaxtyping import AbstractArray
from torch import Tensor

from research import rules
from research.cli import first_line
from research.data.spec import Dataset, Images, Samples, Split, Tokens, Vectors
from research.losses import IGNORE, Loss, check_class_weights, check_losses, make_plain
from research.metrics import Metric, RowMetric, Torchmetric, find_directions, name_classes
from research.ranges import check_partial
from research.training.evaluate import list_metrics
from research.trigger import check_metric_name, check_monitor

CHUNK = 1024  # samples whose targets are counted at a time


def check_task(data: object, loss: Loss, metrics: Mapping[str, Metric], monitor: str) -> None:
    """Raise ValueError for data that are not of their shape, and for a loss, metric or monitor that does not fit them.

    They are tried on a sample with logits of zero, but under a loss of one's own: its model may have other outputs.
    """
    dataset, directions = check_dataset(data), find_directions(metrics)
    rules.enforce(*(check_metric_name(name) for name in metrics))
    check_partial("loss", loss)
    function, y = loss.func if isinstance(loss, partial) else loss, dataset.val[torch.arange(1)][1]
    shape, logits = get_logits_shape(dataset.shape), None
    if getattr(function, "__module__", "") != check_losses.__module__:
        check_target_type(function, y)
    elif shape is not None:
        logits = torch.zeros(1, *shape, device=y.device)
        check_class_weights(balance_classes(loss, dataset), count_classes(dataset.shape) or 0)
        check_losses(make_plain(loss)(logits, y), y)
    rules.enforce(check_monitor(monitor, directions, [*list_metrics(dataset.val), *directions]))
    for name, metric in metrics.items():
        if isinstance(metric, Torchmetric):
            metric.class_names = dataset.classes
        if logits is not None:
            try_metric(name, metric, logits, y)


def check_dataset(data: object) -> Dataset[Any]:
    """Return the data set. Raise ValueError for none, and for inputs, tokens or classes that its shape has not."""
    if not isinstance(data, Dataset):
        fix = "return a data set, as MemoryDataset(shape, train, val, digest, source, unit)"
        raise ValueError(f"data: its function returns a {type(data).__name__}\n{fix}")
    for name, split in (("train", data.train), ("val", data.val), ("test", data.test)):
        if split is None:
            continue
        if not isinstance(split, Samples):
            raise ValueError(f"data: its {name} is a {type(split).__name__}\ngive a Split(inputs, targets)")
        size, expected = tuple(split[torch.arange(1)][0].shape[1:]), get_input_shape(data.shape)
        if expected is not None and size != expected:
            message = f"data: an input of {name} has shape {size}, that of {data.shape} has {expected}"
            raise ValueError(f"{message}\ngive the shape that the inputs have")
        if isinstance(split, Split):
            check_numbers(f"targets of {name}", split.targets, count_classes(data.shape), data.shape)
            if isinstance(data.shape, Tokens):
                check_numbers(f"inputs of {name}", split.inputs, data.shape.vocab_size, data.shape)
    return data


def check_numbers(name: str, numbers: Tensor, count: int | None, shape: object) -> None:
    """Raise ValueError for whole numbers that are not 0 to `count` - 1. IGNORE may be among them."""
    if count is None or numbers.is_floating_point() or not len(valid := numbers[numbers != IGNORE]):
        return
    low, high = int(valid.min()), int(valid.max())
    if low < 0 or high >= count:
        fix = "number them from 0, and give the shape as many" + ", or targets.float() for numbers" * (count == 1)
        raise ValueError(f"data: the {name} are {low} to {high}, those of {shape} are 0 to {count - 1}\n{fix}")


def check_target_type(loss: object, targets: Tensor) -> None:
    """Raise ValueError where a loss says that it takes targets of another type than the data have."""
    annotations = [p.annotation for p in inspect.signature(loss).parameters.values()] if isinstance(loss, FunctionType) else []
    takes: Any = annotations[1] if len(annotations) > 1 else None
    name, is_jaxtyping = str(targets.dtype).removeprefix("torch."), isinstance(takes, type) and issubclass(takes, AbstractArray)
    if is_jaxtyping and isinstance(takes.dtypes, tuple) and name not in takes.dtypes:
        fix = "give a loss for such targets, or annotate them as Shaped if it computes that"
        raise ValueError(f"loss: its targets are {takes.__name__}, the data have {name}\n{fix}")


def try_metric(name: str, metric: Metric, logits: Tensor, targets: Tensor) -> None:
    """Raise ValueError where a metric does not take such a batch, or where one of the user's own gives no rows, no number."""
    metric.reset()
    try:
        metric.update(logits, targets)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        if type(metric).__module__ != RowMetric.__module__:
            raise  # its file and line say more
        kind = "numbers" if targets.is_floating_point() else "classes"
        reason = f"metrics.{name} does not fit these data, whose targets are {kind}: {first_line(error)}"
        raise ValueError(f"{reason}\nleave it out with ~metrics.{name}, or give other metrics") from error
    number: object = 0.0
    if isinstance(metric, RowMetric):
        with suppress(Exception):  # of one sample it may have none
            number = metric.compute(metric.join_rows([metric]))
        metric.to_number(number)


def balance_classes(loss: Loss, data: Dataset[Any]) -> Loss:
    """Return the loss with numbers for class_weights=balanced: n / (k * count) of k classes, as scikit-learn has it.

    They count the n targets of the training split. Raise ValueError where it has none of a class.
    """
    if not isinstance(loss, partial) or loss.keywords.get("class_weights") != "balanced":
        return loss
    key, num_classes = "loss.class_weights=balanced", count_classes(data.shape)
    if num_classes is None or (isinstance(data.shape, Tokens) and not data.shape.num_classes):
        raise ValueError(f"{key} counts classes, and these data have none\ngive a list, or loss.class_weights=null")
    counts = torch.zeros(num_classes, dtype=torch.int64)
    for start in range(0, len(data.train), CHUNK):
        chunk = torch.arange(start, min(start + CHUNK, len(data.train)))
        targets = data.train.targets[chunk].long() if isinstance(data.train, Split) else data.train[chunk][1]
        counts += torch.bincount(targets[targets != IGNORE].cpu(), minlength=num_classes)
    if missing := (counts == 0).nonzero().flatten().tolist():
        names = name_classes(missing, data.classes)
        raise ValueError(f"{key}: the training split has no target of class {names}\ngive a list, or loss.class_weights=null")
    weights = (counts.sum() / (num_classes * counts.double())).tolist()
    return partial(loss.func, *loss.args, **{**loss.keywords, "class_weights": weights})


def count_classes(shape: object) -> int | None:
    """Return how many classes or tokens a target may be; None for a shape of one's own."""
    logits = get_logits_shape(shape)
    return None if logits is None else logits[0] if len(logits) == 3 else logits[-1]


def get_input_shape(shape: object) -> tuple[int, ...] | None:
    """Return the shape of one sample's inputs; None for a shape of one's own."""
    match shape:
        case Tokens():
            return (shape.seq_len,)
        case Vectors():
            return (shape.num_features,)
        case Images():
            return shape.channels, shape.height, shape.width
    return None


def get_logits_shape(shape: object) -> tuple[int, ...] | None:
    """Return the shape of one sample's logits; None for a shape of one's own."""
    match shape:
        case Tokens():
            return shape.seq_len, shape.num_classes or shape.vocab_size
        case Vectors():
            return (shape.num_classes,)
        case Images():
            return (shape.num_classes, *((shape.height, shape.width) if shape.per_pixel else ()))
    return None
