"""Runs, models and settings that no export, or one format, can hold."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from exporting import get_error, make_source
from omegaconf import OmegaConf
from program import forget_configurations
from torch import nn

from research.data.spec import Tokens
from research.export import gguf, hf, layout
from research.load import TrainedRun
from research.models.transformer import Transformer


def copy_damaged(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder)
    (checkpoint,) = (folder / "checkpoints").glob("step-*")
    content = bytearray((checkpoint / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (checkpoint / "model.safetensors").write_bytes(content)
    return folder


def copy_without_checkpoints(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints"))
    return folder


def replace_config(before: str, after: str) -> Callable[[Path, Path], Path]:
    def copy_run(run: Path, folder: Path) -> Path:
        shutil.copytree(run, folder)
        text = (folder / "config.yaml").read_text()
        assert before in text
        (folder / "config.yaml").write_text(text.replace(before, after))
        forget_configurations(folder)
        return folder

    return copy_run


def copy_with_bad_config(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder)
    (folder / "config.yaml").write_text("model: [")
    forget_configurations(folder)
    return folder


@pytest.mark.parametrize(
    ("prepare", "word"),
    [
        (copy_damaged, "model.safetensors has sha256"),
        (copy_without_checkpoints, "holds no checkpoints"),
        (replace_config("  dim: 256", "  dim: 128"), "are not of one model"),
        (replace_config("  depth: 2", "  depth: 3"), "are not of one model"),
        (replace_config("  depth: 2", "  depth: 1"), "are not of one model"),
        (replace_config("  sub_norm: true", "  sub_norm: false"), "are not of one model"),
        (replace_config("  heads: 4", "  heads: 3"), "model.heads=3 does not fit"),
        (replace_config("research.models.transformer.Transformer", "research.models.none.None"), "makes no model"),
        (replace_config("  _target_: research.data.text.text\n", ""), "has no data._target_"),
        (copy_with_bad_config, "no config.yaml that can be read"),
    ],
)
def test_a_run_that_cannot_be_read_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], prepare: Callable[[Path, Path], Path], word: str
) -> None:
    message = get_error(capsys, prepare(run, tmp_path / "run"), "--format", "safetensors", "--output", tmp_path / "a")
    assert word.format(folder=tmp_path) in message
    assert message.startswith("error: RUN=")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_other_models_are_refused() -> None:
    nothing = OmegaConf.create({"data": {"_target_": "none"}})

    class Own(nn.Linear):
        pass

    def load_source(model: nn.Module) -> None:
        layout.build_source(TrainedRun(Path("run"), Path("run"), nothing, model))

    with pytest.raises(ValueError, match=r"RUN has the model Linear: exports hold model=bitnet, .*bitmlp, mlp; load it"):
        load_source(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"a layer that no export knows: blocks.0.attention.q_proj is a Own; load it"):
        load_source(Transformer(Tokens(5, 4), 8, 1, 2, Own))
    with pytest.raises(ValueError, match=r"model.linear.weight_bits=4.0: .* train with 1.58"):
        make_source({"weight_bits": 4.0})


@pytest.mark.parametrize(
    ("format_module", "options", "settings", "numbers", "word"),
    [
        (hf, {"packing": "bitlinear"}, {"granularity": "channel"}, {}, "model.linear.granularity=channel"),
        (hf, {"packing": "none"}, {"activation_bits": 4}, {}, "model.linear.activation_bits=4"),
        (gguf, {}, {"activation_granularity": "tensor"}, {}, "model.linear.activation_granularity=tensor"),
        (hf, {"packing": "bitlinear"}, {}, {"ffn_dim": 46}, "has 46 outputs"),
        (gguf, {}, {}, {"sub_norm": False, "activation": "relu2"}, "model.activation=relu2"),
        (gguf, {"type": "TQ1_0"}, {"linear": nn.Linear}, {}, "--type TQ1_0 is for ternary weights"),
        (hf, {"packing": "plain"}, {"linear": nn.Linear}, {}, "--packing plain is for ternary weights"),
    ],
)
def test_settings_that_a_format_cannot_hold_are_named(
    tmp_path: Path,
    format_module: Any,
    options: dict[str, str],
    settings: dict[str, Any],
    numbers: dict[str, Any],
    word: str,
) -> None:
    with pytest.raises(ValueError, match=word):
        format_module.write(make_source(settings, **numbers), tmp_path, layout.Options(**options))
    assert not list(tmp_path.iterdir())
