"""What leaves: each format is written by the command and run by its real client; what does not compute the same is refused."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mlflow.tracking import MlflowClient
from omegaconf import OmegaConf
from program import ROOT, make_environment, run_ranks, train
from safetensors.torch import load_file
from torch import nn

from research.data.spec import Dataset, Split, Tokens, Vectors
from research.export import gguf, hf, layout, onnx, plain, safetensors, verify
from research.export.__main__ import main
from research.load import TrainedRun
from research.models.mlp import MLP
from research.models.transformer import Transformer
from research.nn.bitlinear import BitLinear
from research.nn.quantize import TERNARY
from research.nn.rope import build_rope_table
from research.run_dir import lock
from research.training import checkpoint

needs_llama = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
TINY = ["model=bitnet", "model.dim=256", "model.ffn_dim=768", "model.heads=4", "model.kv_heads=2", "data=text",
        f"data.path={ROOT / 'research'}", "data.seq_len=64", "data.val_bytes=4096", "trainer=debug", "trainer.steps=8",
        "trainer.eval_every=8", "trainer.ema=0.9", "tracker=jsonl", "precision=fp32"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ternary transformer of bytes, two blocks, eight steps old, its weights averaged."""
    place = tmp_path_factory.mktemp("trained")
    train(place, *TINY)
    (folder,) = (place / "out" / "text").iterdir()
    return folder


def export_and_check(run: Path, output: Path, *options: str) -> dict[str, Any]:
    """The report of an export that holds."""
    assert main([str(run), "--output", str(output), "--tokens", "1024", *options]) == 0
    report: dict[str, Any] = json.loads((output / "export.json").read_text())
    checks = report["checks"]
    assert checks["codes that differ"]["value"] == 0
    assert checks["mean KL"]["value"] < 1e-3
    assert checks["perplexity off by"]["value"] < 0.005
    assert checks["top-1 agreement"]["value"] > 0.9
    assert checks["stand-in's KL"]["value"] < 0.005
    assert all(check["holds"] for check in checks.values())
    assert report["tokens"] >= 1024
    assert all(report["client"].values())
    return report


def run_documented_code(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run what docs/exports.md says of a format."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "exports.md").read_text(), re.DOTALL)
    (code,) = (block for block in blocks if f'"exports/{output.name}' in block)
    monkeypatch.chdir(output.parents[1])
    exec(code, {})


def make_source(settings: dict[str, Any] | None = None, **numbers: Any) -> layout.Source:
    """A transformer with random weights, as if trained, and sequences to judge it on."""
    torch.manual_seed(0)
    given: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 2, "ffn_dim": 48, "sub_norm": True, "init_std": 0.2} | numbers

    def make_linear(width: int, out: int, bias: bool) -> nn.Module:
        return BitLinear(width, out, bias, **settings or {})

    model = Transformer(Tokens(vocab_size=48, seq_len=8), linear=make_linear, **given)
    tokens = torch.randint(48, (65, 8))
    split = Split(tokens[:, :8], tokens[:, :8])
    trained = TrainedRun(Path("run"), Path("run"), OmegaConf.create({"data": {"_target_": "none"}}), model.eval())
    trained.data = Dataset(Tokens(48, 8), split, split, "", "", "token")
    return layout.build_source(trained)


def evaluate_format(source: layout.Source, format_module: Any, folder: Path, **options: str) -> dict[str, Any]:
    """The report on what a format writes."""
    folder.mkdir(exist_ok=True)
    chosen = layout.Options(**options)
    format_module.write(source, folder, chosen)
    inputs, targets = verify.select_held_out(source, 256)
    return verify.build_report(source, format_module.read(source, folder, inputs, chosen), inputs, targets)


# transformers


