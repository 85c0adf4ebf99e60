"""Whether the parts of a run fit each other, as each may be the user's own: told before anything is written, if possible."""

import copy
import inspect
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from types import FunctionType
from typing import Any

import torch
from jaxtyping import AbstractArray
from torch import Tensor, nn

from research import rules
from research.cli import first_line, print_message
from research.contracts import contract
from research.data.spec import Dataset, Images, Samples, Split, Tokens, Vectors
from research.losses import IGNORE, Loss, check_class_weights, check_losses, make_plain
from research.metrics import Metric, RowMetric, Torchmetric, find_directions, name_classes
from research.options.trigger import check_metric_name, check_monitor
from research.ranges import check_partial
from research.signals import get_launched_ranks
from research.training.evaluate import list_metrics
from research.training.state import Callback

log = logging.getLogger(__name__)

CHUNK = 1024  # samples whose targets are counted at a time
TRIED = 64  # samples among which some of other targets are looked for
MOMENTS = ("on_start", "on_gradients", "on_step", "on_end")  # at which a callback is called
MIXES = "right for a contrastive loss; else look for axes that do not fit, and for a mean or softmax over the batch"


def check_logits(logits: object, targets: Tensor, model: nn.Module, loss: Loss, shape: object) -> Tensor:
    """Return the logits. Raise ValueError for what are none, and under our losses for another number of them than of classes.

    There may be more tokens than a tokenizer has: a vocabulary is often rounded up.
    """
    if not isinstance(logits, Tensor):
        name = locate(getattr(model, "module", model))  # within DistributedDataParallel
        raise ValueError(f"model: {name} returns a {type(logits).__name__}, no tensor\nreturn the logits from its forward")
    needed, count = get_logits_shape(shape), count_classes(shape)
    if needed is None or count is None or logits.ndim != len(needed) + 1:
        return logits
    if targets.is_floating_point() or not is_ours(loss):
        return logits
    is_vocabulary = isinstance(shape, Tokens) and not shape.num_classes
    size = logits.shape[1 if len(needed) == 3 else -1]
    if size < count or (size > count and not is_vocabulary):
        name, what = locate(getattr(model, "module", model)), "tokens" if is_vocabulary else "classes"
        raise ValueError(f"model: {name} returns {size} logits, the data have {count} {what}\ntake their number from the shape")
    return logits


def check_parts(model: nn.Module, schedule: object, callbacks: Sequence[object], data: Dataset[Any]) -> None:
    """Raise ValueError for inputs of another precision than the weights, for a schedule of other arguments, and for callbacks.

    A callback must be one, and each of its methods that looks like a moment must be one that is called.
    """
    x, weights = data.train[torch.arange(1)][0], [p.dtype for p in model.parameters() if p.is_floating_point()]
    if x.dtype == torch.float64 and weights and torch.float64 not in weights:
        raise ValueError("data: the inputs are float64, the weights of the model are not\ngive inputs.float()")
    check_call("schedule", schedule, "step", "steps")
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise ValueError(f"callbacks: {locate(callback)} is no Callback\nderive it from research.training.state.Callback")
        if others := [name for name in dir(callback) if name.startswith("on_") and name not in dir(Callback)]:
            message = f"callbacks: {locate(callback)} has {', '.join(others)}, which is never called"
            raise ValueError(
                f"{message}\na callback has {', '.join(MOMENTS)}, each of (state); call a function of your own otherwise"
            )


def check_call(key: str, function: object, *arguments: str) -> None:
    """Raise ValueError for settings of a partial that are not of their type, and for a function of other arguments."""
    if not callable(function):
        raise ValueError(f"{key}: a {type(function).__name__} is no function of {' and '.join(arguments)}")
    check_partial(key, function)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # compiled
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        fix = f"take these two first, and give each other parameter a default, or a value below '{key}' in its yaml"
        reason = f"the run calls it with ({', '.join(arguments)}): {error}"
        raise ValueError(f"{key}: {locate(function)}: {reason}\n{fix}") from error


