"""Exports for llama.cpp: what it computes, and what it would misread is refused."""

import os
from pathlib import Path
from typing import Any

import pytest
from exporting import evaluate_format, export_and_check, get_error, make_source, needs_llama, run_documented_code
from hypothesis import given
from hypothesis import strategies as st

from research.data.tokenizers import BPE
from research.export import gguf, layout, verify


@needs_llama
@pytest.mark.parametrize("stored", ["TQ2_0", "TQ1_0", "F16"])
def test_llama_cpp_runs_the_export(
    run: Path, tmp_path: Path, stored: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    report = export_and_check(run, tmp_path / "exports" / "gguf", "--format", "gguf", "--type", stored)
    bits = 8 * (report["files"]["model.gguf"]["bytes"] - 2 * report["model"]["vocab"] * 256) / report["model"]["ternary"]
    assert {"TQ2_0": 2.0625, "TQ1_0": 1.6875, "F16": 16}[stored] < bits < {"TQ2_0": 2.3, "TQ1_0": 1.9, "F16": 16.3}[stored]
    assert report["checks"]["tokenizer"]["value"]
    assert report["checks"]["scale"]["value"] == 0
    assert "blocks of" not in capfd.readouterr().err
    run_documented_code(tmp_path / "exports" / "gguf", monkeypatch)


@needs_llama
def test_the_tokenizer_is_utf8(run: Path, tmp_path: Path) -> None:
    from llama_cpp import Llama

    export_and_check(run, tmp_path / "gguf", "--format", "gguf", "--embedding", "Q8_0")
    model = Llama(str(tmp_path / "gguf" / "model.gguf"), vocab_only=True, verbose=False)

    @given(st.text(min_size=1))
    def check_round_trip(text: str) -> None:
        assert model.tokenize(text.encode(), add_bos=True) == list(text.encode())
        assert model.detokenize(list(text.encode())) == text.encode()

    check_round_trip()


def make_source_of_byte_pairs(folder: Path) -> layout.Source:
    bpe = BPE(300)
    bpe.train([b"the packed ternary layers of a network learn to read the text of a network", b" " * 80 + b"x"] * 9)
    assert max(len(token) for token in bpe.to_library().get_vocab()) > 32, "more than the binding's buffer"
    return make_source(tokenizer=bpe, folder=folder, heads=2)


def test_byte_pairs_are_in_the_file(tmp_path: Path) -> None:
    from gguf import GGUFReader

    source = make_source_of_byte_pairs(tmp_path)
    gguf.write(source, tmp_path, layout.Options())
    fields = GGUFReader(tmp_path / "model.gguf").fields
    assert source.run.tokenizer
    library = source.run.tokenizer.to_library()
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert tokens == [library.id_to_token(index) for index in range(source.run.tokenizer.vocab_size)]
    assert len(fields["tokenizer.ggml.merges"].contents()) == len(tokens) - 257
    assert fields["tokenizer.ggml.eos_token_id"].contents() == source.run.tokenizer.end


@needs_llama
def test_llama_cpp_reads_byte_pairs(tmp_path: Path) -> None:
    report = evaluate_format(make_source_of_byte_pairs(tmp_path), gguf, tmp_path)
    assert verify.describe_failures(report) == ""
    assert report["checks"]["tokenizer"]["value"]


@needs_llama
def test_widths_that_do_not_fill_blocks_are_stored_as_f16(tmp_path: Path) -> None:
    source = make_source(heads=2)
    warnings = gguf.write(source, tmp_path, layout.Options())
    assert any("blocks of 256 inputs" in warning for warning in warnings)
    assert verify.describe_failures(evaluate_format(source, gguf, tmp_path)) == ""


@pytest.mark.parametrize(
    ("numbers", "word"),
    [({"activation": "relu2"}, "model.activation=relu2"), ({"tie_embeddings": False}, "model.tie_embeddings=false")],
)
def test_models_that_llama_cpp_misreads_are_refused(tmp_path: Path, numbers: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        gguf.write(make_source(**numbers), tmp_path, layout.Options())
    assert not list(tmp_path.iterdir())


@needs_llama
def test_the_check_finds_a_wrong_activation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check does not depend on knowing that llama.cpp computes SiLU."""
    source = make_source(activation="relu2")
    architecture = {**source.architecture, "act": "silu"}
    monkeypatch.setattr(layout.Source, "architecture", architecture)
    report = evaluate_format(source, gguf, tmp_path)
    assert "mean KL" in verify.describe_failures(report)
    assert report["checks"]["codes that differ"]["value"] == 0


@needs_llama
def test_a_broken_file_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = gguf.write

    def write_half(source: layout.Source, folder: Path, options: layout.Options) -> list[str]:
        warnings = write(source, folder, options)
        os.truncate(folder / gguf.FILE, 200_000)
        return warnings

    monkeypatch.setattr(gguf, "write", write_half)
    assert "the client of gguf cannot run it" in get_error(capsys, run, "--format", "gguf", "--output", tmp_path / "a")
    assert not list(tmp_path.iterdir())