@pytest.mark.parametrize("packing", hf.PACKINGS)
def test_transformers_runs_it(
    run: Path, tmp_path: Path, packing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = export_and_check(run, tmp_path / "exports" / "hf", "--format", "hf", "--packing", packing)
    packed, whole = report["model"]["ternary"] / 4, report["model"]["ternary"] * 4
    size = report["files"]["model.safetensors"]["bytes"] - 4 * report["model"]["rest"]
    assert (whole if packing == "none" else packed) <= size < (whole if packing == "none" else packed) + 10_000
    assert report["checks"]["generate"]["value"]
    assert report["checks"]["tokenizer"]["value"]
    capsys.readouterr()
    with torch.compiler.set_stance("default"):  # and back
        run_documented_code(tmp_path / "exports" / "hf", monkeypatch)
    assert capsys.readouterr().out.startswith("def ")


def test_the_tokenizer_of_transformers_is_utf8(run: Path, tmp_path: Path) -> None:
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
    with layout.silence_libraries():  # it warns of parts of its own, by what else is installed
        from transformers.integrations.bitnet import AutoBitLinear
        from transformers.integrations.bitnet import BitLinear as Divides

    torch.manual_seed(0)
    weight, x = torch.randn(8, 16), torch.randn(3, 16)
    codes, step = TERNARY.quantize_weight(weight)
    multiplies = AutoBitLinear(16, 8, bias=False)
    multiplies.weight.data = codes
    multiplies.weight_scale = hf.to_stored_scale(step, "autobitlinear")
    divides = Divides(16, 8, bias=False, dtype=torch.float32)
    divides.weight = hf.pack_quarters(codes.to(torch.int8))
    divides.weight_scale = hf.to_stored_scale(step, "bitlinear")
    ours = BitLinear(16, 8, bias=False)
    ours.weight.data = weight
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        torch.testing.assert_close(multiplies(x), ours(x))
        torch.testing.assert_close(divides(x), ours(x))
    assert hf.to_stored_scale(step, "bitlinear") != hf.to_stored_scale(step, "autobitlinear")


def test_squared_relu_and_an_untied_head_go_to_transformers(tmp_path: Path) -> None:
    report = evaluate_format(make_source(activation="relu2", tie_embeddings=False), hf, tmp_path)
    assert verify.describe_failures(report) == ""


# llama.cpp


@needs_llama
@pytest.mark.parametrize("stored", gguf.TYPES)
def test_llama_cpp_runs_it(
    run: Path, tmp_path: Path, stored: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    report = export_and_check(run, tmp_path / "exports" / "gguf", "--format", "gguf", "--type", stored)
    bits = 8 * (report["files"]["model.gguf"]["bytes"] - 2 * report["model"]["vocab"] * 256) / report["model"]["ternary"]
    assert {"TQ2_0": 2.0625, "TQ1_0": 1.6875, "F16": 16}[stored] < bits < {"TQ2_0": 2.3, "TQ1_0": 1.9, "F16": 16.3}[stored]
    assert report["checks"]["tokenizer"]["value"]
    assert report["checks"]["scale"]["value"] == 0
    assert "warning" not in capfd.readouterr().err
    run_documented_code(tmp_path / "exports" / "gguf", monkeypatch)


@needs_llama
def test_the_tokenizer_of_llama_cpp_is_utf8(run: Path, tmp_path: Path) -> None:
    from llama_cpp import Llama

    export_and_check(run, tmp_path / "gguf", "--format", "gguf", "--embedding", "Q8_0")
    model = Llama(str(tmp_path / "gguf" / "model.gguf"), vocab_only=True, verbose=False)

    @given(st.text(min_size=1))
    def check_round_trip(text: str) -> None:
        assert model.tokenize(text.encode(), add_bos=True) == list(text.encode())
        assert model.detokenize(list(text.encode())) == text.encode()

    check_round_trip()


@needs_llama
def test_widths_that_do_not_fit_go_to_f16(tmp_path: Path) -> None:
    source = make_source(heads=2)
    warnings = gguf.write(source, tmp_path, layout.Options())
    assert any("blocks of 256 inputs" in warning for warning in warnings)
    assert verify.describe_failures(evaluate_format(source, gguf, tmp_path)) == ""


@pytest.mark.parametrize(
    ("numbers", "word"),
    [({"activation": "relu2"}, "model.activation=relu2"), ({"tie_embeddings": False}, "model.tie_embeddings=false")],
)
def test_llama_cpp_does_not_get_what_it_misreads(tmp_path: Path, numbers: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        gguf.write(make_source(**numbers), tmp_path, layout.Options())
    assert not list(tmp_path.iterdir())


@needs_llama
def test_the_gate_finds_the_wrong_activation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if nobody had known that llama.cpp computes SiLU."""
    source = make_source(activation="relu2")
    told = {**source.architecture, "act": "silu"}
    monkeypatch.setattr(layout.Source, "architecture", told)
    report = evaluate_format(source, gguf, tmp_path)
    assert "mean KL" in verify.describe_failures(report)
    assert report["checks"]["codes that differ"]["value"] == 0


# What a model that has learnt nothing would hide


def make_untrained_source(**numbers: Any) -> layout.Source:
    return make_source(init_std=0.02, kv_heads=2, **numbers)


def patch_number(key: str, value: Any) -> Callable[[pytest.MonkeyPatch], None]:
    """A writer that takes one number of the layout for another."""
    right = layout.Source.architecture.fget  # type: ignore[attr-defined]
    return lambda patch: patch.setattr(layout.Source, "architecture", property(lambda source: right(source) | {key: value}))


def patch_parts(one: str, other: str) -> Callable[[pytest.MonkeyPatch], None]:
    """A writer that takes one part of a block for another, and a reader of codes and steps that makes the same mistake."""
    places = dict(layout.MODULE_NAMES)
    return lambda patch: [patch.setitem(layout.MODULE_NAMES, a, places[b]) for a, b in ((one, other), (other, one))] and None


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
def test_a_wrong_writer_is_refused_though_nothing_was_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, patch_writer: Callable[[pytest.MonkeyPatch], None]
) -> None:
    patch_writer(monkeypatch)
    (tmp_path / "draft").mkdir()
    with pytest.raises(
        ValueError, match=rf"--format {kind} does not compute what was trained: .*stand-in's KL [\d.]+, at most"
    ):
        verify.verify_export(make_untrained_source(), kind, layout.Options(), tmp_path / "draft", 256)
    assert [path.name for path in tmp_path.iterdir()] == ["draft"]


def test_an_untrained_model_alone_would_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patch_number("rope_base", 500_000.0)(monkeypatch)
    assert verify.describe_failures(evaluate_format(make_untrained_source(), hf, tmp_path)) == ""


@pytest.mark.parametrize("kind", ["safetensors", "hf"])
def test_the_base_of_the_rotation_is_that_of_the_model(tmp_path: Path, kind: str) -> None:
    source = make_untrained_source()
    for base in (10_000.0, 500_000.0, 1234.5):
        source.model.cos, source.model.sin = build_rope_table(8, 16, base)
        assert source.architecture["rope_base"] == base
    (tmp_path / "draft").mkdir()
    assert verify.verify_export(source, kind, layout.Options(), tmp_path / "draft", 256)["checks"]["mean KL"]["holds"]


def test_few_tokens_are_reported(tmp_path: Path) -> None:
    (tmp_path / "draft").mkdir()
    report = verify.verify_export(make_source(), "safetensors", layout.Options(), tmp_path / "draft", 256)
    assert report["warnings"] == ["checked on 256 held-out targets; fewer than 1000 tell no percentage: give more --tokens"]


# The others


def test_onnxruntime_runs_it(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_torch_alone_runs_it(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "exports" / "torch"
    report = export_and_check(run, output, "--format", "torch")
    run_documented_code(output, monkeypatch)
    assert report["checks"]["without this package"]["value"]
    assert report["checks"]["mean KL"]["value"] < 1e-5
    held = torch.export.load(output / "model.pt2").state_dict
    assert held["blocks.0.feedforward.up_proj.packed"].shape == (768, 64)
    assert held["blocks.0.feedforward.up_proj.packed"].dtype == torch.uint8
    for file in output.iterdir():
        assert bytes(ROOT) not in file.read_bytes(), "where it was made is nobody's business"


def test_a_plain_reader_runs_it(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_every_ternary_layer_has_a_file(tmp_path: Path, settings: dict[str, Any]) -> None:
    """transformers and llama.cpp hold one scale a layer and int8 activations per token; our own layouts hold all of them."""
    source = make_source(settings, sub_norm=False, tie_embeddings=False, activation="relu2", kv_heads=1)
    with torch.no_grad():
        tokens = torch.randint(48, (5, 8))
        torch.testing.assert_close(plain.build_plain_model(source)(tokens), source.model(tokens))
    assert verify.describe_failures(evaluate_format(source, safetensors, tmp_path)) == ""


@given(st.integers(1, 9), st.integers(1, 21))
def test_rows_survive_packing(out: int, width: int) -> None:
    codes = torch.randint(-1, 2, (out, width), generator=torch.Generator().manual_seed(width)).to(torch.int8)
    packed = plain.pack_rows(codes)
    assert packed.shape == (out, -(-width // 4))
    assert torch.equal(plain.unpack_rows(packed, plain.build_code_table(), width).to(torch.int8), codes)


# What is refused


def get_error(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one message of a command that fails."""
    try:
        code: object = main([str(argument) for argument in arguments])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    return told


def test_a_wrong_scale_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = hf.to_stored_scale
    monkeypatch.setattr(hf, "to_stored_scale", lambda step, packing: 2 * right(step, packing))
    told = get_error(capsys, run, "--format", "hf", "--output", tmp_path / "new" / "hf")
    assert "scale 1, at most 1e-06" in told
    assert not list(tmp_path.iterdir())


def test_a_flipped_code_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = safetensors.pack_layer

    def flip_code(layer: BitLinear) -> tuple[torch.Tensor, torch.Tensor]:
        packed, scale = right(layer)
        packed[0, 0] ^= 1
        return packed, scale

    monkeypatch.setattr(safetensors, "pack_layer", flip_code)
    (tmp_path / "out").mkdir()
    told = get_error(capsys, run, "--format", "safetensors", "--output", tmp_path / "out")
    assert "codes that differ 14, at most 0" in told
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not list((tmp_path / "out").iterdir())


@needs_llama
def test_a_broken_file_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = gguf.write

    def write_half(source: layout.Source, folder: Path, options: layout.Options) -> list[str]:
        told = right(source, folder, options)
        os.truncate(folder / gguf.FILE, 200_000)
        return told

    monkeypatch.setattr(gguf, "write", write_half)
    assert "the client of gguf cannot run it" in get_error(capsys, run, "--format", "gguf", "--output", tmp_path / "a")
    assert not list(tmp_path.iterdir())


FULL = """
import resource, sys
from research.export.__main__ import main

run, output, *kinds = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
print([main([run, "--format", kind, "--output", f"{output}/{kind}"]) for kind in kinds])
"""


def test_a_full_disk_is_reported_and_leaves_nothing(run: Path, tmp_path: Path) -> None:
    """As files of 100 kB at most."""
    kinds = ["safetensors", "hf", "torch", *(["gguf"] if find_spec("llama_cpp") else [])]
    command = [sys.executable, "-c", FULL, str(run), str(tmp_path / "new"), *kinds]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{[2] * len(kinds)}\n"
    for kind, told in zip(kinds, done.stderr.splitlines(), strict=True):
        assert told.startswith(f"error: nothing is written: --format {kind} could not be: ")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_export_left_makes_way(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = tmp_path / ".a.draft" / "a" / "model.safetensors"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    with lock(tmp_path / ".a.draft"):
        told = get_error(capsys, run, "--format", "safetensors", "--output", tmp_path / "a")
    assert "another export is writing there" in told
    assert left.exists()
    export_and_check(run, tmp_path / "a", "--format", "safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"export.json", "model.safetensors"}


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
        return folder

    return copy_run


def copy_with_bad_config(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder)
    (folder / "config.yaml").write_text("model: [")
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
        (copy_with_bad_config, "makes no model"),
    ],
)
def test_a_run_that_cannot_be_read_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], prepare: Callable[[Path, Path], Path], word: str
) -> None:
    told = get_error(capsys, prepare(run, tmp_path / "run"), "--format", "safetensors", "--output", tmp_path / "a")
    assert word in told
    assert told.startswith("error: RUN=")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_arguments_are_checked_first(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = tmp_path / "new"
    assert "invalid choice: 'gguff'" in get_error(capsys, run, "--format", "gguff", "--output", new)
    assert "there is no such folder" in get_error(capsys, tmp_path / "none", "--format", "torch", "--output", new)
    for other in (tmp_path, run / "plots"):
        assert f"{other} has no config.yaml" in get_error(capsys, other, "--format", "torch", "--output", new)
    assert "--type is for --format gguf" in get_error(capsys, run, "--format", "hf", "--type", "F16", "--output", new)
    assert "give at least 1" in get_error(capsys, run, "--format", "hf", "--tokens", 0, "--output", new)
    assert "cannot be made" in get_error(capsys, run, "--format", "torch", "--output", run / "config.yaml" / "new")
    assert "is there already" in get_error(capsys, run, "--format", "torch", "--output", run)
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(layout, "find_spec", lambda name: None)
    for kind in ("hf", "gguf", "onnx"):
        assert f"pip install -e '.[{kind}]'" in get_error(capsys, run, "--format", kind, "--output", tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_other_models_are_refused() -> None:
    nothing = OmegaConf.create({"data": {"_target_": "none"}})

    def load_source(model: nn.Module) -> None:
        layout.build_source(TrainedRun(Path("run"), Path("run"), nothing, model))

    with pytest.raises(ValueError, match="RUN is of a MLP: exports hold model=bitnet"):
        load_source(MLP(Vectors(4, 2), 8, 1, BitLinear))
    with pytest.raises(ValueError, match=r"RUN is not ternary: blocks.0.attention.q_proj is a plain nn.Linear"):
        load_source(Transformer(Tokens(5, 4), 8, 1, 2, nn.Linear))
    with pytest.raises(ValueError, match=r"model.linear.weight_bits=4.0: .* train with 1.58"):
        make_source({"weight_bits": 4.0})


@pytest.mark.parametrize(
    ("format_module", "settings", "numbers", "word"),
    [
        (hf, {"granularity": "channel"}, {}, "model.linear.granularity=channel"),
        (hf, {"activation_bits": 4}, {}, "model.linear.activation_bits=4"),
        (gguf, {"activation_granularity": "tensor"}, {}, "model.linear.activation_granularity=tensor"),
        (gguf, {"granularity": 16}, {}, "model.linear.granularity=16"),
        (hf, {}, {"sub_norm": False}, "model.sub_norm=false"),
        (gguf, {}, {"sub_norm": False}, "model.sub_norm=false"),
        (hf, {}, {"ffn_dim": 46}, "has 46 outputs"),
    ],
)
def test_settings_that_a_format_cannot_hold_are_named(
    tmp_path: Path, format_module: Any, settings: dict[str, Any], numbers: dict[str, Any], word: str
) -> None:
    with pytest.raises(ValueError, match=word):
        format_module.write(make_source(settings, **numbers), tmp_path, layout.Options())
    assert not list(tmp_path.iterdir())


def test_the_median_needs_packed_weights(tmp_path: Path) -> None:
    """transformers would round master weights by their mean."""
    source = make_source({"scale_method": "absmedian"})
    with pytest.raises(ValueError, match=r"model.linear.scale_method=absmedian"):
        hf.write(source, tmp_path, layout.Options(packing="none"))
    assert verify.describe_failures(evaluate_format(source, hf, tmp_path)) == ""


# Where it is kept


def test_averaged_weights_are_what_leaves(run: Path, tmp_path: Path) -> None:
    export_and_check(run, tmp_path / "a", "--format", "hf", "--packing", "none")
    (checkpoint,) = (run / "checkpoints").glob("step-*")
    held = load_file(tmp_path / "a" / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(held, load_file(checkpoint / "average.safetensors")["embed.weight"])
    assert not torch.equal(held, load_file(checkpoint / "model.safetensors")["embed.weight"])


def test_a_run_spread_over_processes_leaves_as_any_other(tmp_path: Path) -> None:
    """Two processes by FSDP."""
    small = ["model.dim=32", "model.ffn_dim=48", "model.depth=1", "model.heads=2", "data.seq_len=16"]
    given = [*TINY, *small, "trainer=fsdp", "steps=2", "trainer.device=cpu", f"out={tmp_path / 'out'}"]
    assert [done.returncode for done in run_ranks([str(ROOT / "train.py"), *given], tmp_path, make_environment(tmp_path))] == [
        0,
        0,
    ]
    (folder,) = (tmp_path / "out" / "text").iterdir()
    assert list(folder.glob("checkpoints/step-*/shards"))
    export_and_check(folder, tmp_path / "a", "--format", "safetensors")  # a warning of torch would be an error here


def test_the_report_is_among_the_artifacts_of_the_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = make_environment(tmp_path)["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = MlflowClient(uri)
    copy = shutil.copytree(run, tmp_path / "run")
    experiment = client.create_experiment("exports", artifact_location=(tmp_path / "artifacts").as_uri())
    run_id = client.create_run(experiment, tags={"folder": str(copy)}).info.run_id
    summary = json.loads((copy / "summary.json").read_text())
    (copy / "summary.json").write_text(json.dumps(summary | {"mlflow_run_id": run_id}))
    export_and_check(Path(run_id), tmp_path / "a", "--format", "safetensors")
    assert [each.path for each in client.list_artifacts(run_id, "export/safetensors")] == ["export/safetensors/export.json"]
    assert re.search(r"^mean KL +[\d.e-]+ \(at most 0.001\)$", capsys.readouterr().out, re.MULTILINE)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'gone.db'}")
    export_and_check(copy, tmp_path / "b", "--format", "safetensors")
    assert "warning: MLflow did not take the report" in capsys.readouterr().err
    assert not (tmp_path / "gone.db").exists()


def test_the_command_as_a_user_gives_it(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "research.export"]
    begun = time.monotonic()
    shown = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert time.monotonic() - begun < 5
    assert "safetensors" in shown
    given = [str(next((run / "checkpoints").glob("step-*"))), "--format", "safetensors", "--output", str(tmp_path / "a")]
    with Path("/dev/full").open("w") as full:  # where nothing can be told, the export is as good; few tokens are a warning
        done = subprocess.run([*command, *given, "--tokens", "9"], cwd=ROOT, stdout=full, stderr=full, check=False)
    assert done.returncode == 0
    assert json.loads((tmp_path / "a" / "export.json").read_text())["checks"]["mean KL"]["holds"]
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "a").iterdir()} == {0o666 & ~get_umask()}


def get_umask() -> int:
    os.umask(mask := os.umask(0))
    return mask


def test_a_folder_that_cannot_be_replaced_is_reported_first(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    told = "cannot be replaced, as the folder you are in or a mount; give a new one in it"
    assert told in get_error(capsys, run, "--format", "safetensors", "--output", ".")
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "volume")
    (tmp_path / "volume").mkdir()
    assert told in get_error(capsys, run, "--format", "safetensors", "--output", tmp_path / "volume")
    assert "cannot be made: File name too long" in get_error(capsys, run, "--format", "safetensors", "--output", "a" * 252)


def test_a_signal_leaves_nothing(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "research.export", str(run), "--format", "hf", "--output", str(tmp_path / "a" / "b")]
    under_way = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if (tmp_path / "a").exists():
            break
        time.sleep(0.05)
    under_way.terminate()
    _, told = under_way.communicate(timeout=60)
    assert under_way.returncode == 143
    assert told == "stopped by SIGTERM\n"
    assert not list(tmp_path.iterdir())


def test_a_signal_while_the_export_is_moved_is_too_late(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "sync", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    export_and_check(run, tmp_path / "a", "--format", "safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_scale_that_is_no_number_is_too_large() -> None:
    codes = torch.zeros(2, 2, dtype=torch.int8)
    expected = {"a": (codes, torch.tensor(1.0)), "b": (codes, torch.tensor(1.0))}
    assert verify.measure_scale_drift(expected, expected) == 0
    assert (
        not verify.measure_scale_drift(expected, expected | {"b": (codes, torch.tensor(float("nan")))})
        <= verify.SCALE_TOLERANCE
    )
    assert not verify.measure_scale_drift(expected, expected | {"b": (codes, torch.ones(2))}) <= verify.SCALE_TOLERANCE
    assert not verify.measure_scale_drift(expected, {}) <= verify.SCALE_TOLERANCE
