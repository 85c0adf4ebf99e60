"""What the tests of the exports share: small models, and the export command with its checks."""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from program import ROOT
from torch import nn

from research.data.spec import Dataset, Split, Tokens
from research.data.tokenizers import TOKENIZER_FOLDER, Tokenizer
from research.export import layout, verify
from research.export.__main__ import main
from research.load import TrainedRun
from research.models.transformer import Transformer
from research.nn.bitlinear import BitLinear

needs_llama = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
TINY = ["model=bitnet", "model.dim=256", "model.ffn_dim=768", "model.heads=4", "model.kv_heads=2", "data=text",
        f"data.path={ROOT / 'research'}", "data.seq_len=64", "data.val_bytes=4096", "trainer=debug", "trainer.steps=8",
        "trainer.eval_every=8", "trainer.ema=0.9", "tracker=jsonl", "precision=fp32"]  # fmt: skip
SHAPE = Tokens(vocab_size=48, seq_len=8)


def export_and_check(run: Path, output: Path, *options: str) -> dict[str, Any]:
    """Export a run, assert that every check holds, and return the report."""
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
    """Run the code block of a format in docs/exports.md."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "exports.md").read_text(), re.DOTALL)
    (code,) = (block for block in blocks if f'"exports/{output.name}' in block)
    monkeypatch.chdir(output.parents[1])
    exec(code, {})


def make_source(
    settings: dict[str, Any] | None = None,
    shape: Tokens = SHAPE,
    tokenizer: Tokenizer | None = None,
    folder: Path = Path("run"),
    **numbers: Any,
) -> layout.Source:
    """Return a transformer with random weights, as if trained, and its validation sequences; some hold an end."""
    torch.manual_seed(0)
    if tokenizer:
        tokenizer.save(folder / TOKENIZER_FOLDER)
    sizes: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 2, "ffn_dim": 48, "sub_norm": True, "init_std": 0.2} | numbers

    own = dict(settings or {})
    kind: type[nn.Module] = own.pop("linear", BitLinear)

    def make_linear(width: int, out: int, bias: bool) -> nn.Module:
        return kind(width, out, bias, **own)

    if tokenizer:
        shape = Tokens(tokenizer.vocab_size, 8)
    model = Transformer(shape, linear=make_linear, **sizes)
    model.eval().requires_grad_(False)  # as load_run returns it
    tokens = torch.randint(shape.vocab_size, (65, 8))
    tokens[::2, 3] = max(shape.end, 0)
    split = Split(tokens, tokens[:, 0] % shape.num_classes if shape.num_classes else tokens)
    trained = TrainedRun(folder, folder, OmegaConf.create({"data": {"_target_": "mine"}}), model)
    trained.data = Dataset(shape, split, split, "", "", "token")
    return layout.build_source(trained)


def evaluate_format(source: layout.Source, format_module: Any, folder: Path, **options: str) -> dict[str, Any]:
    """Return the report on what a format writes."""
    folder.mkdir(exist_ok=True)
    settings = layout.Options(**options)
    format_module.write(source, folder, settings)
    inputs, targets = verify.select_held_out(source, 256)
    return verify.build_report(source, format_module.read(source, folder, inputs, settings), inputs, targets)


def get_error(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the one message of a command that fails."""
    try:
        code: object = main([str(argument) for argument in arguments])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    return message
