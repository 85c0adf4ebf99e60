"""A pretrained folder goes in and comes out: transformers and llama.cpp run it with its own tokenizer."""

import ast
import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting import CHAT, make_hub_source, needs_llama, run_documented_code, write_pretrained
from program import ROOT, train
from torch import nn

from research.export import architectures, gguf, hf, layout, tokens, verify, vocabulary
from research.export.__main__ import main
from research.files.silence import silence_libraries
from research.models.hub import Hub
from research.nn.bitlinear import BitLinear, bitlinear_layers

ARCHITECTURES = ["llama", "qwen2", "qwen3", "gpt2"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pretrained")
    return {kind: write_pretrained(root / kind / "came", kind) for kind in ARCHITECTURES}


def export(source: layout.Source, kind: str, folder: Path, **options: str) -> dict[str, Any]:
    """Write a source through the check; return the report."""
    folder.mkdir()
    report = verify.verify_export(source, kind, layout.Options(**options), folder, 1024)
    assert all(check["holds"] for check in report["checks"].values())
    assert report["checks"]["tokenizer"]["value"]
    return report


def load(folder: Path, **settings: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **settings).eval()


@pytest.mark.parametrize("packing", ["bitlinear", "autobitlinear", "none", "plain", ""])
def test_transformers_runs_it_in_all_types_and_saves_it_again(folders: dict[str, Path], tmp_path: Path, packing: str) -> None:
    """In full precision without a packing. Qwen 2 has biases. AutoBitLinear does neither, which is said."""
    source = make_hub_source(folders["qwen2"], BitLinear if packing else nn.Linear)
    report = export(source, "hf", tmp_path / "a", **({"packing": packing} if packing else {}))
    tokens = source.run.data.val[torch.arange(3)][0]
    with silence_libraries(), torch.compiler.set_stance("force_eager"), torch.no_grad():
        expected = source.model(tokens).log_softmax(-1)
        types = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.01}
        for dtype, bound in types.items() if packing != "autobitlinear" else ():
            model = load(tmp_path / "a", dtype=dtype)
            logits = model(tokens).logits.float()
            divergence = (expected.exp() * (expected - logits.log_softmax(-1))).sum(-1).mean()
            assert divergence < bound, dtype
            model.save_pretrained(tmp_path / f"{dtype}")
            again = load(tmp_path / f"{dtype}", dtype=dtype)
            assert torch.equal(again(tokens).logits.float(), logits), dtype
    assert any("float32 alone" in warning for warning in report["warnings"]) == (packing == "autobitlinear")
    assert any("by Qwen2Tokenizer, which changes some texts" in warning for warning in report["warnings"])


@pytest.mark.parametrize("linear", [BitLinear, nn.Linear])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_padded_batches_give_each_texts_own_continuation(
    folders: dict[str, Path], tmp_path: Path, kind: str, linear: type[nn.Linear]
) -> None:
    from transformers import AutoTokenizer

    source = make_hub_source(folders[kind], linear)
    report = export(source, "hf", tmp_path / "a")
    assert report["checks"]["batch"]["value"]
    with silence_libraries(), torch.compiler.set_stance("force_eager"):
        model, tokenizer = load(tmp_path / "a"), AutoTokenizer.from_pretrained(tmp_path / "a", local_files_only=True)
        assert (tokenizer.padding_side, tokenizer.pad_token, tokenizer.chat_template) == ("left", "<|end|>", CHAT)
        assert tokenizer.bos_token == "<|begin|>"
        assert model.generation_config.pad_token_id == model.generation_config.eos_token_id == 1
        texts = ["def check(", "a", "the value of a setting is"]
        settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
        together = model.generate(**tokenizer(texts, padding=True, return_tensors="pt"), **settings)
        for text, row in zip(texts, together, strict=True):
            alone = model.generate(**tokenizer(text, return_tensors="pt"), **settings)[0]
            assert torch.equal(row[-8:], alone[-8:])


def test_the_code_of_the_docs_continues_a_batch(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "exports").mkdir()
    export(make_hub_source(folders["llama"]), "hf", tmp_path / "exports" / "hf")
    with torch.compiler.set_stance("default"):  # restored after the block
        run_documented_code(tmp_path / "exports" / "hf", monkeypatch, "pretrained.md")
    first, second = ast.literal_eval(capsys.readouterr().out)
    assert first.startswith("def ")
    assert second.startswith("import numpy as")