@contract
def locate(part: object) -> str:
    """Return the name of a function or of a part's class, with file:line where it has a source."""
    part = part.func if isinstance(part, partial) else part
    named: Any = part if isinstance(part, FunctionType | type) else type(part)
    name = f"{named.__module__}.{named.__qualname__}"
    with suppress(OSError, TypeError):
        return f"{name} ({inspect.getsourcefile(named)}:{inspect.getsourcelines(named)[1]})"
    return name


def is_ours(loss: Loss) -> bool:
    """Return whether a loss is of research.losses."""
    return getattr(loss.func if isinstance(loss, partial) else loss, "__module__", "") == check_losses.__module__


def check_task(data: object, loss: Loss, metrics: Mapping[str, Metric], monitor: str, tries_loss: bool = True) -> None:
    """Raise ValueError for data that are not of their shape, and for a loss, metric or monitor that does not fit them.

    They are tried on a sample with logits of zero. A loss of one's own gets random ones: its model may have other outputs.
    `tries_loss`: it is called some times, which a loss that counts its calls would see.
    """
    dataset, directions = check_dataset(data), find_directions(metrics)
    rules.enforce(*(check_metric_name(name) for name in metrics))
    check_call("loss", loss, "logits", "targets")
    y, shape, logits = dataset.val[torch.arange(1)][1], get_logits_shape(dataset.shape), None
    if not is_ours(loss):
        check_target_type(loss.func if isinstance(loss, partial) else loss, y)
        if shape is not None and tries_loss:
            try_loss(make_plain(loss), dataset, shape)
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


@contract
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


def try_loss(loss: Loss, data: Dataset[Any], shape: tuple[int, ...]) -> None:
    """Raise ValueError for a loss without a gradient; warn where a sample's loss depends on the others of its batch.

    It gets random logits of the data's shape, and samples of other targets. One that takes other logits is not tried.
    """
    y = data.val[torch.arange(min(TRIED, len(data.val)))][1]
    first = {str(row): index for index, row in reversed([*enumerate(y.tolist())])}
    y = y[sorted(first.values())[:3]]
    logits = torch.randn(len(y), *shape, generator=torch.Generator().manual_seed(0)).to(y.device).requires_grad_()
    whole = again = apart = torch.zeros(())
    try:
        with torch.random.fork_rng(devices=[]):
            loss = copy.deepcopy(loss)  # it may count its calls
            whole, again = loss(logits, y), loss(logits, y)
            apart = torch.cat([loss(logits[i : i + 1], y[i : i + 1]) for i in range(len(y))])
    except Exception as error:  # a user's own may raise any
        log.debug("the loss was not tried: %s", error)
    if whole.numel() > 1 and not whole.requires_grad:
        fix = "compute it from the logits by functions with a gradient, without argmax, detach and comparisons"
        raise ValueError(f"loss: {locate(loss)}: its numbers have no gradient\n{fix}")
    is_random = not torch.equal(whole.detach().nan_to_num(), again.detach().nan_to_num())
    if whole.shape == y.shape == apart.shape and not is_random and not torch.allclose(whole, apart, 1e-3, 1e-5, equal_nan=True):
        hint = "logits are [batch, 1], targets [batch]: take logits.squeeze(1)" if (shape, y.ndim) == ((1,), 1) else ""
        warn(f"warning: loss: {locate(loss)}: a sample's loss depends on the others of its batch\n  {hint or MIXES}")


@cache
@contract
def warn(text: str) -> None:
    """Print a warning, once, in the first process of a run."""
    if get_launched_ranks()[0] == 0:
        print_message(text)


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
        try:
            number = metric.compute(metric.join_rows([metric]))
        except Exception as error:  # of one sample it may have none
            log.debug("metrics.%s was not computed: %s", name, error)
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
