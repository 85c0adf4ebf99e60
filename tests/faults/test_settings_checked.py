"""Row 7: a setting out of range is refused where a part is built without Hydra, as by the command line.

Run as a program, this file builds each component of conf/ with each wrong value, as a notebook does: in the tests' own process
beartype would be the first to complain of a type.
"""

import inspect
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import zip_longest
from typing import Any

import pytest
import torch
from fitting import DATA, make_state
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf
from program import ROOT, run
from torch import Tensor, nn

from research.data.modular import modular
from research.data.spec import Dataset, MemoryDataset, Split, Tokens, Vectors
from research.losses import classification, last_token, stablemax
from research.models.transformer import Transformer
from research.nn.bitlinear import BitLinear
from research.optim.schedules import bitnet, constant, cosine, wsd
from research.options.conf import list_groups, read_yaml
from research.preflight.advice import CommandLine
from research.preflight.check import find_mistakes, judge
from research.ranges import ValueType, check_partial, parse_annotation
from research.training.evaluate import evaluate
from research.training.trainer import Trainer

GROUPS = ("model", "linear", "data", "optim", "schedule", "trainer", "callbacks")
Wrong = tuple[str, str, Any]  # the option, the key, the value


def iter_nodes(key: str, node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if str(node.get("_target_", "")).startswith("research."):
            yield key, node
        for name, inner in node.items():
            yield from iter_nodes(f"{key}.{name}", inner)


def iter_wrong_values(value_types: tuple[ValueType, ...]) -> Iterator[Any]:
    """Values on both sides of a range and of other types, of which no alternative takes any."""
    candidates: list[Any] = ["other", 2.5, True, None, [0.5], [1.5, 0.5]]
    for value_type in value_types:
        if value_type.name in ("int", "float") and value_type.interval:
            ends = [float(end) for end in value_type.interval[1:-1].split(",")]
            low, high = int(max(ends[0], -9)), min(ends[-1], 9)
            candidates += [low - 1, low, int(high) + 1, 0.0, 1.0, math.inf, -math.inf, math.nan]
    for value in candidates:
        if not any(value_type.accepts(value) for value_type in value_types):
            yield value


@cache
def compose_options(options: str) -> Any:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return OmegaConf.to_container(compose("config", options.split()), resolve=True)


def list_wrong() -> list[Wrong]:
    """Each setting of each component with a range, a choice or a type, and values that it does not take."""
    wrong: list[Wrong] = []
    seen = set[str]()
    for group in GROUPS:
        for option in list_groups()[group]:
            if set(re.findall(r"_target_: (research\.\S+)", read_yaml(group, option))) <= seen:
                continue
            fits = ["data=digits"] if option == "mlp" else ["data=text"] if option == "hub" else []
            options = " ".join([*fits, f"{group}={option}"])
            root = "model" if group == "linear" else group
            for key, node in iter_nodes(root, compose_options(options)[root]):
                if node["_target_"] in seen:
                    continue
                seen.add(node["_target_"])
                for name, parameter in inspect.signature(get_object(node["_target_"])).parameters.items():
                    value_types = parse_annotation(parameter.annotation)
                    if name in node and not any(t.name in ("any", "path") for t in value_types):
                        wrong += [(options, f"{key}.{name}", value) for value in iter_wrong_values(value_types)]
    return wrong


def build(options: str, key: str, value: Any) -> Any:
    """Build the component of one setting without Hydra; the rest of its settings are those of conf/."""
    group = key.partition(".")[0]
    node_key, _, name = key.rpartition(".")
    node = compose_options(options)
    for part in node_key.split("."):
        node = node[part]
    settings = {k: v for k, v in node.items() if not k.startswith("_") and not isinstance(v, dict)} | {name: value}
    target, shape = get_object(node["_target_"]), Vectors(4, 2) if "mlp" in node["_target_"] else Tokens(8, 4)
    if key.startswith("model.linear"):
        return target(8, 8, **settings)
    if group == "optim" and node_key == "optim":
        return target(nn.Linear(2, 2), partial(torch.optim.AdamW), **settings)
    if group == "optim":
        return target([{"params": nn.Linear(2, 2).named_parameters()}], lr=0.1, **settings)
    if group == "schedule":
        return check_partial("schedule", partial(target, **settings))
    linear = {"linear": nn.Linear} if "linear" in node else {}
    return target(*[shape] if group == "model" else [], **settings | linear)


@cache
def read_refusals() -> list[tuple[Wrong, str]]:
    """Each wrong value, and what its constructor says to it in a process without the tests' hook."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = run([__file__], ROOT, environment)
    assert done.returncode == 0, done.stderr
    return [(tuple(wrong), refusal) for wrong, refusal in json.loads(done.stdout.splitlines()[-1])]


def to_text(value: Any) -> str:
    return "null" if value is None else str(value).replace(" ", "").replace("True", "true")


def test_every_component_is_in_the_table() -> None:
    assert len(read_refusals()) > 500
    keys = {key for (_, key, _), _ in read_refusals()}
    assert {
        "trainer.clip_norm",
        "trainer.guard.policy",
        "model.linear.warmup",
        "optim.base.t_alpha",
        "optim.base.betas",
    } <= keys
    assert {"schedule.floor", "data.p", "callbacks.early_stop.target", "optim.lamb", "model.dropout"} <= keys


@pytest.mark.parametrize("group", [group for group in GROUPS if group != "linear"])
def test_python_and_the_command_line_refuse_it_in_the_same_words(group: str) -> None:
    """A command line takes one wrong value of each setting, and tells of all. What options share is tried once in full."""
    refusals: dict[str, dict[str, list[tuple[Any, str]]]] = {}  # options -> key -> wrong values, and what Python says
    tried = set[tuple[str, str]]()
    for (options, key, value), refusal in read_refusals():
        assert refusal.startswith(f"{key} takes "), (value, refusal)
        is_new = key not in refusals.get(options, {}) or (key, refusal) not in tried
        if key.partition(".")[0] == group and is_new:
            tried.add((key, refusal))
            refusals.setdefault(options, {}).setdefault(key, []).append((value, refusal))
    assert refusals
    for options, keys in refusals.items():
        for row in zip_longest(*keys.values()):
            cases = {key: case for key, case in zip(keys, row, strict=True) if case}
            words = [*options.split(), *(f"{key}={to_text(value)}" for key, (value, _) in cases.items())]
            with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):  # advice is not tried: others do
                mistakes = judge(CommandLine(tuple(words), False)).mistakes
            said = {mistake.splitlines()[1].strip() for mistake in mistakes}
            assert {refusal for _, refusal in cases.values()} <= said


@pytest.mark.parametrize(
    ("optim", "settings", "words"),
    [
        ("adamw", {"betas": [0.9, 1.0]}, "optim.base.betas takes a list of numbers in [0, 1); got [0.9, 1.0]"),
        ("adamw", {"betas": [0.9]}, "optim.base.betas=[0.9]: AdamW has two\ngive optim.base.betas=[0.9,0.98]"),
        ("grokfast", {"betas": [0.9, 0.98, 0.99]}, "optim.base.betas=[0.9, 0.98, 0.99]: AdamW has two"),
        ("muon", {"betas": [0.9, 0.98, 0.99]}, "optim.base.betas=[0.9, 0.98, 0.99]: Muon has two"),
        ("ademamix", {"betas": [0.9, 0.98]}, "optim.base.betas=[0.9, 0.98]: AdEMAMix has three"),
        ("ademamix", {"betas": [0.9, 0.98, 0.5]}, "optim.base.betas=[0.9, 0.98, 0.5]: AdEMAMix has three, and the third"),
        ("sgd", {"momentum": 1.5}, "optim.base.momentum takes a number in [0, 1); got 1.5"),
        ("adam", {"eps": -1.0}, "optim.base.eps takes a number in [0, inf); got -1.0"),
    ],
)
def test_settings_of_a_base_are_checked_before_anything_is_built(optim: str, settings: dict[str, Any], words: str) -> None:
    node = compose_options(f"optim={optim}")["optim"]
    base = partial(get_object(node["base"]["_target_"]), **settings)
    with pytest.raises(ValueError, match=re.escape(words)) as refused:
        get_object(node["_target_"])(nn.Linear(2, 2), base, lr=0.1)
    ((name, value),) = settings.items()
    plus = "" if name in node["base"] else "+"
    (mistake,) = find_mistakes([f"optim={optim}", f"{plus}optim.base.{name}={to_text(value)}"], False)
    head, *lines = [line.strip() for line in mistake.splitlines()]
    typed = head.removeprefix("error: ")  # is said once
    assert "\n".join(lines) == str(refused.value).removeprefix(f"{typed}: ")


@pytest.mark.parametrize("schedule", [partial(cosine, floor=1.5), partial(wsd, decay=1.0), partial(bitnet, middle=0.0)])
def test_a_schedule_is_checked_where_a_run_is_set_up(schedule: Any) -> None:
    with pytest.raises(ValueError, match=r"schedule\.(floor|decay|middle) takes a number in"):
        set_up(schedule=schedule)


def set_up(data: Dataset[Any] = DATA, monitor: str = "val/loss", schedule: Any = constant, loss: Any = last_token) -> Any:
    model = Transformer(DATA.shape, 16, 1, 2, nn.Linear)
    trainer = Trainer(steps=2, batch_size=8, eval_every=1, device="cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return trainer, trainer.setup(model, optimizer, schedule, loss, data, monitor=monitor)


WRONG_LATER = [{"clip_norm": -1.0}, {"ema": 1.5}, {"eval_every": 0}, {"guard": "skip"}, {"guard": None}, {"grad_accum": 65}]


@pytest.mark.parametrize("settings", WRONG_LATER)
def test_a_setting_that_is_assigned_later_is_checked_where_a_run_is_set_up(settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    trainer, model = Trainer(device="cpu"), Transformer(DATA.shape, 16, 1, 2, nn.Linear)
    setattr(trainer, name, value)
    with pytest.raises(ValueError, match=rf"^trainer\.({name}|batch_size)"):
        trainer.setup(model, torch.optim.SGD(model.parameters(), lr=0.1), constant, last_token, DATA)


def test_a_guards_own_settings_are_checked_again() -> None:
    trainer = Trainer(device="cpu")
    trainer.guard.policy = "ignore"  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"^trainer\.guard\.policy takes stop, skip, rollback"):
        trainer.check()


@pytest.mark.parametrize("factor", [-0.5, math.nan, (0.5, -1.0), (-1e-9, 0.0)])
def test_a_schedule_that_climbs_is_refused(factor: Any) -> None:
    trainer, state = set_up(schedule=lambda step, steps: factor)
    with pytest.raises(ValueError, match=r"the schedule's factors are .*: give one that returns 0 or more"):
        trainer.fit(state)


@pytest.mark.parametrize("monitor", ["val/f1", "train/acc", "", "val"])
def test_a_monitor_that_no_evaluation_reports_is_refused(monitor: str) -> None:
    with pytest.raises(ValueError, match="monitor takes val/loss, val/acc, val/bpb; got ") as refused:
        set_up(monitor=monitor)
    (mistake,) = find_mistakes([f"monitor={monitor or 'null'}", "target=null"], False)
    assert mistake.splitlines()[1].strip().rpartition("got ")[0] == str(refused.value).rpartition("got ")[0]


def test_bits_per_byte_need_a_target_at_every_position() -> None:
    with pytest.raises(ValueError, match=r"monitor=val/bpb is not .*\ngive monitor=val/loss or monitor=val/acc"):
        set_up(monitor="val/bpb")


class Line(nn.Module):
    """A linear model of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def squared_error(prediction: Tensor, targets: Tensor) -> Tensor:
    return (prediction - targets).square()


def make_regression() -> MemoryDataset[Any]:
    """Targets between -1 and 1, that whole numbers would all round to 0; one of them is the number that classes ignore."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 3, generator=generator)
    y = x @ torch.tensor([0.3, -0.2, 0.1])
    y[0] = -100.0
    return MemoryDataset(Vectors(3, 1), Split(x[1:], y[1:]), Split(x, y), "digest", "a line", "sample")


def test_floating_point_targets_are_trained_on_as_they_are() -> None:
    """They were cut to whole numbers: the weights stayed zero."""
    data, model = make_regression(), Line()
    trainer = Trainer(steps=200, batch_size=16, eval_every=200, eval_train=True, device="cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = trainer.fit(trainer.setup(model, optimizer, constant, squared_error, data))
    assert model.weight.tolist() == pytest.approx([0.3, -0.2, 0.1], abs=1e-3)
    errors = squared_error(model(data.val.inputs), data.val.targets)
    assert state.progress.metrics["val/loss"] == pytest.approx(errors.mean().item(), rel=1e-5)
    assert not {"val/acc", "val/bpb", "train/acc"} & state.progress.metrics.keys(), "they are of classes"
    with pytest.raises(ValueError, match=r"monitor=val/acc is not .*\ngive monitor=val/loss$"):
        trainer.setup(model, optimizer, constant, squared_error, data, monitor="val/acc")


@pytest.mark.parametrize(("loss", "shape"), [(classification, (8, 4)), (last_token, (8, 2, 4)), (stablemax, (8, 4))])
def test_a_loss_of_classes_refuses_floating_point_targets(loss: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    function = inspect.unwrap(loss)
    with pytest.raises(ValueError, match=r"the targets are float32, this loss takes classes\ngive targets\.long\(\)"):
        function(torch.zeros(shape), torch.zeros(8))


@pytest.mark.parametrize(
    ("inputs", "targets", "words"),
    [(0, 0, "0 inputs and 0 targets"), (4, 3, "4 inputs and 3 targets"), (3, 0, "3 inputs and 0 targets")],
)
def test_an_empty_split_is_refused(inputs: int, targets: int, words: str) -> None:
    """An evaluation of nothing had val/loss 0.0."""
    split = Split(torch.zeros(1, 2), torch.zeros(1))
    object.__setattr__(split, "inputs", torch.zeros(inputs, 2))  # jaxtyping, which only the tests have, would be the first
    object.__setattr__(split, "targets", torch.zeros(targets, dtype=torch.int64))
    with pytest.raises(ValueError, match=f"a split has {words}: give at least one sample"):
        split.__post_init__()


@pytest.mark.parametrize("name", ["inputs", "targets"])
@pytest.mark.parametrize(
    ("wrong", "fix"),
    [
        (torch.ones(4).to(torch.complex64) * 1j, "real numbers"),
        (torch.tensor([1, -1, 2, 3]).view(torch.uint64), "numbers below"),
    ],
)
def test_numbers_that_a_batch_would_cut_are_refused(name: str, wrong: Tensor, fix: str) -> None:
    """Imaginary parts were dropped; 2^64 - 1 became -1."""
    parts = {"inputs": torch.ones(4), "targets": torch.ones(4)} | {name: wrong}
    with pytest.raises(ValueError, match=f"the {name} of a split are {wrong.dtype}, .* give {fix}"):
        Split(**parts)


@pytest.mark.parametrize("dtype", [torch.uint64, torch.uint8, torch.int16, torch.float16, torch.float64])
def test_all_other_numbers_come_through(dtype: torch.dtype) -> None:
    values = torch.tensor([1, 0, 1]).to(dtype)
    x, y = Split(values, values)[:]
    assert x.tolist() == y.tolist() == [1, 0, 1]
    assert x.dtype == (dtype if dtype.is_floating_point else torch.int64)


def test_a_split_whose_targets_are_all_to_be_ignored_is_refused() -> None:
    with pytest.raises(ValueError, match="no target of the 5 samples of a split counts: all are -100"):
        Split(torch.zeros(5, 2), torch.full((5,), -100))
    some = Split(torch.zeros(5, 2), torch.tensor([-100, -100, 1, 0, -100]))
    metrics = evaluate(nn.Linear(2, 2), some, classification, batch_size=2)
    assert metrics["val/acc"] in (0.0, 0.5, 1.0), "of two targets"


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_a_share_that_leaves_a_split_empty_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=f"data.train_fraction={fraction} leaves one split of 16 samples empty"):
        modular(p=5, train_fraction=fraction)


def test_settings_stay_checked_where_layers_are_exchanged() -> None:
    with pytest.raises(ValueError, match=r"model\.linear\.warmup takes .*got -1"):
        Transformer(DATA.shape, 16, 1, 2, partial(BitLinear, warmup=-1))
    assert make_state(Transformer(DATA.shape, 16, 1, 2, partial(BitLinear, warmup=1))).progress.step == 0


def describe_refusal(wrong: Wrong) -> str:
    try:
        build(*wrong)
    except ValueError as error:
        return str(error)
    return "taken"


if __name__ == "__main__":
    print(json.dumps([(wrong, describe_refusal(wrong)) for wrong in list_wrong()]))