@needs_llama
@pytest.mark.parametrize("linear", [BitLinear, nn.Linear])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_llama_cpp_runs_it_with_its_own_tokenizer(
    folders: dict[str, Path], tmp_path: Path, kind: str, linear: type[nn.Linear]
) -> None:
    """Llama has the rotations of Llama 3 and a token before a text; Qwen 2 has biases, GPT-2 positions."""
    from gguf import GGUFReader

    source = make_hub_source(folders[kind], linear)
    report = export(source, "gguf", tmp_path / "a")
    exact = kind in ("llama", "qwen3")
    if linear is BitLinear:
        assert report["checks"]["scale"]["value"] <= (0 if exact else gguf.HALF_TOLERANCE)
    fields = GGUFReader(tmp_path / "a" / gguf.FILE).fields
    assert fields["tokenizer.chat_template"].contents() == CHAT
    assert fields["tokenizer.ggml.add_bos_token"].contents() == (kind == "llama")
    assert len(fields["tokenizer.ggml.tokens"].contents()) == 336  # as many as the embedding has, not the tokenizer


@pytest.mark.parametrize("kind", ["hf", pytest.param("gguf", marks=needs_llama)])
@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_blocks_in_full_precision_leave_beside_ternary_ones(
    folders: dict[str, Path], tmp_path: Path, model_type: str, kind: str
) -> None:
    """GPT-2's layers are [in, out] in transformers, converted or not."""
    source = make_hub_source(folders[model_type], keep_blocks=[0])
    export(source, kind, tmp_path / "a")


@pytest.mark.parametrize("packing", ["bitlinear", "autobitlinear", "none"])
def test_what_left_comes_in_again(folders: dict[str, Path], tmp_path: Path, packing: str) -> None:
    """With its biases, and with the block that stays in full precision."""
    source = make_hub_source(folders["qwen2"], keep_blocks=[0])
    with torch.no_grad():
        for name, p in source.model.named_parameters():
            if name.endswith("bias"):
                p.normal_()
    (tmp_path / "a").mkdir()
    hf.write(source, tmp_path / "a", layout.Options(packing=packing))
    tokens = source.run.data.val[torch.arange(3)][0]
    again = Hub(source.run.data.shape, folder=str(tmp_path / "a"), linear=BitLinear).eval()
    assert bitlinear_layers(again).keys() == bitlinear_layers(source.model).keys()
    torch.testing.assert_close(again(tokens), source.model(tokens), rtol=1e-3, atol=1e-3)


def test_another_tokenizer_takes_the_place_of_the_folders_own(folders: dict[str, Path], tmp_path: Path) -> None:
    """A model that was trained on other tokens does not bring the folder's tokenizer, nor its special tokens."""
    source = make_hub_source(folders["llama"], tokenizer=False)
    (tmp_path / "a").mkdir()
    (warning,) = hf.write(source, tmp_path / "a", layout.Options())
    assert warning.startswith("the data is not text")
    assert {file.name for file in (tmp_path / "a").iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}
    config = json.loads((tmp_path / "a" / "config.json").read_text(encoding="utf-8"))
    assert config["bos_token_id"] is None
    assert config["eos_token_id"] is None
    generation = json.loads((tmp_path / "a" / "generation_config.json").read_text(encoding="utf-8"))
    assert not {"bos_token_id", "eos_token_id", "pad_token_id"} & generation.keys()
    assert config["quantization_config"]["modules_to_not_convert"] == ["lm_head"]


SPACE_BEFORE = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
SPACED_TOKEN = {"content": "<|x|>", "special": False, "lstrip": True, "rstrip": True, "single_word": False, "normalized": False}


@pytest.mark.parametrize(
    ("changes", "kind", "left_out"),
    [
        ({"pre_tokenizer": SPACE_BEFORE}, "PreTrainedTokenizerFast", "a space before a text"),
        ({"pre_tokenizer": SPACE_BEFORE}, "GPT2Tokenizer", "a space before a text"),  # whose class would put it in again
        ({"normalizer": {"type": "Lowercase"}}, "PreTrainedTokenizerFast", "its Lowercase"),
        ({"normalizer": {"type": "NFC"}}, "Qwen2Tokenizer", "its NFC"),
        ({"added_tokens": [SPACED_TOKEN]}, "PreTrainedTokenizerFast", "spaces around added tokens"),
        ({}, "PreTrainedTokenizerFast", ""),
    ],
)
def test_prompts_are_cut_as_texts_were_in_training(
    folders: dict[str, Path], tmp_path: Path, changes: dict[str, Any], kind: str, left_out: str
) -> None:
    """Training leaves out what changes texts; the model's own tokenizer would do it to prompts."""
    from transformers import AutoTokenizer

    folder = shutil.copytree(folders["llama"], tmp_path / "original")
    settings, config = (json.loads((folder / name).read_text(encoding="utf-8")) for name in TOKENIZER_FILES)
    own = settings["added_tokens"]
    more = [token | {"id": 330 + number} for number, token in enumerate(changes.get("added_tokens", ()))]
    settings |= changes | {"added_tokens": [own[0] | {"rstrip": True}, *own[1:], *more]}
    for name, content in zip(TOKENIZER_FILES, (settings, config | {"tokenizer_class": kind}), strict=True):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    run = make_hub_source(folder).run
    (tmp_path / "a").mkdir()
    warnings = tokens.write_for_transformers(run, tmp_path / "a", 32)
    assert [f"training left out {left_out};" in warning for warning in warnings] == [True] * bool(left_out)
    assert run.tokenizer
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a", local_files_only=True)
    for text in ("Def É e\u0301", "x", " x", "a <|x|> b", "a  b\n"):
        expected = run.tokenizer.encode([text.encode()])[0].tolist()
        assert tokenizer.encode(text) == [0, *expected], text  # the first is its own, and stays
    assert vocabulary.find_surroundings(layout.build_source(run)) == ([0], [])
    assert tokens.find_changes(run, tmp_path / "a") == []
    assert tokenizer.chat_template == CHAT
    assert tokenizer.encode("<|begin|> a") == [0, *tokenizer.encode("<|begin|>a")[1:][:1], *tokenizer.encode("a")[1:]]


