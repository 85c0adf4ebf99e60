"""A trained model as the exports see it: its sizes, its codes and scales, and the formats that hold it."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int8, Num
from torch import Tensor, nn

from research.contracts import contract
from research.load import TrainedRun
from research.models.decoder import Decoder
from research.models.hub import Hub
from research.models.mlp import MLP
from research.models.transformer import Transformer
from research.models.vision import Vision
from research.nn.bitlinear import BitLinear, bitlinear_layers
from research.nn.feedforward import relu2
from research.nn.quantize import EPS
from research.options.finetuning import check_plain

Codes = dict[str, tuple[Int8[Tensor, "out in"], Float[Tensor, "..."]]]  # layer -> its codes and their scales
MODULE_NAMES = {  # within a block: our name -> transformers'
    "attention.q_proj": "self_attn.q_proj",
    "attention.k_proj": "self_attn.k_proj",
    "attention.v_proj": "self_attn.v_proj",
    "attention.o_proj": "self_attn.o_proj",
    "feedforward.gate_proj": "mlp.gate_proj",
    "feedforward.up_proj": "mlp.up_proj",
    "feedforward.down_proj": "mlp.down_proj",
    "input_norm": "input_layernorm",
    "post_norm": "post_attention_layernorm",
    "attention.attn_sub_norm": "self_attn.attn_sub_norm",
    "feedforward.ffn_sub_norm": "mlp.ffn_sub_norm",
}
MODELS: dict[type[nn.Module], tuple[str, ...]] = {  # what exports hold, by the options of conf/model
    Transformer: ("bitnet", "bitnet_2b4t", "transformer"),
    Hub: ("hub", "hub_full"),
    Decoder: ("bitdecoder", "decoder"),
    Vision: ("bitvision", "vision"),
    MLP: ("bitmlp", "mlp"),
}
# The formats of each, as in the table of docs/exports.md. The check of a file may still refuse it, with numbers.
FORMATS: dict[type[nn.Module], tuple[str, ...]] = {
    Transformer: ("hf", "gguf", "torch", "safetensors", "onnx"),
    Hub: ("hf", "gguf", "torch", "onnx"),
    Decoder: ("torch", "onnx"),
    Vision: ("torch", "onnx"),
    MLP: ("torch", "onnx"),
}
# What can be done today with a model that no export holds.
SAVE_CODE = "safetensors.torch.save_model(model, FILE)"
IN_PYTHON = f"load it in Python, as research.load.load_run(RUN).model; {SAVE_CODE} writes its float32 weights"
CLASSES_FORMATS = ("torch", "safetensors", "onnx")  # of a Transformer that tells classes


@dataclass(frozen=True)
class Options:
    """The options of a format."""

    packing: str | None = None  # hf; None: bitlinear, which also loads in half precision; plain where it cannot hold a layer
    type: str | None = None  # gguf; None: TQ2_0, or F16 of a model in full precision
    embedding: str = "F16"  # gguf


@contract
@dataclass(frozen=True)
class Source:
    """A trained model, ready to be exported."""

    run: TrainedRun
    model: Any  # of one of MODELS

    @cached_property
    def linears(self) -> dict[str, BitLinear]:
        """Return the ternary layers by name; none of a model in full precision."""
        return bitlinear_layers(self.model)

    @property
    def reads_tokens(self) -> bool:
        """Return whether the model reads tokens."""
        return isinstance(self.model, Transformer | Hub | Decoder)

    @property
    def max_seq_len(self) -> int:
        """Return how many tokens the model takes at most."""
        if isinstance(self.model, Transformer):
            return self.model.max_seq_len
        if isinstance(self.model, Decoder):
            return self.model.position.num_embeddings
        return int(getattr(self.net.config, "max_position_embeddings", None) or self.run.data.shape.seq_len)

    @property
    def net(self) -> Any:
        """Return transformers' model of a Hub."""
        return self.model.net

    @property
    def outputs(self) -> int:
        """Return the number of logits, at a position of tokens."""
        return int(self.net.config.vocab_size if isinstance(self.model, Hub) else self.model.head.out_features)

    @property
    def end(self) -> int:
        """Return the token at which a document ends that is masked; -1 where none is."""
        return self.model.end if isinstance(self.model, Transformer) else -1

    @property
    def inputs(self) -> tuple[str, Num[Tensor, "2 ..."]]:
        """Return the name of the model's input in a file, and an example of two."""
        if isinstance(self.model, Vision):
            return "images", torch.zeros(2, *self.model.shape[:3], dtype=torch.uint8)
        if isinstance(self.model, MLP):
            return "vectors", torch.zeros(2, self.model.embed.in_features)
        return "tokens", torch.zeros(2, min(2, self.max_seq_len), dtype=torch.long)  # torch takes a size of 1 as fixed

    @property
    def architecture(self) -> dict[str, Any]:
        """Return the sizes and switches of the model, under the keys that stand in the files."""
        if isinstance(self.model, Hub):
            return {"name": type(self.net).__name__, "vocab": self.outputs, "length": self.max_seq_len}
        if not isinstance(self.model, Transformer):
            return {"name": type(self.model).__name__, **self.run.data.shape._asdict()}
        block: Any = self.model.blocks[0]  # all blocks are alike
        attention, feedforward = block.attention, block.feedforward
        numbers = {
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
        numbers |= {"classes": self.model.num_classes} if self.model.num_classes else {}
        return numbers | ({"end": self.end} if self.end >= 0 else {})

    def map_modules(self, prefix: str) -> dict[str, str]:
        """Return the name of each module in a Transformer's blocks -> its name in transformers, below `prefix`."""
        blocks, names = range(len(self.model.blocks)), MODULE_NAMES.items()
        return {f"blocks.{n}.{ours}": f"{prefix}.{n}.{theirs}" for n in blocks for ours, theirs in names}

    @property
    def tells_classes(self) -> bool:
        """Return whether a Transformer has a head of classes."""
        return isinstance(self.model, Transformer) and self.model.num_classes > 0

    @property
    def formats(self) -> tuple[str, ...]:
        """Return the formats that hold the model."""
        return CLASSES_FORMATS if self.tells_classes else FORMATS[type(self.model)]

    def compute_codes(self) -> Codes:
        """Return the codes and scales of each layer."""
        return {name: quantize_layer(layer) for name, layer in self.linears.items()}

    def require_format(self, kind: str) -> None:
        """Raise ValueError for a format that does not hold the model, with those that do."""
        if kind not in self.formats:
            what = "the run tells classes" if self.tells_classes else f"RUN has the model {type(self.model).__name__}"
            why = "is for programs of language models, which predict tokens" if kind in ("hf", "gguf") else "does not hold it"
            raise ValueError(f"{what}, and --format {kind} {why}; use --format {' or '.join(self.formats)}")


def _recover_rope_base(model: Transformer) -> float:
    """Return the base of the rotation, to six digits: the slowest angle is base^(2/head_dim - 1) a position."""
    cos, sin, head_dim = model.get_buffer("cos"), model.get_buffer("sin"), model.head_dim
    if model.max_seq_len == 1 or head_dim == 2:
        return 10_000.0  # no angle depends on it
    slowest = math.atan2(sin[1, -1].item(), cos[1, -1].item())
    return float(f"{slowest ** (head_dim / (2 - head_dim)):.6g}")


def build_source(run: TrainedRun) -> Source:
    """Return the run as exports need it; raise ValueError for a model, or for layers, that no export holds."""
    check_plain(run.config, "an export")
    model = run.model
    if type(model) not in MODELS:
        kind, known = type(model).__name__, ", ".join(name for names in MODELS.values() for name in names)
        raise ValueError(f"RUN has the model {kind}: exports hold model={known}; {IN_PYTHON}")
    layers = bitlinear_layers(model)
    if not isinstance(model, Hub):
        inner = dict(model.get_submodule("blocks").named_modules(prefix="blocks"))
        projections = {name: layer for name, layer in inner.items() if name.endswith("_proj") or isinstance(layer, nn.Linear)}
        for name, layer in projections.items():
            if type(layer) is not (BitLinear if layers else nn.Linear):
                raise ValueError(f"RUN has a layer that no export knows: {name} is a {type(layer).__name__}; {IN_PYTHON}")
    for layer in layers.values():
        if not layer.quantizer.is_ternary:
            bits = layer.quantizer.weight_bits
            raise ValueError(f"model.linear.weight_bits={bits}: exports hold ternary weights; train with 1.58 or 1")
        layer.backend = "ste"  # the reference: the other backends round sums
    return Source(run, model)


@contract
def quantize_layer(layer: BitLinear) -> tuple[Int8[Tensor, "out in"], Float[Tensor, "rows groups"]]:
    """Return a layer's codes and scales as in training. An axis of the scales that outputs or inputs share has length 1."""
    codes, scale = layer.quantizer.quantize_weight(layer.weight)
    group_size = layer.quantizer.granularity  # a number where groups of inputs share a scale, which is repeated in each
    scales = scale.unflatten(1, (-1, group_size))[..., 0] if isinstance(group_size, int) else scale.reshape(-1, 1)
    return codes.to(torch.int8), scales


@contract
def to_codes(values: Float[Tensor, "out in"]) -> Int8[Tensor, "out in"]:
    """Return numbers read from a file as codes; a number that is no integer becomes 127, which no ternary layer has."""
    return torch.where(values == values.round(), values, 127).to(torch.int8)


@contract
def spread_scale(scale: Float[Tensor, "..."], like: Float[Tensor, "out in"]) -> Float[Tensor, "..."]:
    """Return scales [rows or 1, groups or 1] for each number of a weight, or in a shape that is broadcast to it."""
    scale = scale.reshape(-1, scale.shape[-1] if scale.ndim > 1 else 1)
    return scale if scale.shape[1] == 1 else scale.repeat_interleave(like.shape[1] // scale.shape[1], 1)


@contract
def split_weight(weight: Float[Tensor, "out in"], like: Float[Tensor, "rows groups"]) -> tuple[Tensor, Tensor]:
    """Return the codes and scales of a weight that holds their product; the scales in the shape of `like`."""
    groups = weight.unflatten(1, (like.shape[1], -1)).abs().amax(-1)
    scale = (groups.amax(0, keepdim=True) if like.shape[0] == 1 else groups).clamp(min=EPS)
    return to_codes(weight / spread_scale(scale, weight)), scale
