"""Decode text token by token: a transformer with a cache of the keys and values of earlier tokens.

A packed transformer computes a single token in one call of decode.c. Each operator has a few microseconds of work, so calling
them from Python would take longer than reading all weights from memory. Everything else goes through the model's own layers:
a prompt, a model that is not packed, a machine without a compiler.
"""

import ctypes
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from research.contracts import contract
from research.kernels import ternary
from research.nn.attention import Cache
from research.nn.feedforward import relu2
from research.nn.norm import RMSNorm
from research.nn.packed import Int8Embedding, Int8Linear, Int8Table, PackedLinear

EPS = 1e-5  # of the norms in common.h
PROMPT_CHUNK = 512  # tokens of a prompt at a time, which bounds the memory of activations


class _Block(ctypes.Structure):
    """Block of decode.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("input_norm", "attention_norm", "post_norm", "feedforward_norm")),
        *((name, ternary.Matrix) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
    )


class _Model(ctypes.Structure):
    """Model of decode.c."""

    _fields_ = (
        ("blocks", ctypes.POINTER(_Block)),
        *((name, ctypes.c_void_p) for name in ("norm", "cos", "sin")),
        *((name, ternary.Matrix) for name in ("embed", "head")),
        *((name, ctypes.c_int32) for name in ("depth", "dim", "heads", "kv_heads", "width", "hidden", "length", "squared")),
    )


class Decoder:
    """Computes the logits of the next token after all tokens that were fed, for a models.transformer in evaluation mode.

    A copy has its own keys and values. Weights may be loaded in place, but not moved or replaced: then `feed` raises.
    `max_seq_len` is the number of tokens to remember; None: as many as the model was built for. Raise ValueError for more.
    """

    @contract
    def __init__(self, model: nn.Module, max_seq_len: int | None = None) -> None:
        self.model = cast(Any, model)
        most = self.model.max_seq_len
        if max_seq_len is not None and not 0 < max_seq_len <= most:
            raise ValueError(f"max_seq_len={max_seq_len}: give 1 to {most}, the tokens that this model was built for")
        self.max_seq_len = max_seq_len or most
        self.caches = self.model.allocate_caches(1, self.max_seq_len)
        self.native = build_native_decode(model, self.caches)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"native": None}  # it holds the addresses of this decoder's tensors

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.native = build_native_decode(self.model, self.caches)

    def reset(self) -> None:
        """Forget all tokens."""
        for cache in self.caches:
            cache.seq_len = 0

    @torch.no_grad()
    def feed(self, tokens: Int[Tensor, "seq"]) -> Float[Tensor, "vocab"]:
        """Feed more tokens; return the logits of the next one, [vocab_size].

        Raise ValueError if there is no token, there are more than the decoder remembers, one is not in the vocabulary, or
        the model's weights were moved or replaced. Then the decoder is as before.
        """
        start = self.caches[0].seq_len
        if tokens.ndim != 1 or tokens.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"tokens are {tokens.dtype} {list(tokens.shape)}: give a 1-D tensor of int64 or int32")
        if not 0 < tokens.shape[0] <= self.max_seq_len - start:
            raise ValueError(f"{tokens.shape[0]} tokens after {start}: this decoder remembers at most {self.max_seq_len}")
        ids, vocab = tokens.tolist(), self.model.embed.num_embeddings
        if min(ids) < 0 or max(ids) >= vocab:
            raise ValueError(f"tokens from {min(ids)} to {max(ids)}: the vocabulary is 0 to {vocab - 1}")
        end = start  # an error or an interrupt leaves the decoder as it was
        try:
            logits = self._forward(tokens) if len(ids) > 1 or self.native is None else self.native(ids[0], start)
            end += tokens.shape[0]
        finally:
            for cache in self.caches:
                cache.seq_len = end
        return logits

    def _forward(self, tokens: Int[Tensor, "seq"]) -> Float[Tensor, "vocab"]:
        """Return the logits by the model's own layers, with the head on the last position only."""
        model = self.model
        for part in tokens.split(PROMPT_CHUNK):
            start = self.caches[0].seq_len
            cos, sin = (model.get_buffer(name)[start : start + part.shape[0]] for name in ("cos", "sin"))
            x = model.embed(part.unsqueeze(0))
            for block, cache in zip(model.blocks, self.caches, strict=True):
                x = block(x, cos, sin, cache)
        y: Tensor = model.head(model.norm(x[:, -1:]))
        return y[0, 0]


