"""Every yaml of conf/ composes, and its target takes the parameters that it sets."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from research.options.conf import list_groups
from research.options.help import build_help_text
from research.options.renames import upgrade_config
from research.preflight.check import find_mistakes

CONF = Path(__file__).resolve().parents[1] / "conf"
FULL = {"_target_": "torch.nn.Linear", "_partial_": True}
TERNARY = {
    "_target_": "research.nn.bitlinear.BitLinear",
    "_partial_": True,
    "scale_method": "absmean",
    "weight_bits": 1.58,
    "granularity": "tensor",
    "activation_bits": 8,
    "activation_granularity": "token",
    "warmup": 0,
    "backend": "auto",
}
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
    fits += ["data=text"] if option.startswith("tokenizer=") else []
    cfg = OmegaConf.to_container(compose_config(*fits, option), resolve=True)
    nodes = list(find_targets(cfg))
    assert len(nodes) >= 8
    for node in nodes:
        settings = {k: v for k, v in node.items() if not k.startswith("_")}
        signature = inspect.signature(get_object(node["_target_"]))
        signature.bind_partial(**settings)
        if node["_target_"].startswith("research."):  # one that took any keyword would hide a mistake
            assert inspect.Parameter.VAR_KEYWORD not in {p.kind for p in signature.parameters.values()}, node["_target_"]


def test_the_docs_have_each_setting_of_the_data_with_its_default() -> None:
    page = (CONF.parent / "docs/data.md").read_text()
    rows = re.findall(r"^\| `data\.(\w+)` \| `?(.*?)`? \| (.*?) \| .+ \|$", page, re.MULTILINE)
    told = {(key, option): yaml.safe_load(default) for key, default, options in rows for option in options.split(", ")}
    files = {path.stem: yaml.safe_load(path.read_text())["data"] for path in (CONF / "data").glob("*.yaml")}
    whole = {option: data for option, data in files.items() if "_target_" in data}  # presets build on these
    there = {(key, option): value for option, data in whole.items() for key, value in data.items() if key != "_target_"}
    assert told == there


def test_lr_has_one_key_and_the_command_line_wins() -> None:
    assert compose_config("optim=sgd").optim.lr == 0.1
    assert compose_config("optim=sgd", "lr=0.5").optim.lr == 0.5


def test_the_data_set_names_its_loss() -> None:
    assert compose_config("data=digits").loss._target_.endswith("classification")
    assert compose_config("data=text", "loss=last_token").loss._target_.endswith("last_token")


@pytest.mark.parametrize(
    ("command", "linear"),
    [
        ("", TERNARY),
        ("model=bitnet", TERNARY),
        ("model=bitnet_2b4t", TERNARY),
        ("model=bitmlp data=digits", TERNARY),
        ("model=bitdecoder", TERNARY),
        ("model=bitvision", TERNARY),
        ("model=hub data=text", TERNARY),
        ("model=transformer", FULL),
        ("model=mlp data=digits", FULL),
        ("model=vision", FULL),
        ("model=decoder", FULL),
        ("model=hub_full data=text", FULL),
        ("model=bitnet linear=full", FULL),
        ("linear=full model=bitnet_2b4t", FULL),
        ("model=hub linear=full data=text", FULL),
        ("experiment=bitnet_gap linear=full", FULL),
        ("experiment=bitnet_gap model=transformer", FULL),
        ("model=transformer linear=bitnet", TERNARY),
        ("model=hub_full linear=bitnet data=text", TERNARY),
        ("model=bitnet model.linear.backend=int8", TERNARY | {"backend": "int8"}),
        ("model=transformer linear=bitnet model.linear.weight_bits=2", TERNARY | {"weight_bits": 2}),
    ],
)
def test_linear_chooses_the_linear_layer_of_a_model(command: str, linear: dict[str, Any]) -> None:
    assert compose_config(*command.split()).model.linear == linear


def test_a_model_and_its_twin_differ_in_the_linear_layer_only() -> None:
    for ternary, full in (
        ("bitnet", "transformer"),
        ("bitmlp", "mlp"),
        ("bitdecoder", "decoder"),
        ("bitvision", "vision"),
        ("hub", "hub_full"),
    ):
        assert compose_config(f"model={ternary}", "linear=full").model == compose_config(f"model={full}").model
        assert compose_config(f"model={full}", "linear=bitnet").model == compose_config(f"model={ternary}").model


def test_an_old_run_of_hub_full_has_the_same_model() -> None:
    """Its config.yaml holds linear: null; resume compares it with the model of today's options."""
    model = OmegaConf.to_container(compose_config("model=hub_full").model)
    assert isinstance(model, dict)
    assert upgrade_config({"model": model | {"linear": None}}) == {"model": model}


