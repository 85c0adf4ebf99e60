"""The tokenizer of an export as AutoTokenizer reads the folder: its special tokens, and no space before a text."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from exporting import make_hub_source, write_pretrained

from research.data.spelling import SPACE_BEFORE
from research.export import hf, layout, nets, tokens
from research.export.vocabulary import find_surroundings

EOD = {"id": 330, "content": "<|eod|>", "special": True, "lstrip": False, "rstrip": False, "single_word": False,
       "normalized": False}  # fmt: skip
AS_FIELDS = {"content": "<|end|>", "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with <|begin|> 0, <|end|> 1 and <|eod|> 330."""
    folder = write_pretrained(tmp_path_factory.mktemp("tokens") / "llama", "llama")
    change_file(folder / "tokenizer.json", added_tokens=[*read(folder / "tokenizer.json")["added_tokens"], EOD])
    return folder


def read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def change_file(file: Path, **fields: Any) -> None:
    """Set fields of a file of JSON; None takes one away."""
    content = (read(file) if file.exists() else {}) | fields
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")


@pytest.mark.parametrize(
    ("files", "end", "eos", "pad"),
    [
        ({}, None, 1, 1),
        ({}, "<|eod|>", [330, 1], 330),
        ({"config.json": {"pad_token_id": 0}}, "<|eod|>", [330, 1], 0),
        ({"config.json": {"pad_token_id": 0}, "tokenizer_config.json": {"pad_token": "<|eod|>"}}, None, 1, 330),
        ({"config.json": {"pad_token_id": -1, "eos_token_id": [0, 330, 1]}}, "<|eod|>", [0, 330, 1], 330),
        ({"tokenizer_config.json": {"eos_token": None}, "special_tokens_map.json": {"eos_token": AS_FIELDS}}, None, 1, 1),
        ({"special_tokens_map.json": {"eos_token": "<|end|>", "pad_token": AS_FIELDS}}, "<|eod|>", [330, 1], 1),
    ],
)
def test_the_end_that_was_learnt_ends_and_one_token_pads(
    original: Path, tmp_path: Path, files: dict[str, dict[str, Any]], end: str | None, eos: int | list[int], pad: int
) -> None:
    """In all files of the folder alike, wherever the model's own has them; its own ends stay."""
    from transformers import AutoTokenizer

    folder = shutil.copytree(original, tmp_path / "original")
    for name, fields in files.items():
        change_file(folder / name, **fields)
    source = make_hub_source(folder, end=end)
    assert source.run.tokenizer
    (tmp_path / "a").mkdir()
    hf.write(source, tmp_path / "a", layout.Options())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a", local_files_only=True)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (source.run.tokenizer.end, pad)
    config, generation = (read(tmp_path / "a" / name) for name in ("config.json", "generation_config.json"))
    assert (config["eos_token_id"], config["pad_token_id"], generation["pad_token_id"]) == (eos, pad, pad)
    ends = generation["eos_token_id"]
    assert source.run.tokenizer.end in (ends if isinstance(ends, list) else [ends])
    assert tokenizer.encode("x") == [0, *source.run.tokenizer.encode([b"x"])[0]]
    assert find_surroundings(source) == ([0], [])
    assert nets.choose_special(source, {})["pad_token_id"] == pad


@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "GPT2Tokenizer", "LlamaTokenizer"])
@pytest.mark.parametrize("space", [True, False, None])
def test_no_space_stands_before_a_text(original: Path, tmp_path: Path, kind: str, space: bool | None) -> None:
    """Training put none there, whatever tokenizer_config.json says."""
    from transformers import AutoTokenizer

    folder = shutil.copytree(original, tmp_path / "original")
    change_file(folder / "tokenizer_config.json", tokenizer_class=kind, add_prefix_space=space)
    run = make_hub_source(folder).run
    assert run.tokenizer
    (tmp_path / "a").mkdir()
    warnings = tokens.write_for_transformers(run, tmp_path / "a", 32)
    assert [SPACE_BEFORE in warning for warning in warnings] == [True] * bool(space)
    assert "add_prefix_space" not in read(tmp_path / "a" / "tokenizer_config.json")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a", local_files_only=True)
    for text in ("x", " x", "def f", "hello 12345"):
        expected = run.tokenizer.encode([text.encode()])[0].tolist()
        assert tokenizer.encode(text, add_special_tokens=False) == expected, text