def build_native_decode(model: Any, caches: list[Cache]) -> Callable[[int, int], Tensor] | None:
    """Return a function of (token, position) that computes logits in one call of C; None if C does not support the model."""
    library = ternary.get_library() if is_supported(model) else None
    if library is None:
        return None
    # What C reads: the tensor's owner, its name there, its address, and the tensor, whose memory must stay.
    tensors: list[tuple[dict[str, Any], str, int, Tensor]] = []

    def register(owner: dict[str, Any], *names: str) -> list[int]:
        """Keep these tensors' memory from now on; return their addresses."""
        tensors.extend((owner, name, owner[name].data_ptr(), owner[name].detach()) for name in names)
        return [owner[name].data_ptr() for name in names]

    def add_norm(module: nn.Module) -> int | None:
        return register(module._parameters, "weight")[0] if isinstance(module, RMSNorm) else None

    def add_matrix(weights: PackedLinear | Int8Table) -> ternary.Matrix:
        width, bits = (weights.in_features, 2) if isinstance(weights, PackedLinear) else (weights.dim, 8)
        return ternary.Matrix(*register(weights._buffers, "codes", "scale"), len(weights.scale), width, bits)

    def add_block(block: nn.Module, cache: Cache) -> _Block:
        norms, linears = list_layers(block)
        return _Block(*map(add_norm, norms), *map(add_matrix, linears), *register(vars(cache), "k", "v"))

    first, embed, head = model.blocks[0], model.embed.table, model.head.table
    blocks = (_Block * len(model.blocks))(*map(add_block, model.blocks, caches))
    heads, ffn_dim = first.attention.q_proj.out_features // model.head_dim, first.feedforward.gate_proj.out_features
    sizes = len(blocks), embed.dim, heads, model.kv_heads, model.head_dim, ffn_dim, caches[0].k.shape[2]
    squared, norm = int(first.feedforward.activation is relu2), add_norm(model.norm)
    tables = register(model._buffers, "cos", "sin")
    c_model = _Model(blocks, norm, *tables, add_matrix(embed), add_matrix(head), *sizes, squared)

    def decode(token: int, position: int) -> Tensor:
        if any(owner[name].data_ptr() != address for owner, name, address, _ in tensors):  # 0.1 us a tensor
            raise ValueError("the model's weights were moved or replaced after this decoder was built: build a new Decoder")
        logits = torch.empty(len(head.scale))
        if library.c.grokbit_decode(ctypes.byref(c_model), token, position, logits.data_ptr(), torch.get_num_threads()):
            raise MemoryError("decode.c: no memory for a token")
        return logits

    return decode


def is_supported(model: nn.Module) -> bool:
    """Return whether decode.c computes this model: packed, no biases, int8 embedding and head, float32 norms, on a CPU."""
    embed, head = model.get_submodule("embed"), model.get_submodule("head")
    if not (isinstance(embed, Int8Embedding) and isinstance(head, Int8Linear) and head.native and head.bias is None):
        return False
    tensors = [*model.parameters(), *model.buffers()]
    floats = {t.dtype for t in tensors if t.is_floating_point()}
    if floats != {torch.float32} or not all(t.device.type == "cpu" and t.is_contiguous() for t in tensors):
        return False
    blocks = model.get_submodule("blocks").children()
    return is_supported_norm(model.get_submodule("norm")) and all(map(is_supported_block, blocks))


def list_layers(block: Any) -> tuple[list[nn.Module], list[Any]]:
    """Return the norms and the linear layers of a block, in the order of decode.c's Block."""
    a, f = block.attention, block.feedforward
    norms = [block.input_norm, a.attn_sub_norm, block.post_norm, f.ffn_sub_norm]
    return norms, [a.q_proj, a.k_proj, a.v_proj, a.o_proj, f.gate_proj, f.up_proj, f.down_proj]


def is_supported_block(block: Any) -> bool:
    """Return whether decode.c computes this block."""
    norms, linears = list_layers(block)
    plain = all(isinstance(layer, PackedLinear) and layer.native and layer.bias is None for layer in linears)
    fits = plain and all(layer.in_features <= ternary.MAX_IN_FEATURES for layer in linears)
    return fits and all(map(is_supported_norm, norms)) and block.feedforward.activation in (F.silu, relu2)


def is_supported_norm(norm: nn.Module) -> bool:
    """Return whether decode.c computes this norm, or there is none."""
    return isinstance(norm, nn.Identity) or (isinstance(norm, RMSNorm) and norm.eps == EPS)
