"""What tokens spell: the text of each, and a tokenizer.json without what would give the tokens of another text."""

import json
import re
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

from research.contracts import contract
from research.files.silence import silence_libraries
from research.ranges import MAX_NESTING

CONFIG_FILE, SPECIAL_FILE = "tokenizer_config.json", "special_tokens_map.json"
ID_FILES = ("generation_config.json", "config.json")
OLDER_FILES = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")  # of transformers' tokenizers
SPACE_BEFORE = "a space before a text"
ASCII = "".join(map(chr, range(0x20, 0x7F)))
# What some tokenizers drop or change: spaces, capitals, marks, letters of two to four bytes, two spellings of one letter.
PROBES = [text.encode() for text in ("A  b\n\tC", "naïve é", "漢字 \U0001f600", "\ufb01 ½ e\u0301", ASCII, " a\r\n\n ##b\n ")]
MARKS = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}  # SentencePiece's, as tokens have no spaces


def build_byte_alphabet() -> list[str]:
    """Return each byte's character in GPT-2's vocabulary (Radford et al. 2019): itself if visible, else one from U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = count(0x100)
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


BYTE_OF = {character: byte for byte, character in enumerate(build_byte_alphabet())}


@contract
def spell_token(token: str, byte_level: bool) -> bytes:
    """Return the text of a token: "Ġthe" and "▁the" are " the", "<0x0A>" is a line's end."""
    if byte_level:
        known = all(character in BYTE_OF for character in token)
        return bytes(BYTE_OF[character] for character in token) if known else token.encode()
    if byte := re.fullmatch("<0x([0-9A-F]{2})>", token):
        return bytes.fromhex(byte[1])
    return token.replace("\u2581", " ").encode()


@contract
def show_difference(text: bytes, spelled: bytes) -> str:
    """Return where two texts part, for a message: "'Ab c' becomes 'ab c'"."""
    sizes = range(min(len(text), len(spelled)))
    start = max(0, next((index for index in sizes if text[index] != spelled[index]), len(sizes)) - 8)
    one, other = (part[start : start + 32].decode(errors="replace") for part in (text, spelled))
    return f"{one!r} becomes {other!r}"


@contract
def leave_out_changes(settings: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a tokenizer.json without what changes texts, and the names of that.

    Left out are normalizers but for marks, a space before a text, spaces that added tokens take with them, and chance. So is
    what a post-processor adds, which is no text.
    """
    changes: dict[str, None] = {}
    parts = {group: adapt(settings.get(group), group, changes) for group in ("normalizer", "pre_tokenizer", "decoder")}
    added = [token | {"lstrip": False, "rstrip": False} for token in settings.get("added_tokens", ())]
    if added != list(settings.get("added_tokens", ())):
        changes["spaces around added tokens"] = None
    model = settings["model"]
    if model.get("dropout"):
        changes["dropout"], model = None, model | {"dropout": None}
    return settings | parts | {"added_tokens": added, "model": model, "post_processor": None}, list(changes)


@contract
def adapt(part: dict[str, Any] | None, group: str, changes: dict[str, None], depth: int = MAX_NESTING) -> dict[str, Any] | None:
    """Return a part without what changes texts, whose names it adds to `changes`; None where nothing remains.

    Raise ValueError for sequences of sequences deeper than `depth`.
    """
    if part is None:
        return None
    kind = part["type"]
    if not depth:
        raise ValueError(f"the {group} of the tokenizer has sequences of sequences {MAX_NESTING} deep\nflatten them")
    if kind == "Sequence":
        key = next(key for key in part if key != "type")
        return part | {key: [inner for inner in (adapt(item, group, changes, depth - 1) for item in part[key]) if inner]}
    if group == "normalizer" and kind != "ByteLevel" and part | MARKS != part:
        changes[f"its {kind}"] = None
        return None
    if group == "pre_tokenizer" and (part.get("add_prefix_space") or part.get("prepend_scheme", "never") != "never"):
        changes[SPACE_BEFORE] = None
    if kind == "Metaspace":
        return part | {"add_prefix_space": False, "prepend_scheme": "never"}
    if group == "pre_tokenizer" and kind == "ByteLevel":
        return part | {"add_prefix_space": False}
    return None if kind == "Strip" else part


class UnconvertedError(ValueError):
    """A folder of which no tokenizer.json can be made."""


def convert_tokenizer(folder: Path) -> str:
    """Return the tokenizer.json that transformers makes of older files, as vocab.json and merges.txt. Nothing is downloaded.

    Raise UnconvertedError where there are none, or a library for them is missing.
    """
    files = [name for name in OLDER_FILES if (folder / name).is_file()]
    fix = "give the folder of a fast Hugging Face tokenizer"
    if not files:
        raise UnconvertedError(f"there is no tokenizer.json\n{fix}")
    try:
        with silence_libraries():
            from transformers import AutoTokenizer  # slow to import

            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of many libraries
        needs = "sentencepiece" if files[0].endswith(".model") and find_spec("sentencepiece") is None else ""
        install = f"pip install {needs}, or " if needs else ""
        reason = f"it needs {needs}" if needs else str(error).strip().split("\n")[0][:150]
        raise UnconvertedError(f"{files[0]} becomes no tokenizer.json: {reason}\n{install}{fix}") from None
    if not tokenizer.is_fast:
        raise UnconvertedError(f"{files[0]} becomes no tokenizer.json: {type(tokenizer).__name__} is not a fast one\n{fix}")
    return str(tokenizer.backend_tokenizer.to_str())


@contract
def read_special(folder: Path, tokenizer: Any, kind: str) -> list[str]:
    """Return the tokens that a folder names as its eos or pad, by their text or their number, the first that counts first."""
    names = list[str]()
    texts = [(file, f"{kind}_token") for file in (CONFIG_FILE, SPECIAL_FILE)]
    for file, key in (*texts, *((file, f"{kind}_token_id") for file in ID_FILES)):
        try:
            value = json.loads((folder / file).read_bytes()).get(key)
        except (OSError, ValueError, AttributeError):
            continue
        value = value.get("content") if isinstance(value, dict) else value
        for item in value if isinstance(value, list) else [value]:
            names += [item] if isinstance(item, str) else []
            names += [tokenizer.id_to_token(item)] if type(item) is int and 0 <= item < 1 << 32 else []
    return [name for name in names if name is not None]
