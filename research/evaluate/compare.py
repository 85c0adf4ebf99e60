"""Several models on the same samples: what each reaches, and its difference to the first, paired where it can be."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from research.cli import announce_wait, format_count, print_message
from research.contracts import contract
from research.data.spec import Dataset, Images, Samples, Tokens, Vectors
from research.evaluate.forms import LoadedModel, load_model
from research.evaluate.intervals import Estimate, estimate, estimate_difference
from research.evaluate.measure import Measurement, measure
from research.evaluate.refs import ModelRef, name_models
from research.evaluate.samples import group_samples, select_split
from research.load import build_node
from research.losses import Loss, make_plain
from research.metrics import Metric
from research.models.decoder import Decoder
from research.preflight.evaluation import EvaluationTask
from research.signals import get_launched_ranks
from research.training.task import check_task, get_logits_shape
from research.training.trainer import Trainer

TABLE = "research.data.table.table"
BITS = "val/bpb"  # the metric that does not depend on the tokenizer


@dataclass(frozen=True)
class Options:
    """How models are judged; None: as each was trained."""

    split: str | None = None
    samples: int | None = None
    batch_size: int | None = None
    device: str | None = None
    precision: str | None = None
    packed: bool = False


@dataclass
class BuiltTask:
    """A task that is built: what several models can be judged on."""

    task: EvaluationTask
    data: Dataset[Any]
    loss: Loss
    metrics: Mapping[str, Metric]
    split: Samples
    split_name: str
    parts: Int[Tensor, "samples"]
    unit: str  # of a part: document, block or sample
    overfit: int = 0  # the first so many training samples are what is judged
    samples: int | None = None  # only the first so many are judged

    @property
    def key(self) -> tuple[object, ...]:
        """What two models must share for their difference to be paired."""
        shape = self.split.target_shape
        samples = self.data.digest, self.split_name, self.overfit, len(self.split), shape
        return *samples, str(self.task.loss), str(self.task.metrics)

    def is_same_text(self, other: "BuiltTask") -> bool:
        """Return whether another is of the same text, however each is cut into tokens: their first N samples are not."""
        own, others = (
            {key: value for key, value in built.task.data.items() if key not in ("tokenizer", "seq_len")}
            for built in (self, other)
        )
        is_whole = not any((self.samples, other.samples, self.overfit, other.overfit))
        return is_whole and own == others and self.split_name == other.split_name


@dataclass
class Result:
    """What one model reaches."""

    name: str
    ref: ModelRef
    loaded: LoadedModel
    built: BuiltTask
    measurement: Measurement
    metrics: dict[str, Estimate]
    differences: dict[str, Estimate] = field(default_factory=dict)  # to the first
    is_paired: bool = False


def compare(
    refs: Sequence[ModelRef], tasks: Sequence[EvaluationTask], options: Options, poll: Callable[[], None]
) -> list[Result]:
    """Return what each model reaches on its task, and its difference to the first. Raise ValueError where one does not fit."""
    if get_launched_ranks()[1] > 1:
        raise ValueError("an evaluation is one process: start it without torchrun, accelerate launch or srun of several tasks")
    torch.set_flush_denormal(True)  # as in training
    results, built_tasks = list[Result](), dict[str, BuiltTask]()
    for name, ref, task in zip(name_models(refs), refs, tasks, strict=True):
        split = options.split or ("val" if task.is_own else "all")
        settings = ref.recorded.get("trainer") or {}
        overfit = int(settings.get("overfit") or 0) if task.is_own else 0
        key = f"{task} {split} {overfit}"
        if key not in built_tasks:
            built_tasks[key] = build_task_data(task, split, overfit, options.samples)
        built = built_tasks[key]
        loaded = load_model(ref, options.packed, built.data.shape)
        check_shape(ref, loaded, built.data)
        if task.is_own and not built.data.digest.startswith(loaded.data_digest):
            why = "its data have changed since" if ref.kind == "run" else "these data are not those of its run"
            print_message(f"note: RUN={ref.word}: {why}: these numbers are not those of its training")
        results.append(evaluate_model(name, ref, loaded, built, options, settings, poll))
        add_differences(results[0], results[-1])
    if others := [result.name for result in results[1:] if not result.is_paired]:
        print_message(f"note: {', '.join(others[:3])}: other samples than those of {results[0].name}, so nothing is paired")
    return results


def build_task_data(task: EvaluationTask, split_name: str, overfit: int, samples: int | None) -> BuiltTask:
    """Build the data, the loss and the metrics of a task."""
    data: Dataset[Any] = build_node(task.data, "data", is_foreign=task.is_own)
    loss: Loss = build_node(task.loss, "loss", is_foreign=task.is_own)
    metrics = {name: build_node(node, f"metrics.{name}", is_foreign=task.is_own) for name, node in task.metrics.items()}
    check_task(data, loss, metrics, "val/loss", tries_loss=False)
    split = select_split(data, split_name, overfit, samples)
    parts, unit = group_samples(split, data.shape)
    if not task.is_own and task.data["_target_"] == TABLE:
        print_message("note: numbers are standardised, and texts numbered, by the training part of these data, not the run's")
    for note in () if task.is_own else data.notes:
        if "train" not in note:  # else it is of a model that would be trained on these data
            print_message(f"note: {note}")
    return BuiltTask(task, data, make_plain(loss), metrics, split, split_name, parts, unit, overfit, samples)


def evaluate_model(
    name: str,
    ref: ModelRef,
    loaded: LoadedModel,
    built: BuiltTask,
    options: Options,
    settings: Mapping[str, Any],
    poll: Callable[[], None],
) -> Result:
    """Return what one model reaches: in the batches, precision and device of its training, unless other ones are given."""
    batch_size = -(-int(settings.get("batch_size") or 64) // int(settings.get("grad_accum") or 1))
    batch_size = min(options.batch_size or batch_size, loaded.max_batch or batch_size)
    precision = options.precision or ("fp32" if loaded.is_on_host else str(settings.get("precision") or "fp32"))
    device: Any = "cpu" if loaded.is_on_host else options.device or settings.get("device") or "auto"
    trainer = Trainer(batch_size=batch_size, device=device, precision=precision)  # type: ignore[arg-type]
    target = trainer.accelerator.device
    model, split = trainer.to_device(loaded.model), built.split.to(target)
    batch_size = loaded.max_batch or batch_size
    arguments = (built.loss, built.metrics, built.parts, batch_size, trainer.autocast, poll)
    try:
        with announce_wait(f"{name}: {format_count(len(split), 'sample')}; --samples N judges fewer", 10):
            measurement = measure(model, split, *arguments)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise ValueError(f"out of memory: {str(error).splitlines()[0]}; give a smaller --batch-size") from error
        raise
    loaded.model = nn.Identity()  # of a sweep one model at a time is held
    estimates = {key: estimate(value, measurement.influences.get(key)) for key, value in measurement.values.items()}
    return Result(name, ref, loaded, built, measurement, estimates)


def add_differences(first: Result, other: Result) -> None:
    """Add the differences of a result to the first one: paired on the same samples, else those of bits per byte alone.

    Without pairs the variances are added: right for the same text in other tokens, whose windows are not the same.
    """
    if other is first:
        return
    other.is_paired = other.built.key == first.built.key
    measured, before = other.measurement, first.measurement
    if other.is_paired:
        for key in measured.influences.keys() & before.influences.keys():
            pair = [(result.values[key], result.influences[key]) for result in (measured, before)]
            other.differences[key] = estimate_difference(*pair)
    elif BITS in other.metrics and BITS in first.metrics and other.built.is_same_text(first.built):
        one, two = other.metrics[BITS], first.metrics[BITS]
        half = math.hypot(one.half, two.half)
        value = one.value - two.value
        other.differences[BITS] = Estimate(value, math.hypot(one.stderr, two.stderr), value - half, value + half)


def check_shape(ref: ModelRef, loaded: LoadedModel, data: Dataset[Any]) -> None:
    """Raise ValueError for data of another shape, other tokens or other classes than the model was trained on."""
    known, shape, head = loaded.shape, data.shape, f"RUN={ref.word}"
    if isinstance(loaded.model, Decoder) and len(data.val.target_shape) == 1:
        raise ValueError(f"{head}: its model predicts at the last position, these data have a target at every one")
    if known is None or get_logits_shape(shape) is None:
        return
    if type(known) is not type(shape):
        fix = "give data of the kind that it was trained on"
        raise ValueError(f"{head} was trained on {describe_shape(known)}, these data are {describe_shape(shape)}; {fix}")
    for key, own in known._asdict().items():
        other = getattr(shape, key)
        if own != other and key not in ("mean", "scale", "end") and not (key == "seq_len" and other < own):
            fix = f"; give data.seq_len={own}" if key == "seq_len" else ""
            raise ValueError(f"{head} was trained with {count(key, own)}, these data have {count(key, other)}{fix}")
    if loaded.classes and data.classes and list(loaded.classes) != list(data.classes):
        other = next(n for n, pair in enumerate(zip(loaded.classes, data.classes, strict=True)) if pair[0] != pair[1])
        message = f"{head}: class {other} is {loaded.classes[other]!r} there and {data.classes[other]!r} in these data"
        raise ValueError(f"{message}; give data with the same names of classes")


@contract
def count(key: str, number: int) -> str:
    """Return a size of a shape, for people."""
    if key == "per_pixel":
        return "a class for each pixel" if number else "a class for each image"
    if key == "num_classes" and not number:
        return "next tokens to predict and no classes"
    texts = {"num_features": "{} features", "num_classes": "{} classes", "vocab_size": "a vocabulary of {} tokens"}
    return texts.get(key, "sequences of {} tokens" if key == "seq_len" else f"{key} {{}}").format(number)


def describe_shape(shape: object) -> str:
    """Return what samples of a shape are, for people."""
    kinds = {Tokens: "sequences of tokens", Vectors: "vectors of numbers", Images: "images"}
    return kinds.get(type(shape), str(shape))
