"""Settings that are valid by themselves and do not go together, each with the value that would.

Rules about plain values live in `research/rules.py`, where constructors find them too. What stands here asks about options,
files and processes, which only a command line has. Every check yields a `Conflict`, or None where all is well.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial

from research import rules
from research.composition.compose import MISSING, is_interpolated
from research.composition.teacher import find_teacher_conflicts
from research.contracts import contract
from research.options.conf import find_target, list_groups, list_offers, read_whole, read_yaml
from research.options.trigger import (
    Trigger,
    check_metric_name,
    check_monitor,
    check_trigger,
    check_trigger_order,
    is_beyond,
    parse_trigger,
    read_directions,
)
from research.preflight.folders import find_folder_conflicts, find_out_conflicts, find_shared_folder_conflicts
from research.preflight.known_keys import read_option
from research.preflight.requested import RequestedConfig
from research.preflight.resume import find_resume_conflicts
from research.preflight.trackers import find_extra_conflicts, find_store_conflicts, find_tracker_conflicts
from research.rules import Conflict
from research.signals import get_launched_ranks

Conflicts = Iterator[Conflict | None]
DECODER = "research.models.decoder.Decoder"  # an output at the last position only
LEARNT_POSITIONS = (DECODER, "research.models.vision.Vision")
NUMBERS = "research.losses.regression"  # the loss whose targets are no classes
MODULAR = "research.data.modular.modular"  # tokens without one between documents
TRANSFORM_MODULES = ("research.optim.grokfast.", "research.optim.orthograd.")  # they stand before a base optimizer
MEASURING_CALLBACKS = ("ternary", "gradients", "grokking")


def find_task_conflicts(requested: RequestedConfig) -> Conflicts:
    """Yield the conflict of a model that takes another shape than the data set gives, or predicts at too few positions."""
    data, model = requested.get_choice("data"), requested.get_choice("model")
    gives, takes = requested.get_signature("data").parse_shape(), requested.get_signature("model").get_annotation(0)
    if gives and takes and gives != takes:
        tasks = [f"data={o}" for o in list_offers("data") if read_option("data", o).parse_shape() == takes]
        models = [f"model={o}" for o in list_groups()["model"] if read_option("model", o).get_annotation(0) == gives]
        message = f"data={data} gives {gives}, model={model} takes {takes}"
        fix = " or ".join(models if models and "data" in requested.typed_overrides else [*tasks, *models])
        if tasks:  # else the model is the user's own, and may well take both
            yield Conflict(("data", "model"), message, f"give {fix}")
    every_position = re.search("override /loss: (next_token|seq2seq)", read_whole("data", data))
    if every_position and requested.get_resolved("model._target_")[0] == DECODER:
        message = f"data={data} needs a prediction at every position, model={model} gives the last one only"
        yield Conflict(("model", "data"), message, "give model=transformer or model=bitnet, or data=modular")
    if requested.get_resolved("data._target_")[0] == MODULAR:
        yield rules.check_document_mask(requested.get_resolved("model.document_mask")[0] is True, end=-1)


@contract
def find_loss_conflicts(requested: RequestedConfig) -> Conflicts:
    """Yield the conflict of a loss whose logits or targets have other axes than the data set's own, as far as it says which.

    So is the monitor of bits per byte without a loss at every position.
    """
    data, loss = requested.get_choice("data"), requested.get_choice("loss")
    own = re.search(r"override /loss: (\w+)", read_whole("data", data))
    taken, needed = (s.parse_axes() for s in (requested.get_signature("loss"), read_option("loss", own[1] if own else "")))
    targets = (str(requested.get_resolved("loss._target_")[0]), find_target("loss", own[1]) if own else "")
    is_ours = targets[0].startswith("research.losses.")
    if any(a and b and len(a.split()) != len(b.split()) for a, b in zip(taken, needed, strict=True)):
        takes, has = (f"logits [{logits or '...'}] and targets [{targets or '...'}]" for logits, targets in (taken, needed))
        message = f"loss={loss} takes {takes}, data={data} has {has}"
        fix = "" if is_ours else "annotate your loss so if it computes that, or leave the annotations out; else "
        yield Conflict(("loss", "data"), message, f"{fix}give loss={own[1] if own else ''}")
    elif own and is_ours and targets[1].startswith("research.losses.") and len({NUMBERS, *targets}) == 2 == len({*targets}):
        message = f"loss={loss} is of {'numbers' if targets[0] == NUMBERS else 'classes'}, the targets of data={data} are not"
        yield Conflict(("loss", "data"), message, f"give loss={own[1]}")
    elif requested.get_resolved("monitor")[0] == "val/bpb" and len(taken[1].split()) == 1:
        message = f"monitor=val/bpb needs a loss at every position, loss={loss} has one a sequence"
        yield Conflict(("monitor", "loss"), message, "give monitor=val/acc or monitor=val/loss")


def find_monitor_conflicts(requested: RequestedConfig) -> Conflicts:
    """Yield the conflicts of a monitor that no evaluation reports, and of metrics with a taken name or no better way."""
    metrics, monitor = requested.get("metrics"), requested.get_resolved("monitor")[0]
    for name, node in metrics.items() if isinstance(metrics, dict) else ():
        yield check_metric_name(name)
        if isinstance(node, dict) and "higher_is_better" not in node:
            key = f"metrics.{name}.higher_is_better"
            yield Conflict(
                (f"metrics.{name}",), f"metrics.{name} does not say which way is better", f"give +{key}=true or +{key}=false"
            )
            monitor = MISSING if monitor == f"val/{name}" else monitor  # it may well be one
    if conflict := check_metrics(requested):
        yield conflict
        return
    if monitor is MISSING or is_interpolated(monitor) or monitor == "???":
        return
    if not (conflict := check_monitor(monitor, read_directions(requested.cfg))):
        return
    having = [
        o for o in list_groups()["metrics"] if f"\n{str(monitor).removeprefix('val/')}:\n" in f"\n{read_yaml('metrics', o)}"
    ]
    choices = " or ".join(
        f"metrics={option} monitor={monitor}" for option in having if option != requested.get_choice("metrics")
    )
    yield conflict._replace(fix=f"give {choices}") if choices else conflict


@contract
def check_metrics(requested: RequestedConfig) -> Conflict | None:
    """Return the conflict of metrics of numbers with a loss of classes, or the other way round, as far as they are ours."""
    data, metrics, loss = (requested.get_choice(group) for group in ("data", "metrics", "loss"))
    texts = {option: read_yaml("data", option) for option in list_groups()["data"]}
    pairs = {option: dict(re.findall(r"override /(loss|metrics): (\w+)", text)) for option, text in texts.items()}
    having = [option for option, own in pairs.items() if own.get("metrics") == metrics]
    is_ours = loss in {own.get("loss") for own in pairs.values()}
    if (
        "metrics" not in requested.typed_overrides
        or not having
        or not is_ours
        or (metrics == "regression") == (loss == "regression")
    ):
        return None
    own = pairs.get(data, {}).get("metrics")
    fix = f"give metrics={own}" if own and own != metrics else f"leave out metrics={metrics}"
    return Conflict(("metrics",), f"metrics={metrics} is for data={' or data='.join(having)}, not for loss={loss}", fix)


def find_target_conflicts(requested: RequestedConfig) -> Conflicts:
    """Yield the conflict of a target that the data set brings for its own monitor, or that the monitor never reaches."""
    own = dict(re.findall(r"^(monitor|target): (\S+)", read_whole("data", requested.get_choice("data")), re.MULTILINE))
    monitor, (target, source) = requested.get_resolved("monitor")[0], requested.get_resolved("callbacks.early_stop.target")
    if monitor != own.get("monitor", monitor) and str(target) == own.get("target") and source not in requested.typed_overrides:
        message = f"target={target} is meant for {own['monitor']}, not for monitor={monitor}"
        yield Conflict(("monitor", "target"), message, f"give target=null or target=VALUE, the {monitor} to stop at")
    elif isinstance(target, int | float) and is_beyond(str(monitor), target):
        fix = f"give {source}={target / 100:g}" if 2 <= target <= 100 else f"give {source}=VALUE of at most 1"
        yield Conflict(("callbacks.early_stop.target", "monitor"), f"{monitor} is at most 1: it never reaches {target:g}", fix)


@contract
def find_kind_conflicts(requested: RequestedConfig) -> Conflicts:
    """Yield the conflict of a kind of target that belongs to another data set, with its loss and metrics."""
    data, kind = requested.get_choice("data"), requested.get_resolved("data.kind")[0]
    own = re.search(r"^  kind: (\w+)", read_whole("data", data), re.MULTILINE)
    if own and own[1] != kind:
        options = [o for o in list_groups()["data"] if f"\n  kind: {kind} " in read_yaml("data", o)]
        message = f"data.kind={kind} has another loss and other metrics than data={data}"
        yield Conflict(("data.kind",), message, f"give {' or '.join(f'data={o}' for o in options)}") if options else None


@contract
def find_number_conflicts(requested: RequestedConfig) -> Conflicts:
    """Yield the conflicts of whole numbers that must divide each other, or must lie within the run."""
    check, granularity = partial(check_numbers, requested), "model.linear.granularity"
    rotary = requested.get_resolved("model._target_")[0] not in LEARNT_POSITIONS
    yield check(partial(rules.check_heads, rotary=rotary), "model.dim", "model.heads")
    yield check(rules.check_kv_heads, "model.heads", "model.kv_heads")
    for width in ("model.dim", "model.ffn_dim"):
        if conflict := check(rules.check_group_size, granularity, width):
            yield conflict._replace(keys=(granularity, width))
    backend = str(requested.get_resolved("model.linear.backend")[0])
    yield check(partial(rules.check_backend, backend=backend), granularity)
    yield check(rules.check_warmup, "model.linear.warmup", "trainer.steps")
    if requested.get_resolved("schedule.warmup")[1] in requested.typed_overrides:  # that of an option is for runs of any length
        yield check(check_schedule_warmup, "schedule.warmup", "trainer.steps")
    yield check(partial(rules.check_prime, str(requested.get_resolved("data.operation")[0])), "data.p")
    fractions = [requested.get_resolved(f"data.{name}_fraction")[0] for name in ("val", "test")]
    if all(isinstance(fraction, int | float) for fraction in fractions):
        yield rules.check_fractions(*fractions)
    for name in (*MEASURING_CALLBACKS, "utilization"):
        rule = partial(rules.check_callback_every, name)
        yield check(rule, f"callbacks.{name}.every", "trainer.log_every", "trainer.eval_every")


def check_schedule_warmup(warmup: int, steps: int) -> Conflict | None:
    """Return the conflict of a warm-up that is longer than the run, which never gets to its learning rate."""
    if warmup <= steps:
        return None
    message = f"schedule.warmup={warmup} does not end within trainer.steps={steps}: lr is never reached"
    return Conflict(("schedule.warmup", "trainer.steps"), message, f"give schedule.warmup={steps // 10}, or more steps")


def find_length_conflicts(requested: RequestedConfig) -> Conflicts:
    """Yield the conflict of steps and epochs that both say how long the run is."""
    epochs = requested.get_resolved("epochs")[0]
    for key in ("steps", "trainer.steps"):
        if epochs is not None and key in requested.typed_overrides and requested.get(key) is not None:
            message = f"{key}={requested.get(key)} and epochs={epochs} both say how long the run is"
            yield Conflict((key, "epochs"), message, f"leave out {key}, or give epochs=null")
    has_own = requested.get("trainer.steps") != "${steps}" and "trainer.steps" not in requested.typed_overrides
    if "epochs" in requested.typed_overrides and epochs is not None and has_own:
        trainer = f"trainer={requested.get_choice('trainer')}"
        yield Conflict(("epochs", "trainer"), f"{trainer} has a number of steps of its own", f"leave out epochs, or {trainer}")
    end, steps, floor = (requested.get_resolved(key)[0] for key in ("schedule.end", "trainer.steps", "schedule.floor"))
    is_ours = str(requested.get_resolved("schedule._target_")[0]).startswith("research.optim.schedules.")
    if epochs is None and is_ours and floor in (0, MISSING) and isinstance(end, int) and isinstance(steps, int) and end < steps:
        message = f"schedule.end={end}: the steps after it, up to {steps}, would have lr=0 and learn nothing"
        fix = f"give {requested.get_resolved('trainer.steps')[1]}={end}, or leave out schedule.end"
        yield Conflict(("schedule.end", "trainer.steps"), message, fix)


def find_process_conflicts(requested: RequestedConfig) -> Conflicts:
    """Yield the conflicts of settings with the number of processes; launchers may start fewer than requested."""
    parallel, world_size = str(requested.get_resolved("trainer.parallel")[0]), get_launched_ranks()[1]
    if parallel in ("ddp", "fsdp"):
        yield rules.check_processes(parallel, world_size)
    for name in MEASURING_CALLBACKS:
        if requested.get_resolved(f"callbacks.{name}._target_")[0] is not MISSING:
            yield rules.check_whole_tensors(name, sharded=parallel == "fsdp")
    rule = partial(rules.check_batch_size, world_size=world_size)
    yield check_numbers(requested, rule, "trainer.batch_size", "trainer.grad_accum")


def find_base_conflicts(requested: RequestedConfig) -> Conflicts:
    """Yield the conflicts of a base optimizer: with settings that are not its own, or with the transform before it."""
    base = requested.get("optim.base")
    target, signature = str(requested.get_resolved("optim.base._target_")[0]), requested.get_signature("optim.base")
    for key in base if isinstance(base, dict) else ():
        if not is_interpolated(value := requested.get_resolved(f"optim.base.{key}")[0]):
            yield rules.check_base_setting(key, value)
            yield rules.check_betas(target, value) if key == "betas" and isinstance(value, list) else None
    if signature.names and str(requested.get_resolved("optim._target_")[0]).startswith(TRANSFORM_MODULES):
        yield rules.check_filter_base(target, is_optimizer="lr" in signature.names and not signature.returns)


def find_trigger_conflicts(requested: RequestedConfig) -> Conflicts:
    """Yield the conflicts of a filter's triggers that cannot be read, never fire, or fire in the wrong order."""
    triggers, eval_train = dict[str, Trigger](), requested.get_resolved("trainer.eval_train")[0] is True
    for key in ("optim.start_when", "optim.stop_when"):
        if (raw := requested.get_resolved(key)[0]) in (None, MISSING):
            continue
        try:
            triggers[key] = parse_trigger(raw, key)
        except ValueError as error:
            yield rules.to_conflict(key, error)
            continue
        yield check_numbers(requested, partial(check_trigger, key, triggers[key], eval_train), "trainer.steps")
    if len(triggers) == 2:
        start, stop = triggers.values()
        yield check_trigger_order(start, stop, read_directions(requested.cfg))


