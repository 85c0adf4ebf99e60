"""Transformers with document masks and with classes: each format computes them, or names what it cannot hold."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting import SHAPE, make_source, needs_llama

from research.export import gguf, hf, layout, verify
from research.generate import stream
from research.generate.sampling import Sampler

TRACED = [
    pytest.param(
        "onnx", marks=[pytest.mark.slow, pytest.mark.skipif(find_spec("onnxruntime") is None, reason="no onnxruntime")]
    ),
    pytest.param("torch", marks=pytest.mark.slow),
]
SIZES: dict[str, Any] = {"dim": 64, "heads": 2, "kv_heads": 1, "ffn_dim": 64}  # llama.cpp needs heads of 32


@pytest.mark.parametrize("kind", ["safetensors", "hf", pytest.param("gguf", marks=needs_llama)])
def test_a_document_mask_is_exported(kind: str, tmp_path: Path) -> None:
    """Our own formats mask the documents of a row; clients of language models compute each document alone."""
    source = make_source(shape=SHAPE._replace(end=5), document_mask=True, **SIZES)
    (tmp_path / "out").mkdir()
    report = verify.verify_export(source, kind, layout.Options(), tmp_path / "out", 64)
    assert all(check["holds"] for check in report["checks"].values())
    one_document = any("one document at a time" in warning for warning in report["warnings"])
    assert one_document == (kind in verify.LANGUAGE_CLIENTS)


@pytest.mark.parametrize("kind", ["safetensors", *TRACED])
def test_classes_are_exported(kind: str, tmp_path: Path) -> None:
    """Behind a document mask, whose operations are traced with the rest."""
    source = make_source(shape=SHAPE._replace(end=5, num_classes=3), document_mask=True, **SIZES)
    assert source.architecture["classes"] == 3
    (tmp_path / "out").mkdir()
    report = verify.verify_export(source, kind, layout.Options(), tmp_path / "out", 64)
    assert all(check["holds"] for check in report["checks"].values())


@pytest.mark.parametrize("writer", [hf, gguf])
def test_programs_of_language_models_have_no_classes(writer: object, tmp_path: Path) -> None:
    source = make_source(shape=SHAPE._replace(num_classes=3))
    with pytest.raises(ValueError, match=r"tells classes.* predict tokens; use --format torch or safetensors or onnx"):
        writer.write(source, tmp_path, layout.Options())  # type: ignore[attr-defined]
    assert not list(tmp_path.iterdir())


def test_a_mask_that_an_export_forgets_is_found() -> None:
    """The check of the files sees it: the rows that it compares hold several documents."""
    source = make_source(shape=SHAPE._replace(end=5), document_mask=True)
    inputs, targets = verify.select_held_out(source, 64)
    expected = source.model(inputs)
    source.model.end = -1
    divergence, *_ = verify.compare_distributions(expected, source.model(inputs), targets)
    assert divergence > verify.MAX_DIVERGENCE
    assert torch.isfinite(expected).all()


def test_a_run_of_classes_does_not_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(shape=SHAPE._replace(num_classes=3))
    monkeypatch.setattr(stream, "load_run", lambda run: source.run)
    with pytest.raises(ValueError, match=r"tells classes and predicts no token; call it in Python"):
        stream.generate("run", "1 2", 4, Sampler(), True)
