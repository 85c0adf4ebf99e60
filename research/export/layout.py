"""What every export starts from: a trained transformer's numbers, its ternary codes, and the words of the formats for it."""

import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from research.load import TrainedRun
from research.models.transformer import Transformer
from research.nn.attention import Attention
from research.nn.bitlinear import BitLinear, bitlinear_layers
from research.nn.feedforward import FeedForward, relu2

Codes = dict[str, tuple[Int8[Tensor, "out in"], Float[Tensor, "..."]]]  # name of a layer -> its codes and their step
MODULE_NAMES = {  # within a block: ours -> transformers', llama.cpp's
    "attention.q_proj": ("self_attn.q_proj", "attn_q"),
    "attention.k_proj": ("self_attn.k_proj", "attn_k"),
    "attention.v_proj": ("self_attn.v_proj", "attn_v"),
    "attention.o_proj": ("self_attn.o_proj", "attn_output"),
    "feedforward.gate_proj": ("mlp.gate_proj", "ffn_gate"),
    "feedforward.up_proj": ("mlp.up_proj", "ffn_up"),
    "feedforward.down_proj": ("mlp.down_proj", "ffn_down"),
    "input_norm": ("input_layernorm", "attn_norm"),
    "post_norm": ("post_attention_layernorm", "ffn_norm"),
    "attention.attn_sub_norm": ("self_attn.attn_sub_norm", "attn_sub_norm"),
    "feedforward.ffn_sub_norm": ("mlp.ffn_sub_norm", "ffn_sub_norm"),
}
SINGLE_SCALE: dict[str, tuple[Any, ...]] = {
    "granularity": ("tensor",),
    "activation_bits": (8,),
    "activation_granularity": ("token",),
}
LINEARS = tuple(place for place in MODULE_NAMES if place.endswith("_proj"))
PLAIN_LINEAR = "a plain nn.Linear"


@dataclass(frozen=True)
class Options:
    """What the command was given beside the format."""

    packing: str = "autobitlinear"  # hf
    type: str = "TQ2_0"  # gguf
    embedding: str = "F16"  # gguf


@dataclass(frozen=True)
class Source:
    """A trained ternary transformer, seen as the formats see it."""

    run: TrainedRun
    model: Transformer
    linears: dict[str, BitLinear]
    text: bool  # its symbols are bytes of text

    @property
    def architecture(self) -> dict[str, Any]:
        """What the layout is made of."""
        attention, feedforward = _get_first_block(self.model)
        return {
            "vocab": self.model.embed.num_embeddings,
            "length": self.model.max_seq_len,
            "dim": self.model.embed.embedding_dim,
            "depth": len(self.model.blocks),
            "heads": attention.q_proj.out_features // attention.head_dim,
            "kv_heads": self.model.kv_heads,
            "hidden": feedforward.gate_proj.out_features,
            "act": "relu2" if feedforward.activation is relu2 else "silu",
            "tied": self.model.head.weight is self.model.embed.weight,
            "sub_norm": isinstance(attention.attn_sub_norm, torch.nn.RMSNorm),
            "eps": self.model.norm.eps,
            "rope_base": _recover_rope_base(self.model),
        }

    def map_modules(self, prefix: str, column: int) -> dict[str, str]:
        """Modules of the blocks: our name -> the one in that column of PLACES, below `blocks` and the block's number."""
        numbers = range(len(self.model.blocks))
        return {
            f"blocks.{n}.{ours}": f"{prefix}.{n}.{theirs[column]}" for n in numbers for ours, theirs in MODULE_NAMES.items()
        }

    def compute_codes(self) -> Codes:
        """What each layer multiplies by, as the training forward rounds it."""
        rounded = {name: layer.quantizer.quantize_weight(layer.weight) for name, layer in self.linears.items()}
        return {name: (codes.to(torch.int8), step) for name, (codes, step) in rounded.items()}

    def require(self, kind: str, allowed: Mapping[str, tuple[Any, ...]]) -> None:
        """Raises ValueError where a setting of the rounding is none of those that the format can hold."""
        for name, layer in self.linears.items():
            for setting, values in allowed.items():
                given = getattr(layer.quantizer, setting)
                if given not in values:
                    can = ", ".join(map(str, values))
                    raise ValueError(
                        f"model.linear.{setting}={given}: --format {kind} holds {can} only ({name}); "
                        "--format safetensors, torch and onnx hold every ternary layer"
                    )

    def require_sub_norms(self, client: str) -> None:
        """Raises ValueError where the model has none."""
        if not self.architecture["sub_norm"]:
            raise ValueError(f"model.sub_norm=false: {client} has norms before the output projections; train with true")


def _get_first_block(model: Transformer) -> tuple[Any, Any]:
    block: Any = model.blocks[0]
    assert isinstance(block.attention, Attention)
    assert isinstance(block.feedforward, FeedForward)
    return block.attention, block.feedforward


def _recover_rope_base(model: Transformer) -> float:
    """Of the table that the model turns by, from its slowest angle, base^(2/width - 1) a position. It holds six digits."""
    cos, sin, width = model.get_buffer("cos"), model.get_buffer("sin"), model.head_dim
    if model.max_seq_len == 1 or width == 2:
        return 10_000.0  # no angle depends on it
    slowest = math.atan2(sin[1, -1].item(), cos[1, -1].item())
    return float(f"{slowest ** (width / (2 - width)):.6g}")


def build_source(run: TrainedRun) -> Source:
    """Raises ValueError for a run that is no transformer, or has linear layers in its blocks that are not ternary."""
    model = run.model
    if not isinstance(model, Transformer):
        raise ValueError(
            f"RUN is of a {type(model).__name__}: exports hold model=bitnet and model=bitnet_2b4t; train one of them"
        )
    linears = bitlinear_layers(model)
    for number in range(len(model.blocks)):
        for place in LINEARS:
            name = f"blocks.{number}.{place}"
            if name not in linears:
                raise ValueError(f"RUN is not ternary: {name} is {PLAIN_LINEAR}; train with model=bitnet")
            if not (quantizer := linears[name].quantizer).is_ternary:
                bits = quantizer.weight_bits
                raise ValueError(f"model.linear.weight_bits={bits}: exports hold ternary weights; train with 1.58, or 1")
    for layer in linears.values():
        layer.backend = "ste"  # the plain reference, which rounds no sum
    return Source(run, model, linears, run.is_text)


def require_installed(kind: str, extra: str, modules: tuple[str, ...]) -> None:
    """Raises ValueError where something is missing that the format is written or checked with."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ValueError(f"--format {kind} needs {', '.join(missing)}, not installed here: pip install -e '.[{extra}]'")


@contextmanager
def silence_libraries() -> Iterator[None]:
    """What other libraries say of themselves, as which of their parts are not installed, is nothing to the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def to_codes(values: Float[Tensor, "out in"]) -> Int8[Tensor, "out in"]:
    """Numbers read from a file as codes; one that is not whole becomes a code that no ternary layer has."""
    return torch.where(values == values.round(), values, 127).to(torch.int8)


def build_byte_alphabet() -> list[str]:
    """The character that stands for each byte in GPT-2's vocabulary (Radford et al. 2019): itself where it can be seen,
    else the next one from U+0100 on.
    """
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in seen]
    return [chr(byte) if byte in seen else chr(256 + hidden.index(byte)) for byte in range(256)]
