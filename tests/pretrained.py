"""Pretrained folders, made in the test: tiny random models of transformers, each with a tokenizer that is trained here."""

from functools import cache
from pathlib import Path
from typing import Any

import torch

TEXT = "The quick brown fox jumps over the lazy dog. A dog that is not lazy jumps over the fox.\n" * 20
END = "<end>"
FIELDS = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
MORE: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": 16},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": 16},
    "bitnet": {"tie_word_embeddings": True},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 48},
}


@cache
def train_tokenizer(vocab_size: int = 300) -> Any:
    """Return a byte-level tokenizer of the `tokenizers` library, with an end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def make_net(kind: str = "llama", vocab_size: int = 304, **fields: Any) -> Any:
    """Return a random causal language model of transformers, whose vocabulary is larger than the tokenizer's."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    ends = {"eos_token_id": 0, "bos_token_id": None, "pad_token_id": None}
    sizes = ({} if kind == "gpt2" else FIELDS | {"num_key_value_heads": 2, "max_position_embeddings": 48}) | {
        "initializer_range": 0.2
    }
    config = AutoConfig.for_model(kind, vocab_size=vocab_size, **sizes, **ends, **MORE[kind] | fields)
    return AutoModelForCausalLM.from_config(config).eval()


def make_folder(folder: Path, kind: str = "llama", dtype: torch.dtype = torch.float32, **fields: Any) -> Path:
    """Write a random model and its tokenizer with save_pretrained; return the folder."""
    from transformers import PreTrainedTokenizerFast

    max_shard_size = fields.pop("max_shard_size", "5GB")
    make_net(kind, **fields).to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    PreTrainedTokenizerFast(tokenizer_object=train_tokenizer(), eos_token=END).save_pretrained(folder)
    return folder
