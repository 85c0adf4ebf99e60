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
from research.data.tokenizers import TOKENIZER_FOLDER, Folder, Tokenizer
from research.export import layout, verify
from research.export.__main__ import main
from research.load import TrainedRun
from research.models.hub import Hub
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


def run_documented_code(output: Path, monkeypatch: pytest.MonkeyPatch, page: str = "exports.md") -> None:
    """Run the code block of a format in docs/exports.md, or another page."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)
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


# As in Llama 3 and Qwen: a pattern of words, numbers and the rest; GPT-2's is in the tokenizers library.
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {"llama": WORDS + r"\p{N}{1,3}" + REST, "qwen2": WORDS + r"\p{N}" + REST, "qwen3": WORDS + r"\p{N}" + REST}
CHAT = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "llama": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                                  "high_freq_factor": 4.0, "original_max_position_embeddings": 16}},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
}  # fmt: skip


def write_pretrained(folder: Path, model_type: str) -> Path:
    """Write a tiny pretrained folder with random weights and a tokenizer of byte pairs; Llama's puts a token before a text."""
    import tokenizers as library
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    tokenizer = library.Tokenizer(models.BPE(ignore_merges=model_type == "llama"))
    split, byte_level = pre_tokenizers.Split, pre_tokenizers.ByteLevel
    pattern = PATTERNS.get(model_type)
    steps = [split(library.Regex(pattern), "isolated"), byte_level(False, use_regex=False)] if pattern else [byte_level(False)]
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence(steps), decoders.ByteLevel()
    special = ["<|begin|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([(ROOT / "research" / "rules.py").read_text(encoding="utf-8")], trainer)
    if model_type == "llama":
        tokenizer.post_processor = processors.TemplateProcessing("<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>")
    fast.chat_template = CHAT
    fast.save_pretrained(folder)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "max_position_embeddings": 32}
    fields = (sizes if model_type != "gpt2" else {}) | SIZES.get(model_type, {})
    config = AutoConfig.for_model(model_type, vocab_size=336, bos_token_id=0, eos_token_id=1, **fields)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=1.5 / p.shape[1] ** 0.5)
    model.save_pretrained(folder)
    return folder


def make_hub_source(
    folder: Path, linear: Any = BitLinear, tokenizer: bool = True, end: str | None = None, **settings: Any
) -> layout.Source:
    """Return the model of a pretrained folder as if trained on texts of its own tokenizer, or else on bytes of no text."""
    own = Folder(str(folder), end) if tokenizer else None
    run = folder.parent / ("run" if tokenizer else "run_of_numbers")
    if own:
        own.save(run / TOKENIZER_FOLDER)
    shape = Tokens(own.vocab_size if own else 256, 16)
    model = Hub(shape, folder=str(folder), linear=linear, **settings)
    text = (ROOT / "research" / "rules.py").read_text(encoding="utf-8").encode()
    ids = torch.from_numpy(own.encode([text])[0].astype("int64")) if own else torch.randint(256, (1040,))
    tokens = ids[: 65 * 16].reshape(65, 16)
    split = Split(tokens, tokens.roll(-1, 1))
    config = {
        "data": {"_target_": "mine", "tokenizer": {"path": str(folder)}},
        "model": {"_target_": "research.models.hub.Hub", "folder": str(folder)},
    }
    trained = TrainedRun(run, run, OmegaConf.create(config), model.eval().requires_grad_(False))
    trained.data = Dataset(shape, split, split, "", "", "token")
    return layout.build_source(trained)
