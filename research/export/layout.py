"""A trained ternary model as the exports see it: its sizes, its codes and scales, and its names in the formats."""

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int8, Num
from torch import Tensor, nn

from research.load import TrainedRun
from research.models.hub import Hub
from research.models.mlp import MLP
from research.models.transformer import Transformer
from research.models.vision import Vision
from research.nn.bitlinear import BitLinear, bitlinear_layers
from research.nn.feedforward import relu2

Codes = dict[str, tuple[Int8[Tensor, "out in"], Float[Tensor, "..."]]]  # layer -> its codes and their scales
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


TERNARY_MODELS: dict[type[nn.Module], tuple[str, ...]] = {  # what exports hold, by the options of conf/model, twins first
    Transformer: ("bitnet", "bitnet_2b4t"),
    Vision: ("bitvision",),
    MLP: ("bitmlp",),
}


@dataclass(frozen=True)
class Options:
    """The options of a format."""

    packing: str = "bitlinear"  # hf: the packing that also loads in half precision, and can be saved again
    type: str = "TQ2_0"  # gguf
    embedding: str = "F16"  # gguf


@dataclass(frozen=True)
class Source:
    """A trained ternary model, ready to be exported."""

    run: TrainedRun
    model: Any  # a Transformer, a Vision or an MLP

    @cached_property
    def linears(self) -> dict[str, BitLinear]:
        """Return the ternary layers by name."""
        return bitlinear_layers(self.model)

    @property
    def reads_tokens(self) -> bool:
        """Return whether the model is a Transformer."""
        return isinstance(self.model, Transformer)

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
        return "tokens", torch.zeros(2, min(2, self.model.max_seq_len), dtype=torch.long)  # torch takes a size of 1 as fixed

    @property
    def architecture(self) -> dict[str, Any]:
        """Return the sizes and switches of the model, under the keys that stand in the files."""
        if not self.reads_tokens:
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

    def map_modules(self, prefix: str, column: int) -> dict[str, str]:
        """Return the name of each module in the blocks -> its name in that column of MODULE_NAMES, below `prefix`."""
        blocks, names = range(len(self.model.blocks)), MODULE_NAMES.items()
        return {f"blocks.{n}.{ours}": f"{prefix}.{n}.{theirs[column]}" for n in blocks for ours, theirs in names}

    def require_tokens(self, kind: str) -> None:
        """Raise ValueError for a model of anything but tokens."""
        if not self.reads_tokens:
            name = type(self.model).__name__
            raise ValueError(f"RUN has the model {name}: --format {kind} holds models of tokens; use --format torch or onnx")

    def compute_codes(self) -> Codes:
        """Return the codes and scales of each layer."""
        return {name: quantize_layer(layer) for name, layer in self.linears.items()}

    def require_bitnet(self, kind: str, client: str, **more: object) -> None:
        """Raise ValueError for a model that the client's BitNet does not compute; the format may need `more` settings."""
        self.require_tokens(kind)
        settings = {"granularity": "tensor", "activation_bits": 8, "activation_granularity": "token"} | more
        fix = "use --format safetensors, torch or onnx, which hold every ternary layer"
        for name, layer in self.linears.items():
            for setting, known in settings.items():
                if (value := getattr(layer.quantizer, setting)) != known:
                    raise ValueError(f"model.linear.{setting}={value}: --format {kind} holds {known} only ({name}); {fix}")
        if self.model.num_classes:
            fix = "use --format safetensors, torch or onnx"
            raise ValueError(f"the run tells classes, and --format {kind} is for {client}, which predicts tokens; {fix}")
        if not self.architecture["sub_norm"]:
            fix = "train with model.sub_norm=true"
            raise ValueError(f"model.sub_norm=false: {client} needs norms before the output projections; {fix}")


def _recover_rope_base(model: Transformer) -> float:
    """Return the base of the rotation, to six digits: the slowest angle is base^(2/head_dim - 1) a position."""
    cos, sin, head_dim = model.get_buffer("cos"), model.get_buffer("sin"), model.head_dim
    if model.max_seq_len == 1 or head_dim == 2:
        return 10_000.0  # no angle depends on it
    slowest = math.atan2(sin[1, -1].item(), cos[1, -1].item())
    return float(f"{slowest ** (head_dim / (2 - head_dim)):.6g}")


def build_source(run: TrainedRun) -> Source:
    """Return the run as exports need it; raise ValueError for a run of no ternary Transformer, Vision or MLP."""
    run.require_plain("an export")
    model = run.model
    if not isinstance(model, Transformer | Vision | MLP):
        kind, known = type(model).__name__, ", ".join(name for names in TERNARY_MODELS.values() for name in names)
        raise ValueError(f"RUN has the model {kind}: exports hold model={known}; {suggest(model)}")
    for name, layer in model.blocks.named_modules(prefix="blocks"):
        if not (name.endswith("_proj") or isinstance(layer, nn.Linear)):
            continue
        if not isinstance(layer, BitLinear):
            twin = f"train with model={TERNARY_MODELS[type(model)][0]}"
            raise ValueError(f"RUN is not ternary: {name} is a plain nn.Linear; {suggest(model)}, or {twin}")
        if not layer.quantizer.is_ternary:
            bits = layer.quantizer.weight_bits
            raise ValueError(f"model.linear.weight_bits={bits}: exports hold ternary weights; train with 1.58 or 1")
        layer.backend = "ste"  # the reference: the other backends round sums
    return Source(run, model)


def suggest(model: nn.Module) -> str:
    """Return what can be done today with a model that no export holds."""
    loaded = "load it in Python, as research.load.load_run(RUN).model"
    if isinstance(model, Hub):
        return f"{loaded}; its .net.save_pretrained(DIR) writes float32 weights that transformers loads, unquantized"
    return f"{loaded}; safetensors.torch.save_model(model, FILE) writes its float32 weights"


def quantize_layer(layer: BitLinear) -> tuple[Int8[Tensor, "out in"], Float[Tensor, "rows groups"]]:
    """Return a layer's codes and scales as in training. An axis of the scales that outputs or inputs share has length 1."""
    codes, scale = layer.quantizer.quantize_weight(layer.weight)
    group_size = layer.quantizer.granularity  # a number where groups of inputs share a scale, which is repeated in each
    scales = scale.unflatten(1, (-1, group_size))[..., 0] if isinstance(group_size, int) else scale.reshape(-1, 1)
    return codes.to(torch.int8), scales


@contextmanager
def silence_libraries() -> Iterator[None]:
    """Silence warnings and logs of other libraries, such as that an optional part of theirs is not installed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


def to_codes(values: Float[Tensor, "out in"]) -> Int8[Tensor, "out in"]:
    """Return numbers read from a file as codes; a number that is no integer becomes 127, which no ternary layer has."""
    return torch.where(values == values.round(), values, 127).to(torch.int8)
