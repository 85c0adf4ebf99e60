"""Exports for onnxruntime, torch alone and a reader in numpy: they hold every ternary layer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exporting import evaluate_format, export_and_check, make_source, run_documented_code
from hypothesis import given
from hypothesis import strategies as st
from program import ROOT

from research.export import onnx, plain, safetensors, verify


@pytest.mark.slow  # what traces the model takes most of it
def test_onnxruntime_runs_the_export(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime
    from onnx import load

    report = export_and_check(run, tmp_path / "exports" / "onnx", "--format", "onnx")
    run_documented_code(tmp_path / "exports" / "onnx", monkeypatch)
    ternary, rest = report["model"]["ternary"] / 4, 4 * report["model"]["rest"]
    assert report["files"]["model.onnx"]["bytes"] < ternary + rest + 150_000
    monkeypatch.setattr(onnx, "MAX_PROTO_BYTES", 1000)
    onnx.save(load(tmp_path / "exports" / "onnx" / "model.onnx"), tmp_path)  # as one too large for one file
    assert {path.name for path in tmp_path.iterdir()} == {"exports", "model.onnx", "model.onnx.data"}
    for folder in (tmp_path / "exports" / "onnx", tmp_path):
        session = onnxruntime.InferenceSession(folder / "model.onnx")
        for shape in ((1, 1), (3, 5), (2, 64)):
            (logits,) = session.run(None, {"tokens": np.zeros(shape, np.int64)})
            assert logits.shape == (*shape, 256)


@pytest.mark.slow
def test_torch_alone_runs_the_export(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "exports" / "torch"
    report = export_and_check(run, output, "--format", "torch")
    run_documented_code(output, monkeypatch)
    assert report["checks"]["without this package"]["value"]
    assert report["checks"]["mean KL"]["value"] < 1e-5
    held = torch.export.load(output / "model.pt2").state_dict
    assert held["blocks.0.feedforward.up_proj.packed"].shape == (768, 64)
    assert held["blocks.0.feedforward.up_proj.packed"].dtype == torch.uint8
    for file in output.iterdir():
        assert bytes(ROOT) not in file.read_bytes(), "the file shows a path of this machine"


def test_a_numpy_reader_runs_the_export(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = export_and_check(run, tmp_path / "exports" / "safetensors", "--format", "safetensors")
    run_documented_code(tmp_path / "exports" / "safetensors", monkeypatch)
    size = report["model"]["ternary"] / 4 + 4 * report["model"]["rest"]
    assert report["files"]["model.safetensors"]["bytes"] < size + 10_000


@pytest.mark.parametrize(
    "settings",
    [
        {"granularity": "channel"},
        {"granularity": 16, "scale_method": "absmedian"},
        {"weight_bits": 1.0, "scale_method": "absmax"},
        {"activation_bits": 4},
        {"activation_granularity": "tensor", "granularity": "channel"},
    ],
    ids=str,
)
def test_every_ternary_layer_can_be_exported(tmp_path: Path, settings: dict[str, Any]) -> None:
    """transformers and llama.cpp hold one scale a layer and int8 activations per token; our own layouts hold all settings."""
    source = make_source(settings, sub_norm=False, tie_embeddings=False, activation="relu2", kv_heads=1)
    with torch.no_grad():
        tokens = torch.randint(48, (5, 8))
        torch.testing.assert_close(plain.build_plain_model(source)(tokens), source.model(tokens))
    assert verify.describe_failures(evaluate_format(source, safetensors, tmp_path)) == ""


def test_a_group_of_all_inputs_can_be_exported(tmp_path: Path) -> None:
    """Such a layer has one scale an output, as with `channel`."""
    source = make_source({"granularity": 32}, dim=32, ffn_dim=64)
    assert verify.describe_failures(evaluate_format(source, safetensors, tmp_path)) == ""


@given(st.integers(1, 9), st.integers(1, 21))
def test_packed_rows_unpack_to_the_same_codes(out: int, width: int) -> None:
    codes = torch.randint(-1, 2, (out, width), generator=torch.Generator().manual_seed(width)).to(torch.int8)
    packed = plain.pack_rows(codes)
    assert packed.shape == (out, -(-width // 4))
    assert torch.equal(plain.unpack_rows(packed, plain.build_code_table(), width).to(torch.int8), codes)
