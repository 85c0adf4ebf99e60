"""The tokenizer of a run in a GGUF file: llama.cpp splits texts by a name, so only what it splits alike is written."""

import json
from typing import Any

from research.contracts import contract
from research.data.spelling import CONFIG_FILE
from research.data.tokenizers import Tokenizer
from research.export.layout import Source
from research.export.nets import choose_special
from research.export.tokens import encode_as_exported, find_own_tokenizer
from research.models.hub import Hub
from research.run_dir import read_json

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How a byte-level tokenizer splits a text, and whether a word that is a token needs no merges -> llama.cpp's name for it.
PRE_TOKENIZERS: dict[tuple[tuple[str, ...], bool], str] = {
    (("gpt2",), False): "gpt-2",
    ((WORDS + r"\p{N}{1,3}" + REST,), True): "llama-bpe",
    ((WORDS + r"\p{N}{1,3}" + REST,), False): "dbrx",
    ((WORDS + r"\p{N}" + REST,), False): "qwen2",
    (("digits", "gpt2"), False): "smollm",
}
NO_MERGE = "\u2581 \u2581"  # one merge is required: these characters stand for no byte, so it never applies


@contract
def add_tokenizer(writer: Any, source: Source) -> None:
    """Add the tokenizer of a run on text. Raise ValueError for one that llama.cpp would split differently."""
    from gguf import TokenType

    if not (tokenizer := source.run.tokenizer):
        writer.add_tokenizer_model("none")
        return
    library = json.loads(tokenizer.to_library().to_str())
    pre = name_pre_tokenizer(tokenizer, library)
    # The other tokenizer of bytes, "llama", does not do: there a space and the character U+2581 are the same.
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    names = {index: token for token, index in tokenizer.to_library().get_vocab(with_added_tokens=True).items()}
    kinds = [TokenType.NORMAL if index in names else TokenType.UNUSED for index in range(source.outputs)]
    for token in library["added_tokens"]:
        kinds[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    writer.add_token_list([names.get(index, f"<unused {index}>") for index in range(source.outputs)])
    writer.add_token_types(kinds)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in library["model"]["merges"]]
    writer.add_token_merges(merges or [NO_MERGE])
    add_special(writer, source, tokenizer)


def name_pre_tokenizer(tokenizer: Tokenizer, library: dict[str, Any]) -> str:
    """Return llama.cpp's name of how a tokenizer splits a text. Raise ValueError where it has none."""
    model, pre = library["model"], library["pre_tokenizer"] or {}
    if not tokenizer.is_byte_level or model["type"] != "BPE" or library["normalizer"]:
        raise ValueError(f"--format gguf writes byte-level tokenizers alone, {tokenizer.name} is none; use --format hf")
    steps = [describe_step(step) for step in pre.get("pretokenizers", [pre])]
    key = tuple(step for step in steps if step), bool(model.get("ignore_merges"))
    if not key[0] and not model["merges"]:  # however it is split, each byte is a token
        return "gpt-2"
    if not (name := PRE_TOKENIZERS.get(key)):
        what = f"{tokenizer.name} splits a text by {' and '.join(key[0]) or 'nothing'}, for which llama.cpp has no name here"
        raise ValueError(f"{what}; use --format hf, or train with tokenizer=bpe")
    return name


def describe_step(step: dict[str, Any]) -> str:
    """Return a step of a pre-tokenizer: a name, or its pattern; nothing where it splits nothing."""
    if step["type"] == "ByteLevel":
        return "gpt2" if step.get("use_regex", True) else ""
    if step["type"] == "Digits" and step.get("individual_digits"):
        return "digits"
    if step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"] and "Regex" in step["pattern"]:
        return str(step["pattern"]["Regex"])
    return json.dumps(step)


def add_special(writer: Any, source: Source, tokenizer: Tokenizer) -> None:
    """Add the special tokens and, of a pretrained model's own tokenizer, what stands around a text and in a chat."""
    writers = {"bos": writer.add_bos_token_id, "eos": writer.add_eos_token_id, "pad": writer.add_pad_token_id}
    own = find_own_tokenizer(source.run)
    special = choose_special(source, source.net.config.to_dict() if isinstance(source.model, Hub) else {})
    for name, add in writers.items():
        number = special[f"{name}_token_id"] if own and name != "eos" else tokenizer.end
        if number is not None:
            add(number)
    if not own:
        writer.add_unk_token_id(tokenizer.end)
    before, after = find_surroundings(source)
    writer.add_add_bos_token(bool(before))
    writer.add_add_eos_token(bool(after))
    writer.add_add_space_prefix(False)
    if own and (template := read_chat_template(source)):
        writer.add_chat_template(template)


def find_surroundings(source: Source) -> tuple[list[int], list[int]]:
    """Return the tokens before and after each text. Raise ValueError where llama.cpp would put others there."""
    if not find_own_tokenizer(source.run):
        return [], []
    assert source.run.tokenizer
    text = source.run.tokenizer.encode([b"x"])[0].tolist()
    tokens = encode_as_exported(source.run, "x")
    start = next((index for index in range(len(tokens)) if tokens[index : index + len(text)] == text), -1)
    before, after = tokens[:start], tokens[start + len(text) :]
    if start < 0 or before not in ([], [source.net.config.bos_token_id]) or after not in ([], [source.run.tokenizer.end]):
        raise ValueError(f"{source.run.tokenizer.name} makes {tokens} of 'x', which llama.cpp's does not; use --format hf")
    return before, after


def read_chat_template(source: Source) -> str:
    """Return the template of a chat of the original tokenizer; nothing where there is none."""
    own = find_own_tokenizer(source.run)
    assert own
    if (file := own / "chat_template.jinja").is_file():
        return file.read_text(encoding="utf-8")
    template = read_json(own / CONFIG_FILE).get("chat_template")
    if isinstance(template, list):  # several by name
        template = next((item["template"] for item in template if item["name"] == "default"), None)
    return template or ""


@contract
def compute_expected(source: Source, text: str) -> list[Any]:
    """Return what llama.cpp should make of a text: its tokens, and the text again; nothing without a tokenizer."""
    if not (tokenizer := source.run.tokenizer):
        return []
    before, after = find_surroundings(source)
    return [before + tokenizer.encode([text.encode()])[0].tolist() + after, True]
