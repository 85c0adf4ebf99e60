"""Exports for transformers: its models, tokenizer and layers compute what was trained."""

from pathlib import Path

import pytest
import torch
from exporting import evaluate_format, export_and_check, make_source, run_documented_code
from hypothesis import given
from hypothesis import strategies as st
from program import ROOT

from research.data.tokenizers import BPE
from research.export import hf, layout, verify
from research.files.silence import silence_libraries
from research.nn.bitlinear import BitLinear
from research.nn.quantize import TERNARY


@pytest.mark.parametrize("packing", [pytest.param("autobitlinear", marks=pytest.mark.slow), "bitlinear", "none"])
def test_transformers_runs_the_export(
    run: Path, tmp_path: Path, packing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = export_and_check(run, tmp_path / "exports" / "hf", "--format", "hf", "--packing", packing)
    weight_bytes = report["model"]["ternary"] * (4 if packing == "none" else 1 / 4)
    size = report["files"]["model.safetensors"]["bytes"] - 4 * report["model"]["rest"]
    assert weight_bytes <= size < weight_bytes + 10_000
    assert report["checks"]["generate"]["value"]
    assert report["checks"]["tokenizer"]["value"]
    capsys.readouterr()
    with torch.compiler.set_stance("default"):  # restored after the block
        run_documented_code(tmp_path / "exports" / "hf", monkeypatch)
    assert capsys.readouterr().out.startswith("def ")


def test_the_tokenizer_is_utf8(run: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    export_and_check(run, tmp_path / "hf", "--format", "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf", local_files_only=True)
    assert tokenizer.eos_token_id is None or tokenizer.eos_token_id == 0

    @given(st.text())
    def check_round_trip(text: str) -> None:
        assert tokenizer.encode(text) == list(text.encode())
        assert tokenizer.decode(tokenizer.encode(text)) == text

    check_round_trip()
    source = "".join(path.read_text() for path in sorted((ROOT / "research").rglob("*.py"))[:20])
    assert tokenizer.encode(source) == list(source.encode())


def test_both_conventions_of_the_scale_give_the_same_layer() -> None:
    """BitLinear of transformers divides by weight_scale, AutoBitLinear multiplies by it."""
    with silence_libraries():  # transformers warns of optional parts that are not installed
        from transformers.integrations.bitnet import AutoBitLinear
        from transformers.integrations.bitnet import BitLinear as Divides

    torch.manual_seed(0)
    weight, x = torch.randn(8, 16), torch.randn(3, 16)
    codes, scale = TERNARY.quantize_weight(weight)
    multiplies = AutoBitLinear(16, 8, bias=False)
    multiplies.weight.data = codes
    multiplies.weight_scale = hf.to_stored_scale(scale, "autobitlinear")
    divides = Divides(16, 8, bias=False, dtype=torch.float32)
    divides.weight = hf.pack_quarters(codes.to(torch.int8))
    divides.weight_scale = hf.to_stored_scale(scale, "bitlinear")
    ours = BitLinear(16, 8, bias=False)
    ours.weight.data = weight
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        torch.testing.assert_close(multiplies(x), ours(x))
        torch.testing.assert_close(divides(x), ours(x))
    assert hf.to_stored_scale(scale, "bitlinear") != hf.to_stored_scale(scale, "autobitlinear")


def test_squared_relu_and_an_untied_head_are_exported(tmp_path: Path) -> None:
    report = evaluate_format(make_source(activation="relu2", tie_embeddings=False), hf, tmp_path)
    assert verify.describe_failures(report) == ""


def test_a_model_of_byte_pairs_brings_its_tokenizer(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    bpe = BPE(300)
    bpe.train([b"the packed ternary layers of a network learn to read the text of a network"] * 9)
    report = evaluate_format(make_source(tokenizer=bpe, folder=tmp_path / "run"), hf, tmp_path / "hf")
    assert verify.describe_failures(report) == ""
    assert report["checks"]["tokenizer"]["value"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf", local_files_only=True)
    text = "the network reads 漢字\n"
    assert tokenizer.encode(text) == bpe.encode([text.encode()])[0].tolist()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_token_id == bpe.end


def test_the_median_needs_packed_weights(tmp_path: Path) -> None:
    """transformers quantizes unpacked weights by their mean."""
    source = make_source({"scale_method": "absmedian"})
    with pytest.raises(ValueError, match=r"model.linear.scale_method=absmedian"):
        hf.write(source, tmp_path, layout.Options(packing="none"))
    assert verify.describe_failures(evaluate_format(source, hf, tmp_path)) == ""