def test_a_model_without_linear_layers_has_no_such_key(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/bigram.yaml").write_text("_target_: research.models.bigram.Bigram\n")
    cfg = compose_config("model=bigram", f"hydra.searchpath=[file://{tmp_path}]")
    assert cfg.model == {"_target_": "research.models.bigram.Bigram"}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("linear=full", ()),
        ("model=transformer linear=bitnet model.linear.weight_bits=2", ()),
        ("-m linear=bitnet,full", ()),
        ("-m model=bitnet,transformer linear=full,bitnet", ()),
        ("linear=ful", ("linear=ful", "bitnet, full", "did you mean: linear=full")),
        ("lineer=full", ("lineer=full", "did you mean: linear=full")),
        ("linear.backend=int8", ("linear.backend=int8", "did you mean: model.linear.backend=int8")),
        ("linear=full model.linear.backend=int8", ("model.linear.backend=int8", "no key")),
        ("linear=bitnet,full", ("linear=bitnet,full", "--multirun")),
    ],
)
def test_the_preflight_knows_the_group_of_linear_layers(command: str, words: tuple[str, ...]) -> None:
    mistakes = find_mistakes([word for word in command.split() if word != "-m"], "-m" in command.split())
    assert len(mistakes) == bool(words)
    assert all(word in mistakes[0] for word in words)


def test_the_help_lists_the_linear_layers() -> None:
    assert list_groups()["linear"] == ["bitnet", "full"]
    assert "ternary weights" in build_help_text().partition("\n  linear ")[2].partition("\n  model ")[0]


@pytest.mark.parametrize(
    ("option", "changes"),
    {
        "quick_prototype": {"log_every": 2, "eval_train": True, "guard.policy": "skip", "guard.max_skips": 20},
        "baseline": {"eval_train": True},
        "production": {"log_every": 50, "precision": "bf16", "guard.policy": "rollback", "guard.max_rollbacks": 5},
        "distributed": {"log_every": 50, "precision": "bf16", "guard.policy": "skip"},
        "low_memory": {"grad_accum": 4, "precision": "bf16", "checkpoint_activations": True},
    }.items(),
)
def test_what_a_trainer_changes(option: str, changes: dict[str, Any]) -> None:
    """Steps and batch stay those of the data set, whose precision does not move a baseline. A sentence says when to take it."""
    before, cfg = compose_config(), compose_config(f"trainer={option}", "steps=7")
    after = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)).trainer
    assert (after.steps, after.batch_size, after.eval_every) == (7, before.batch_size, before.eval_every)
    keys = ("precision", "log_every", "eval_train", "grad_accum", "checkpoint_activations", "parallel", "ema", "compile")
    guard = [f"guard.{key}" for key in before.trainer.guard if key != "_target_"]
    values = {key: OmegaConf.select(after, key) for key in (*keys, *guard)}
    assert values == {key: OmegaConf.select(before.trainer, key) for key in values} | changes
    assert compose_config("trainer=baseline", "precision=bf16").trainer.precision == "fp32"
    assert len((CONF / "trainer" / f"{option}.yaml").read_text().splitlines()[0]) > 60