def change(**fields: Any) -> Callable[[layout.Source], None]:
    """Return a change of fields of a configuration."""

    def apply(source: layout.Source) -> None:
        for name, value in fields.items():
            setattr(source.net.config, name, value)

    return apply


@pytest.mark.parametrize(
    ("kind", "apply", "word"),
    [
        ("llama", change(hidden_act="gelu"), "hidden_act=gelu: llama.cpp's llama loads such a file but computes silu"),
        ("qwen2", change(use_sliding_window=True), "use_sliding_window=True: llama.cpp's qwen2 computes False"),
        ("qwen2", change(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}), "rope_type=linear"),
        ("gpt2", change(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx=True"),
        (
            "gpt2",
            change(activation_function="relu"),
            "hidden_act=relu: llama.cpp's gpt2 loads such a file but computes gelu_new",
        ),
    ],
)
def test_what_llama_cpp_would_compute_differently_is_refused(
    folders: dict[str, Path], tmp_path: Path, kind: str, apply: Callable[[layout.Source], None], word: str
) -> None:
    source = make_hub_source(folders[kind], nn.Linear)
    apply(source)
    with pytest.raises(ValueError, match=word) as error:
        gguf.write(source, tmp_path, layout.Options())
    assert "use --format hf" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_an_architecture_that_llama_cpp_lacks_is_refused(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(architectures.ARCHITECTURES, "llama")
    with pytest.raises(ValueError, match=r"model_type llama: --format gguf holds bitnet, mistral, .*; use --format hf"):
        gguf.write(make_hub_source(folders["llama"], nn.Linear), tmp_path, layout.Options())


@pytest.mark.parametrize(
    ("change_step", "word"),
    [
        ({"pattern": {"Regex": r"\d+"}}, r"splits a text by \\d\+, for which llama.cpp has no name here; use --format hf"),
        ({"type": "Whitespace"}, "Whitespace"),
        ({"behavior": "Removed"}, "Removed"),
    ],
)
def test_a_tokenizer_that_splits_by_what_llama_cpp_has_no_name_for_is_refused(
    folders: dict[str, Path], change_step: dict[str, Any], word: str
) -> None:
    source = make_hub_source(folders["llama"], nn.Linear)
    assert source.run.tokenizer
    library = json.loads(source.run.tokenizer.to_library().to_str())
    assert vocabulary.name_pre_tokenizer(source.run.tokenizer, library) == "llama-bpe"
    library["pre_tokenizer"]["pretokenizers"][0] |= change_step
    with pytest.raises(ValueError, match=word):
        vocabulary.name_pre_tokenizer(source.run.tokenizer, library)


@pytest.mark.slow
def test_a_run_leaves_when_its_folder_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its configuration and its tokenizer are in the run, with the template of a chat."""
    folder = write_pretrained(tmp_path / "came", "llama")
    quick = ["trainer=debug", "trainer.steps=4", "trainer.eval_every=4", "tracker=jsonl", "precision=fp32"]
    text = ["data=text", f"data.path={ROOT / 'research' / 'export'}", "data.seq_len=16", "data.val_bytes=8192"]
    train(tmp_path, "model=hub", f"model.folder={folder}", *text, *quick)
    shutil.rmtree(folder)
    (run,) = (tmp_path / "out" / "text").iterdir()
    for kind in ("hf", *(["gguf"] if find_spec("llama_cpp") else [])):
        assert main([str(run), "--format", kind, "--output", str(tmp_path / kind)]) == 0, capsys.readouterr().err
    assert (tmp_path / "hf" / "chat_template.jinja").read_text(encoding="utf-8") == CHAT
    report = json.loads((tmp_path / "hf" / "export.json").read_text(encoding="utf-8"))
    assert report["checks"]["tokenizer"]["value"]
    assert report["checks"]["batch"]["value"]
