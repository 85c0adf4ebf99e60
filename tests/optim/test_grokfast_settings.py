"""Grokfast refuses wrong settings and bases, with the setting, its value and the fix."""

from functools import partial
from typing import Any

import pytest
import torch
from stepping import make_weight
from torch import nn
from torch.optim import LBFGS, SGD

from research.optim import grokfast


def test_a_window_warns_of_its_memory_before_it_allocates_it(caplog: pytest.LogCaptureFixture) -> None:
    net = make_weight(1000, 1000)
    optimizer = grokfast.ma(net, partial(SGD), 0.1, window=100)
    assert "stores the last 100 gradients: 404.0 MB" in caplog.text
    assert not optimizer.state


@pytest.mark.parametrize("base", [partial(LBFGS), partial(torch.relu), partial(nn.Linear)])
def test_a_base_that_cannot_be_filtered_is_refused(base: Any) -> None:
    with pytest.raises(ValueError, match=r"optim\.base\._target_=.*\ngive optim\.base\._target_=torch\.optim\.AdamW"):
        grokfast.ema(make_weight(3), base, 0.1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 1.0},
        {"alpha": -0.1},
        {"lamb": -1.0},
        {"lamb": float("nan")},
        {"stop_when": "x"},
        {"unfiltered": ["nowhere"]},
        {"unfiltered": "weight"},
        {"unfiltered": [""]},
        {"stop_when": 5, "start_when": 5},
        {"stop_when": "val/acc:0.5", "start_when": "val/acc:0.9"},
        {"stop_when": "val/loss:0.5", "start_when": "val/loss:0.5"},
        {"start_when": "val/acc:95"},
        {"start_when": 0},
        {"stop_when": ""},
        {"clip_norm": -1.0},
        {"adapt": -1.0},
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, Any]) -> None:
    key = next(iter(wrong))
    with pytest.raises(ValueError, match=rf"optim\.{key}(=| takes )"):
        grokfast.ema(make_weight(3), partial(SGD), 0.1, **wrong)


def test_a_base_with_a_setting_of_the_filters_is_refused() -> None:
    class Lamb(SGD):
        def __init__(self, params: Any, lr: float = 0.1, lamb: float = 1.0) -> None:
            super().__init__(params, lr)

    with pytest.raises(ValueError, match=r"Lamb has a setting lamb, as the filter has"):
        grokfast.ema(make_weight(3), partial(Lamb), 0.1)


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(ValueError, match=r"optim\.window takes .* got 0"):
        grokfast.ma(make_weight(3), partial(SGD), 0.1, window=0)
