"""What the preflight takes from other libraries to compose quickly gives the same."""

import ast
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from omegaconf import OmegaConf, _utils
from program import ROOT

from research.composition.compose import iter_leaves, use_fast_yaml
from research.composition.overrides import parse
from research.options.conf import CONF, list_groups
from research.options.source import drop_bodies
from research.preflight.fixed import resolve_settings
from research.preflight.requested import RequestedConfig

TEXTS = [
    *sorted((ROOT / "conf").rglob("*.yaml")),
    "a: 1e-3\nb: 1_000\nc: 2020-01-01\nd: !!str 5\n"
    "e: [1, .5, .inf, -.nan, 0x10, yes, null, ~, '1']\nf: é\ng: |\n  two\n  lines\n",
    "a: &x {b: 1}\nc: *x\nd:\n  <<: *x\n  e: 12:30:45\n",
]


def get_loaders() -> tuple[Any, Any]:
    """Return the fast loader, and OmegaConf's own, from which it is made."""
    use_fast_yaml()
    fast = _utils.get_yaml_loader()
    return fast, next(kind for kind in fast.__mro__ if kind.__name__ == "OmegaConfLoader")


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.name if isinstance(text, Path) else "odd values")
def test_yaml_is_read_as_omegaconf_reads_it(text: Path | str) -> None:
    content = text.read_text() if isinstance(text, Path) else text
    fast, plain = get_loaders()
    assert fast is not plain, "libyaml is in the wheels of PyYAML"
    assert repr(yaml.load(content, fast)) == repr(yaml.load(content, plain))


@pytest.mark.parametrize("text", ["a: 1\na: 2\n", "a: [1\n", "a: !!python/object/apply:os.system [x]\n", "\ta: 1\n", "a: *x\n"])
def test_what_omegaconf_refuses_is_refused(text: str) -> None:
    for loader in get_loaders():
        with pytest.raises(yaml.YAMLError):
            yaml.load(text, loader)


def list_definitions(source: bytes) -> list[str]:
    """Return each class and function with its arguments and decorators, each assignment and import."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = []
    return [ast.dump(node) for node in tree.body]


@pytest.mark.parametrize("file", sorted((ROOT / "research").glob("*/*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_source_without_bodies_defines_the_same(file: Path) -> None:
    source = file.read_bytes()
    try:
        shorter = drop_bodies(source)
        definitions = list_definitions(shorter)
    except SyntaxError:
        return  # then the whole source is parsed
    assert definitions == list_definitions(source)
    assert len(shorter) < len(source) or b"def " not in source


@pytest.mark.parametrize(
    "words",
    [
        *([f"experiment={name}"] for name in list_groups()["experiment"]),
        *([f"metrics={name}"] for name in list_groups()["metrics"]),
        ["metrics=classification", "metrics.calibration_error.metric.n_bins=7"],
        ["metrics=classification", "~metrics.calibration_error"],
    ],
    ids=" ".join,
)
def test_settings_are_those_that_a_run_records(words: list[str]) -> None:
    """By them resume=auto knows its run."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        settings = resolve_settings(RequestedConfig.from_overrides(parse(words)[0], {}))
        recorded = OmegaConf.to_container(hydra.compose("config", words), resolve=True)
    assert "${" not in str(settings)
    assert settings == dict(iter_leaves("", recorded))
