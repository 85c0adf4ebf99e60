"""The check of an export: it refuses writers that are wrong, also for a model that has learnt nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting import evaluate_format, get_error, make_source, needs_llama

from research.export import hf, layout, plain, safetensors, verify
from research.nn.rope import build_rope_table


def make_untrained_source(**numbers: Any) -> layout.Source:
    return make_source(init_std=0.02, kv_heads=2, **numbers)


def patch_number(key: str, value: Any) -> Callable[[pytest.MonkeyPatch], None]:
    """Return a patch after which writers see another value of one architecture key."""
    architecture = layout.Source.architecture.fget  # type: ignore[attr-defined]
    return lambda patch: patch.setattr(
        layout.Source, "architecture", property(lambda source: architecture(source) | {key: value})
    )


def patch_parts(one: str, other: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Return a patch after which writers and readers of codes take one part of a block for another."""
    names = dict(layout.MODULE_NAMES)

    def swap(patch: pytest.MonkeyPatch) -> None:
        patch.setitem(layout.MODULE_NAMES, one, names[other])
        patch.setitem(layout.MODULE_NAMES, other, names[one])

    return swap


@pytest.mark.parametrize(
    ("kind", "patch_writer"),
    [
        ("safetensors", patch_number("rope_base", 500_000.0)),
        ("safetensors", patch_number("act", "relu2")),
        ("hf", patch_number("rope_base", 500_000.0)),
        ("hf", patch_number("act", "relu2")),
        ("hf", patch_parts("attention.q_proj", "attention.v_proj")),
        ("hf", patch_parts("feedforward.gate_proj", "feedforward.up_proj")),
        ("hf", patch_parts("input_norm", "post_norm")),
        pytest.param("gguf", patch_parts("input_norm", "post_norm"), marks=needs_llama),
    ],
)
def test_a_wrong_writer_is_refused_for_an_untrained_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, patch_writer: Callable[[pytest.MonkeyPatch], None]
) -> None:
    patch_writer(monkeypatch)
    (tmp_path / "draft").mkdir()
    with pytest.raises(
        ValueError, match=rf"--format {kind} does not compute what was trained: .*stand-in's KL [\d.]+, at most"
    ):
        verify.verify_export(make_untrained_source(), kind, layout.Options(), tmp_path / "draft", 256)
    assert [path.name for path in tmp_path.iterdir()] == ["draft"]


def test_a_wrong_writer_passes_without_the_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patch_number("rope_base", 500_000.0)(monkeypatch)
    assert verify.describe_failures(evaluate_format(make_untrained_source(), hf, tmp_path)) == ""


@pytest.mark.parametrize("kind", ["safetensors", "hf"])
def test_the_rope_base_is_recovered_from_the_model(tmp_path: Path, kind: str) -> None:
    source = make_untrained_source()
    for base in (10_000.0, 500_000.0, 1234.5):
        source.model.cos, source.model.sin = build_rope_table(8, 16, base)
        assert source.architecture["rope_base"] == base
    (tmp_path / "draft").mkdir()
    assert verify.verify_export(source, kind, layout.Options(), tmp_path / "draft", 256)["checks"]["mean KL"]["holds"]


@pytest.mark.parametrize(("tokens", "count", "fix"), [(256, 256, "give more --tokens"), (4096, 520, "has no more")])
def test_too_few_tokens_are_warned_of(tmp_path: Path, tokens: int, count: int, fix: str) -> None:
    (tmp_path / "draft").mkdir()
    report = verify.verify_export(make_source(), "safetensors", layout.Options(), tmp_path / "draft", tokens)
    (warning,) = report["warnings"]
    assert f"{count} held-out targets" in warning
    assert warning.endswith(fix)


def test_a_wrong_scale_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    to_stored_scale = hf.to_stored_scale
    monkeypatch.setattr(hf, "to_stored_scale", lambda scale, packing: 2 * to_stored_scale(scale, packing))
    message = get_error(capsys, run, "--format", "hf", "--packing", "autobitlinear", "--output", tmp_path / "new" / "hf")
    assert "scale 1, at most 1e-06" in message
    assert not list(tmp_path.iterdir())


def test_a_flipped_code_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    def flip_code(codes: torch.Tensor) -> torch.Tensor:
        packed = plain.pack_rows(codes)
        packed[0, 0] ^= 1
        return packed

    monkeypatch.setattr(safetensors, "pack_rows", flip_code)
    (tmp_path / "out").mkdir()
    message = get_error(capsys, run, "--format", "safetensors", "--output", tmp_path / "out")
    assert "codes that differ 14, at most 0" in message
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not list((tmp_path / "out").iterdir())


def test_a_scale_that_is_not_a_number_is_refused() -> None:
    codes = torch.zeros(2, 2, dtype=torch.int8)
    expected = {"a": (codes, torch.tensor(1.0)), "b": (codes, torch.tensor(1.0))}
    assert verify.compare_codes(expected, expected) == ({}, 0)
    for scale in (torch.tensor(float("nan")), torch.ones(2)):
        wrong, drift = verify.compare_codes(expected, expected | {"b": (codes, scale)})
        assert not wrong
        assert not drift <= verify.SCALE_TOLERANCE
    assert verify.compare_codes(expected, {}) == ({"a": 4, "b": 4}, float("inf"))
