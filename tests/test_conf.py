"""Every yaml of conf/ composes, and its target takes the parameters that it sets."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

CONF = Path(__file__).resolve().parents[1] / "conf"
OPTIONS = sorted(f"{p.parent.name}={p.stem}" for p in CONF.glob("*/*.yaml") if p.parent.name not in ("local", "experiment"))


def compose_config(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def find_targets(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if "_target_" in value:
            yield value
        for child in value.values():
            yield from find_targets(child)


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_fits_its_target(option: str) -> None:
    fits = {"model=mlp": ["data=digits"], "model=bitmlp": ["data=digits"]}.get(option, [])
    cfg = OmegaConf.to_container(compose_config(*fits, option), resolve=True)
    nodes = list(find_targets(cfg))
    assert len(nodes) >= 8
    for node in nodes:
        settings = {k: v for k, v in node.items() if not k.startswith("_")}
        inspect.signature(get_object(node["_target_"])).bind_partial(**settings)


def test_no_target_swallows_keywords() -> None:
    for option in OPTIONS:
        for node in find_targets(OmegaConf.to_container(compose_config(option), resolve=True)):
            if node["_target_"].startswith("research."):
                kinds = {p.kind for p in inspect.signature(get_object(node["_target_"])).parameters.values()}
                assert inspect.Parameter.VAR_KEYWORD not in kinds, node["_target_"]


def test_lr_has_one_key_and_the_command_line_wins() -> None:
    assert compose_config("optim=sgd").optim.lr == 0.1
    assert compose_config("optim=sgd", "lr=0.5").optim.lr == 0.5


def test_the_data_set_names_its_loss() -> None:
    assert compose_config("data=digits").loss._target_.endswith("classification")
    assert compose_config("data=text", "loss=last_token").loss._target_.endswith("last_token")
