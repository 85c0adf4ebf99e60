"""What is nested deeply: loops follow it, recursions stop at their bound, and no input ends in RecursionError."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.harness import list_violations
from research.cli import HIDDEN, redact
from research.composition.compose import ComposedConfig, iter_leaves
from research.composition.overrides import to_override
from research.data.spelling import adapt
from research.options.condition import Condition
from research.options.files import holds_itself
from research.ranges import MAX_NESTING, is_json_of, parse_annotation
from research.signals import MAX_CAUSES, Stopped, get_signum
from research.sweep.study import find_differences
from research.tracking.fields import flatten_config
from research.tracking.optuna_storage import instantiate_spec
from research.training.checkpoint import copy_to_host

DEEP = 3000  # beyond Python's own limit


def nest(value: Any, depth: int, wrap: Callable[[Any], Any] = lambda inner: {"a": inner}) -> Any:
    """Return a value in so many containers."""
    for _ in range(depth):
        value = wrap(value)
    return value


def test_loops_follow_any_depth() -> None:
    key = ".".join("a" * DEEP)
    assert list(iter_leaves("", nest(1, DEEP))) == [(key, 1)]
    assert flatten_config(nest(1, DEEP)) == {key: 1}
    assert find_differences(nest(1, DEEP), nest(2, DEEP)) == [f"{key} was 1, is 2"]
    assert not holds_itself(nest([1], DEEP, lambda inner: [inner]))
    config = ComposedConfig({})
    config.set(key, 3)
    assert config.get(key) == 3
    assert list_violations(nest({"x": 3}, 500), nest({"x": 2}, 500)) == [f"{'a: ' * 500}x is 3, at most 2 was expected"]


def test_a_list_that_is_a_part_of_itself_is_seen() -> None:
    inner: list[object] = [1]
    outer = {"a": [inner, {"b": inner}]}
    assert not holds_itself(outer)
    inner.append(outer)
    assert holds_itself(outer)


def test_each_interpolation_leads_on_until_the_limit() -> None:
    chain = {f"k{n}": f"${{k{n + 1}}}" for n in range(5)} | {"k5": 7, "a": "${b}", "b": "${a}", "d": "${oc.select:e,4}"}
    config = ComposedConfig(chain)
    assert config.get_resolved("k0") == (7, "k5")
    assert config.get_resolved("d") == (4, "d")
    assert str(config.get_resolved("a")[0]).startswith("${")


REFUSED: dict[str, tuple[Callable[[int], object], type[Exception]]] = {  # a call with values nested so deeply
    "an override": (lambda depth: to_override(nest(1, depth)), ValueError),
    "an override of lists": (lambda depth: to_override(nest(1, depth, lambda inner: [inner])), ValueError),
    "a tokenizer": (
        lambda depth: adapt(nest({"type": "Lowercase"}, depth, make_sequence), "decoder", {}),
        ValueError,
    ),
    "a condition": (lambda depth: Condition(f"{'not ' * depth}lr", "when"), ValueError),
    "nodes": (lambda depth: instantiate_spec(nest(1, depth), "hydra.sweeper.sampler"), ValueError),
    "a state": (lambda depth: copy_to_host(nest(torch.ones(1), depth)), ValueError),
}


def make_sequence(inner: Any) -> dict[str, Any]:
    return {"type": "Sequence", "decoders": [inner]}


@pytest.mark.parametrize("name", REFUSED)
def test_recursions_stop_at_their_bound(name: str) -> None:
    call, kind = REFUSED[name]
    call(MAX_NESTING // 2)
    with pytest.raises(kind):
        call(MAX_NESTING + 1)


def test_what_lies_too_deep_to_redact_becomes_text_without_its_passwords() -> None:
    text = "http://me:hunter2hunter2@host"
    assert redact(nest(text, 50)) == nest(f"http://me:{HIDDEN}@host", 50)
    shown = str(redact(nest(text, MAX_NESTING + 5)))
    assert HIDDEN in shown
    assert "hunter2" not in shown


def test_annotations_and_json_of_any_depth() -> None:
    assert [str(kind) for kind in parse_annotation(int | None | str)] == ["a whole number", "null", "text"]
    assert is_json_of(dict[str, list[float | None]], {"a": [1, 2.5, None]})
    assert not is_json_of(dict[str, list[float | None]], {"a": [1, "2"]})
    assert not is_json_of(dict[str, int], {"a": 2**63})


def test_the_innermost_cause_of_an_exit_counts() -> None:
    inner, outer = SystemExit(143), SystemExit(130)
    outer.__cause__ = inner
    assert get_signum(outer) == 15
    inner.__cause__ = Stopped(1)
    assert get_signum(outer) == 1
    inner.__cause__ = outer  # each is the cause of the other
    assert get_signum(outer) in (2, 15)
    assert MAX_CAUSES > 2
    assert get_signum(ValueError()) == 0
