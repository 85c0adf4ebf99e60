"""A trained ternary transformer as the exports see it: its sizes, its codes and scales, and its names in the formats."""

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

Codes = dict[str, tuple[Int8[Tensor, "out in"], Float[Tensor, "..."]]]  # layer -> its codes and their scale
MODULE_NAMES = {  # within a block: our name -> transformers', llama.cpp's
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
# The settings of a BitLinear that formats with one scale a layer hold.
SINGLE_SCALE: dict[str, tuple[Any, ...]] = {
    "granularity": ("tensor",),
    "activation_bits": (8,),
    "activation_granularity": ("token",),
}
LINEARS = tuple(name for name in MODULE_NAMES if name.endswith("_proj"))


@dataclass(frozen=True)
class Options:
    """The options of a format."""

    packing: str = "autobitlinear"  # hf
    type: str = "TQ2_0"  # gguf
    embedding: str = "F16"  # gguf


@dataclass(frozen=True)
class Source:
    """A trained ternary transformer, ready to be exported."""

    run: TrainedRun
    model: Transformer
    linears: dict[str, BitLinear]
    text: bool  # its tokens are bytes of UTF-8

    @property
    def architecture(self) -> dict[str, Any]:
        """Return the sizes and switches of the model, under the keys that stand in the files."""
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
        """Return the name of each module in the blocks -> its name in that column of MODULE_NAMES, below `prefix`."""
        blocks = range(len(self.model.blocks))
        names = MODULE_NAMES.items()
        return {f"blocks.{n}.{ours}": f"{prefix}.{n}.{theirs[column]}" for n in blocks for ours, theirs in names}

    def compute_codes(self) -> Codes:
        """Return each layer's codes and scale, as the training forward quantizes its weight."""
        quantized = {name: layer.quantizer.quantize_weight(layer.weight) for name, layer in self.linears.items()}
        return {name: (codes.to(torch.int8), scale) for name, (codes, scale) in quantized.items()}

    def require(self, kind: str, allowed: Mapping[str, tuple[Any, ...]]) -> None:
        """Raise ValueError where a layer has a setting that the format cannot hold."""
        for name, layer in self.linears.items():
            for setting, values in allowed.items():
                value = getattr(layer.quantizer, setting)
                if value not in values:
                    raise ValueError(
                        f"model.linear.{setting}={value}: --format {kind} holds {', '.join(map(str, values))} only ({name}); "
                        "use --format safetensors, torch or onnx, which hold every ternary layer"
                    )

    def require_sub_norms(self, client: str) -> None:
        """Raise ValueError where the model has no norms before its output projections."""
        if not self.architecture["sub_norm"]:
            raise ValueError(
                f"model.sub_norm=false: {client} needs norms before the output projections; train with model.sub_norm=true"
            )


def _get_first_block(model: Transformer) -> tuple[Any, Any]:
    """Return the attention and the feedforward of the first block; all blocks are alike."""
    block: Any = model.blocks[0]
    assert isinstance(block.attention, Attention)
    assert isinstance(block.feedforward, FeedForward)
    return block.attention, block.feedforward


def _recover_rope_base(model: Transformer) -> float:
    """Return the base of the rotation, to six digits: the slowest angle is base^(2/head_dim - 1) a position."""
    cos, sin, head_dim = model.get_buffer("cos"), model.get_buffer("sin"), model.head_dim
    if model.max_seq_len == 1 or head_dim == 2:
        return 10_000.0  # no angle depends on it
    slowest = math.atan2(sin[1, -1].item(), cos[1, -1].item())
    return float(f"{slowest ** (head_dim / (2 - head_dim)):.6g}")


def build_source(run: TrainedRun) -> Source:
    """Return the run as exports need it; raise ValueError for a run that is no ternary transformer."""
    model = run.model
    if not isinstance(model, Transformer):
        raise ValueError(
            f"RUN has the model {type(model).__name__}: exports hold model=bitnet and model=bitnet_2b4t; train one of them"
        )
    linears = bitlinear_layers(model)
    for number in range(len(model.blocks)):
        for linear in LINEARS:
            name = f"blocks.{number}.{linear}"
            if name not in linears:
                raise ValueError(f"RUN is not ternary: {name} is a plain nn.Linear; train with model=bitnet")
            if not (quantizer := linears[name].quantizer).is_ternary:
                bits = quantizer.weight_bits
                raise ValueError(f"model.linear.weight_bits={bits}: exports hold ternary weights; train with 1.58 or 1")
    for layer in linears.values():
        layer.backend = "ste"  # the reference: the other backends round sums
    return Source(run, model, linears, run.is_text)


def require_installed(kind: str, extra: str, modules: tuple[str, ...]) -> None:
    """Raise ValueError where a module is missing that writes or checks the format."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ValueError(f"--format {kind} needs {', '.join(missing)}, which is not installed; run pip install -e '.[{extra}]'")


@contextmanager
def silence_libraries() -> Iterator[None]:
    """Silence warnings and logs of other libraries, such as that an optional part of theirs is not installed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def to_codes(values: Float[Tensor, "out in"]) -> Int8[Tensor, "out in"]:
    """Return numbers read from a file as codes; a number that is no integer becomes 127, which no ternary layer has."""
    return torch.where(values == values.round(), values, 127).to(torch.int8)


def build_byte_alphabet() -> list[str]:
    """Return the character of each byte in GPT-2's vocabulary (Radford et al. 2019).

    A visible character stands for itself, any other byte is the next character from U+0100 on.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte) if byte in visible else chr(256 + hidden.index(byte)) for byte in range(256)]
