"""Models in full precision, models without norms before their output projections, and decoders leave by the same check."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting import make_source, needs_llama
from omegaconf import OmegaConf
from program import ROOT
from torch import nn

from research.data.spec import Dataset, Split, Tokens
from research.export import gguf, hf, layout, plain, safetensors, verify
from research.load import TrainedRun
from research.models.decoder import Decoder
from research.nn.bitlinear import BitLinear

SIZES: dict[str, Any] = {"dim": 64, "heads": 2, "kv_heads": 1, "ffn_dim": 64}  # llama.cpp needs heads of 32
FORMATS = [(hf, "hf"), (safetensors, "safetensors"), pytest.param(gguf, "gguf", marks=needs_llama)]


def make_decoder_source(linear: type[nn.Linear], classes: int = 0) -> layout.Source:
    """Return a decoder with random weights, biases too, whose answer stands behind the last position."""
    torch.manual_seed(0)
    shape = Tokens(48, 8, num_classes=classes)
    model = Decoder(shape, 32, 2, 2, linear)
    for name, p in model.named_parameters():
        if "norm" not in name:
            nn.init.normal_(p, std=0.2)
    tokens = torch.randint(48, (130, 8))
    split = Split(tokens, tokens[:, 0] % (classes or 48))
    run = TrainedRun(
        Path("run"), Path("run"), OmegaConf.create({"data": {"_target_": "none"}}), model.eval().requires_grad_(False)
    )
    run.data = Dataset(shape, split, split, "", "", "token")
    return layout.build_source(run)


@pytest.mark.parametrize(("writer", "kind"), FORMATS)
@pytest.mark.parametrize(
    ("linear", "numbers", "model_type"),
    [
        (nn.Linear, {"sub_norm": True}, "bitnet"),
        (nn.Linear, {"sub_norm": False, "tie_embeddings": False}, "llama"),
        (BitLinear, {"sub_norm": False}, "llama"),
    ],
)
def test_our_transformer_is_bitnet_or_llama(
    tmp_path: Path, writer: Any, kind: str, linear: type[nn.Linear], numbers: dict[str, Any], model_type: str
) -> None:
    source = make_source({"linear": linear}, **SIZES, **numbers)
    (tmp_path / "a").mkdir()
    report = verify.verify_export(source, kind, layout.Options(), tmp_path / "a", 512)
    assert all(check["holds"] for check in report["checks"].values())
    assert ("codes that differ" in report["checks"]) == (linear is BitLinear)
    if kind == "hf":
        config = (tmp_path / "a" / "config.json").read_text(encoding="utf-8")
        assert f'"model_type": "{model_type}"' in config
        assert ("quantization_config" in config) == (linear is BitLinear)


def test_squared_relu_without_norms_leaves_for_transformers(tmp_path: Path) -> None:
    source = make_source({"linear": nn.Linear}, sub_norm=False, activation="relu2")
    report = verify.verify_export(source, "hf", layout.Options(), tmp_path, 512)
    assert report["checks"]["mean KL"]["value"] < 1e-6


@needs_llama
@pytest.mark.parametrize("granularity", ["channel", 32])
def test_scales_of_rows_and_groups_leave_for_llama_cpp(tmp_path: Path, granularity: str | int) -> None:
    """In half precision, as gains do that were merged into ternary weights."""
    source = make_source({"granularity": granularity, "scale_method": "absmax"}, **SIZES, sub_norm=True)
    report = verify.verify_export(source, "gguf", layout.Options(), tmp_path, 512)
    assert 0 < report["checks"]["scale"]["value"] <= gguf.HALF_TOLERANCE
    assert report["checks"]["codes that differ"]["value"] == 0


def test_what_transformers_cannot_pack_is_plain_or_refused_with_what_holds_it(tmp_path: Path) -> None:
    """Activations are not rounded there: at 8 bits that changes little, at 4 bits the check refuses it."""
    rows = make_source({"granularity": "channel"}, sub_norm=True)
    (tmp_path / "a").mkdir()
    report = verify.verify_export(rows, "hf", layout.Options(), tmp_path / "a", 512)
    assert any("so it is written as with --packing plain" in warning for warning in report["warnings"])
    assert report["checks"]["codes that differ"]["value"] == 0
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match=r"mean KL .*; use --format torch or safetensors or onnx$"):
        verify.verify_export(make_source({"activation_bits": 4}), "hf", layout.Options(), tmp_path / "b", 512)


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("linear", [BitLinear, nn.Linear])
def test_decoders_have_a_plain_model(linear: type[nn.Linear], classes: int) -> None:
    """Which torch and ONNX write: biases included."""
    source = make_decoder_source(linear, classes)
    inputs, targets = verify.select_held_out(source, 512)
    logits = plain.build_plain_model(source)(inputs)
    assert logits.shape == (64, 1, classes or 48)
    torch.testing.assert_close(logits, source.model(inputs))
    codes = source.compute_codes()
    result = verify.ClientResult("torch", codes, logits)
    assert verify.describe_failures(verify.build_report(source, result, inputs, targets)) == ""
    with pytest.raises(ValueError, match=r"RUN has the model Decoder, and --format hf .*; use --format torch or onnx"):
        hf.write(source, Path("none"), layout.Options())


@pytest.mark.slow
@pytest.mark.parametrize("linear", [BitLinear, nn.Linear])
@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_decoders_are_exported(kind: str, linear: type[nn.Linear], tmp_path: Path) -> None:
    report = verify.verify_export(make_decoder_source(linear), kind, layout.Options(), tmp_path, 512)
    assert report["checks"]["mean KL"]["holds"]


def test_the_table_of_the_docs_is_that_of_the_code() -> None:
    text = (ROOT / "docs" / "exports.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `model=([^|]+?)` \|(.+)\|$", text, re.MULTILINE))
    formats = ["hf", "gguf", "onnx", "torch", "safetensors"]
    assert f"| model | {' | '.join(f'`{name}`' for name in formats)} |" in text
    for kind, options in layout.MODELS.items():
        cells = [cell.strip() == "yes" for cell in rows["`, `".join(options)].split("|")]
        assert cells == [name in layout.FORMATS[kind] for name in formats], options
    assert len(rows) == len(layout.MODELS)
