"""The architectures of transformers that llama.cpp computes: what it takes for granted, and how it stores their tensors."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from research.contracts import contract
from research.export.layout import Source
from research.export.nets import Net
from research.models.hub import Hub

FIX = "use --format hf, torch or onnx"
# transformers' names of BitNet's norms -> those of the first BitNet's code, which the gguf library knows
BITNET_NAMES = {"self_attn.attn_sub_norm": "self_attn.inner_attn_ln", "mlp.ffn_sub_norm": "mlp.ffn_layernorm"}


@contract
@dataclass(frozen=True)
class Architecture:
    """How llama.cpp stores and computes one architecture."""

    name: str  # llama.cpp's
    activation: str  # the one that it computes
    has_scales: bool = False  # it multiplies every linear layer by the tensor .scale beside it
    is_interleaved: bool = False  # it rotates neighbours, where transformers rotates halves: rows of q and k change places
    is_tied: bool = False  # its head is always the embedding
    has_positions: bool = False  # learnt positions in place of rotations, layer norms in place of RMS
    norm_offset: float = 0.0  # added to the gains of norms
    fixed: dict[str, Any] = field(default_factory=dict)  # fields of the configuration that it does not know -> their only value

    def map_name(self, key: str, net: Net) -> str:
        """Return llama.cpp's name of a tensor. Raise ValueError for one that it does not have."""
        from gguf import MODEL_ARCH, get_tensor_name_map

        for ours, theirs in BITNET_NAMES.items():
            key = key.replace(ours, theirs)
        names = get_tensor_name_map(MODEL_ARCH[self.name.upper()], net.get("num_hidden_layers", "n_layer"))
        if (name := names.get_name(key, try_suffixes=(".weight", ".bias"))) is None:
            raise ValueError(f"{key}: llama.cpp's {self.name} has no such tensor; {FIX}")
        return str(name)

    def adapt(self, key: str, tensor: Tensor, net: Net) -> Tensor:
        """Return a tensor as llama.cpp stores it; a Conv1D of transformers is [in, out] there."""
        if heads := self._count_heads(key, net):
            tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        if self.has_positions and tensor.ndim == 2 and ".h." in key and key.removesuffix(".weight") not in net.transposed:
            tensor = tensor.t()
        return tensor + self.norm_offset if self.norm_offset and key.endswith("norm.weight") else tensor

    def restore(self, key: str, tensor: Tensor, net: Net) -> Tensor:
        """Return the weight of a ternary layer in the order of transformers."""
        heads = self._count_heads(key, net)
        return tensor.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2) if heads else tensor

    def _count_heads(self, key: str, net: Net) -> int:
        """Return the number of heads whose rows change places; none of most tensors."""
        heads = net.get("num_attention_heads")
        numbers = {"q_proj": heads, "k_proj": net.get("num_key_value_heads", default=heads)}
        return int(numbers.get(key.split(".")[-2], 0)) if self.is_interleaved else 0


LLAMA = {"use_sliding_window": False, "sliding_window": None, "pretraining_tp": 1}
ARCHITECTURES = {  # by transformers' model_type
    "bitnet": Architecture("bitnet", "silu", has_scales=True, is_tied=True, fixed={"attention_bias": False}),
    "llama": Architecture("llama", "silu", has_scales=True, is_interleaved=True, fixed=LLAMA),
    "mistral": Architecture("llama", "silu", has_scales=True, is_interleaved=True, fixed=LLAMA),
    "qwen2": Architecture("qwen2", "silu", fixed=LLAMA),
    "qwen3": Architecture("qwen3", "silu", has_scales=True, fixed=LLAMA | {"attention_bias": False}),
    "gemma": Architecture("gemma", "gelu_pytorch_tanh", is_tied=True, norm_offset=1.0, fixed={"attention_bias": False}),
    "gpt2": Architecture(
        "gpt2",
        "gelu_new",
        has_positions=True,
        fixed={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    ),
}


def choose_architecture(source: Source, net: Net) -> Architecture:
    """Return the architecture. Raise ValueError for one that llama.cpp would load but compute differently, or does not know."""
    kind = net.config["model_type"]
    if not (known := ARCHITECTURES.get(kind)):
        raise ValueError(f"model_type {kind}: --format gguf holds {', '.join(ARCHITECTURES)}; {FIX}")
    own = not isinstance(source.model, Hub)
    fix = "use --format hf, or train with model=bitnet" if own else FIX
    activation = net.get("hidden_activation", "hidden_act", "activation_function")
    if activation != known.activation:
        setting = "model.activation" if own else "hidden_act"
        raise ValueError(
            f"{setting}={activation}: llama.cpp's {known.name} loads such a file but computes {known.activation}; {fix}"
        )
    if known.is_tied and not net.config.get("tie_word_embeddings"):
        setting = "model.tie_embeddings" if own else "tie_word_embeddings"
        raise ValueError(f"{setting}=false: llama.cpp's {known.name} always uses the embedding as the head; {fix}")
    for key, value in known.fixed.items():
        own_value = net.config.get(key, value)
        if own_value != value and not (key == "sliding_window" and (own_value or 0) >= source.max_seq_len):
            raise ValueError(f"{key}={own_value}: llama.cpp's {known.name} computes {value}; {FIX}")
    rope = net.get("rope_parameters", default={}).get("rope_type", "default")
    if rope != "default" and known.name != "llama":
        raise ValueError(f"rope_type={rope}: llama.cpp's {known.name} has no factors of rotations; {FIX}")
    return known


@contract
def compute_rope_factors(source: Source) -> Float[Tensor, "pairs"] | None:
    """Return by what each frequency of the rotation is divided, as Llama 3 does; None where no one is.

    Raise ValueError for a rotation that also scales attention, as YaRN.
    """
    if not isinstance(source.model, Hub):
        return None
    rotary = next((m for m in source.net.modules() if "inv_freq" in dict(m.named_buffers(recurse=False))), None)
    parameters = getattr(source.net.config, "rope_parameters", None) or {}
    if rotary is None or parameters.get("rope_type", "default") == "default":
        return None
    if rotary.attention_scaling != 1.0 or parameters["rope_type"] in ("dynamic", "longrope"):
        raise ValueError(f"rope_type={parameters['rope_type']}: this export does not write its scaling; {FIX}")
    pairs = len(rotary.inv_freq)
    base = parameters["rope_theta"] ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    factors: Tensor = (base / rotary.inv_freq.double()).float()
    return factors