def find_dataset_conflicts(requested: RequestedConfig) -> Conflicts:
    """Yield the conflict of what is neither a folder nor the id of a data set of the hub, or cannot be read here."""
    dataset = requested.get_resolved("data.dataset")[0]
    is_read = str(requested.get_resolved("data._target_")[0]).startswith("research.data.hub.")
    if is_read and (dataset is None or isinstance(dataset, str)) and not is_interpolated(dataset):
        from research.files.hub import check_dataset, has_copies  # it starts processes: of no use to other data

        try:
            check_dataset(dataset)
        except ValueError as error:
            yield rules.to_conflict("data.dataset", error)
        else:
            yield None if has_copies() else rules.check_extra(f"data.dataset={dataset}", "datasets", "hub")


FINDERS: tuple[Callable[[RequestedConfig], Conflicts], ...] = (
    find_task_conflicts,
    find_loss_conflicts,
    find_monitor_conflicts,
    find_target_conflicts,
    find_number_conflicts,
    find_length_conflicts,
    find_process_conflicts,
    find_base_conflicts,
    find_trigger_conflicts,
    find_folder_conflicts,
    find_dataset_conflicts,
    find_out_conflicts,
    find_shared_folder_conflicts,
    find_extra_conflicts,
    find_tracker_conflicts,
    find_store_conflicts,
    find_kind_conflicts,
    find_resume_conflicts,
    lambda requested: find_teacher_conflicts(requested.get("objective"), lambda key: requested.get_resolved(key)[0]),
)


@contract
def check_numbers(requested: RequestedConfig, rule: Callable[..., Conflict | None], *keys: str) -> Conflict | None:
    """Return a rule's conflict; None where a value is not a whole number above 0, which another check reports.

    How many steps some epochs take is not known before the data is read.
    """
    if "trainer.steps" in keys and requested.get_resolved("epochs")[0]:
        return None
    values = [requested.get_resolved(key)[0] for key in keys]
    return rule(*values) if all(type(value) is int and value > 0 for value in values) else None
