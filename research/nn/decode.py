"""Decode text token by token: a transformer with a cache of the keys and values of earlier tokens.

A packed transformer computes a single token in one call of decode.c. Each operator has a few microseconds of work, so calling
them from Python would take longer than reading all weights from memory. Everything else goes through the model's own layers:
a prompt, a model that is not packed, a machine without a compiler.
"""

import ctypes
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from research.kernels import ternary
from research.nn.attention import Cache
from research.nn.feedforward import relu2
from research.nn.norm import RMSNorm
from research.nn.packed import Int8Embedding, Int8Linear, Int8Table, PackedLinear

EPS = 1e-5  # of the norms in common.h
PROMPT_CHUNK = 512  # tokens of a prompt at a time, which bounds the memory of activations


class TransformerLike(Protocol):
    """The attributes of research.models.transformer.Transformer that a decoder uses."""

    max_seq_len: int
    kv_heads: int
    head_dim: int
    embed: nn.Module
    blocks: nn.ModuleList
    norm: nn.Module
    head: nn.Module

    def allocate_caches(self, batch: int, max_seq_len: int | None) -> list[Cache]: ...

    def get_buffer(self, name: str) -> Tensor: ...


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


class _TensorAddresses:
    """The tensors whose addresses C holds. It keeps their memory alive, and notices if the model replaces one."""

    def __init__(self) -> None:
        self.memory: list[Tensor] = []
        self.addresses: list[int] = []
        self.owners: list[tuple[dict[str, Any], str]] = []

    def register(self, tensors: dict[str, Any], *names: str) -> list[int]:
        """Hold these tensors from now on; return their addresses."""
        self.memory += (tensors[name].detach() for name in names)
        self.owners += ((tensors, name) for name in names)
        self.addresses += (tensors[name].data_ptr() for name in names)
        return self.addresses[-len(names) :]

    def has_moved(self) -> bool:
        """Return whether the model has replaced a tensor. It takes 0.1 us a tensor, at each token."""
        return [tensors[name].data_ptr() for tensors, name in self.owners] != self.addresses


class Decoder:
    """Computes the logits of the next token after all tokens that were fed, for a transformer in evaluation mode.

    A copy has its own keys and values. Weights may be loaded in place, but not moved or replaced: then `feed` raises.
    `max_seq_len` is the number of tokens to remember; None: as many as the model was built for. Raise ValueError for more.
    """

    def __init__(self, model: nn.Module, max_seq_len: int | None = None) -> None:
        self.model: TransformerLike = cast(TransformerLike, model)
        if max_seq_len is not None and not 0 < max_seq_len <= self.model.max_seq_len:
            raise ValueError(
                f"max_seq_len={max_seq_len}: give 1 to {self.model.max_seq_len}, the tokens that this model was built for"
            )
        self.max_seq_len = max_seq_len or self.model.max_seq_len
        self.caches = self.model.allocate_caches(1, self.max_seq_len)
        self.native = build_native_decode(model, self.caches)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"native": None}  # it holds the addresses of this decoder's tensors

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.native = build_native_decode(cast(nn.Module, self.model), self.caches)

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
        end = start  # an error or an interrupt leaves the decoder as it was
        try:
            logits = self._forward(tokens) if tokens.shape[0] > 1 or self.native is None else self.native(int(tokens), start)
            end += tokens.shape[0]
        finally:
            for cache in self.caches:
                cache.seq_len = end
        return logits

    def _forward(self, tokens: Int[Tensor, "seq"]) -> Float[Tensor, "vocab"]:
        """Return the logits by the model's own layers, with the head on the last position only."""
        model = self.model
        low, high, vocab = int(tokens.min()), int(tokens.max()), cast(nn.Embedding, model.embed).num_embeddings
        if low < 0 or high >= vocab:
            raise ValueError(f"tokens from {low} to {high}: the vocabulary is 0 to {vocab - 1}")
        for part in tokens.split(PROMPT_CHUNK):
            start = self.caches[0].seq_len
            cos, sin = (model.get_buffer(name)[start : start + part.shape[0]] for name in ("cos", "sin"))
            x = model.embed(part.unsqueeze(0))
            for block, cache in zip(model.blocks, self.caches, strict=True):
                x = block(x, cos, sin, cache)
        y: Tensor = model.head(model.norm(x[:, -1:]))
        return y[0, 0]


def build_native_decode(net: nn.Module, caches: list[Cache]) -> Callable[[int, int], Tensor] | None:
    """Return a function of (token, position) that computes logits in one call of C; None if C does not support the model."""
    model = cast(TransformerLike, net)
    library = ternary.get_library() if is_supported(net) else None
    if library is None:
        return None
    addresses = _TensorAddresses()

    def add_norm(module: nn.Module) -> int | None:
        return addresses.register(module._parameters, "weight")[0] if isinstance(module, RMSNorm) else None

    def add_ternary(layer: PackedLinear) -> ternary.Matrix:
        return ternary.Matrix(*addresses.register(layer._buffers, "codes", "scale"), layer.out_features, layer.in_features, 2)

    def add_table(layer: Int8Embedding | Int8Linear) -> ternary.Matrix:
        rows: Int8Table = layer.table
        return ternary.Matrix(*addresses.register(rows._buffers, "codes", "scale"), rows.scale.shape[0], rows.dim, 8)

    def add_block(module: Any, cache: Cache) -> _Block:
        a, f = module.attention, module.feedforward
        norms = (add_norm(m) for m in (module.input_norm, a.attn_sub_norm, module.post_norm, f.ffn_sub_norm))
        products = (a.q_proj, a.k_proj, a.v_proj, a.o_proj, f.gate_proj, f.up_proj, f.down_proj)
        return _Block(*norms, *map(add_ternary, products), *addresses.register(vars(cache), "k", "v"))

    first: Any = model.blocks[0]
    embed, head = cast(Int8Embedding, model.embed), cast(Int8Linear, model.head)
    blocks = (_Block * len(model.blocks))(*map(add_block, model.blocks, caches))
    heads, ffn_dim = first.attention.q_proj.out_features // model.head_dim, first.feedforward.gate_proj.out_features
    sizes = len(blocks), embed.table.dim, heads, model.kv_heads, model.head_dim, ffn_dim, caches[0].k.shape[2]
    tables = addresses.register(net._buffers, "cos", "sin")
    squared = int(first.feedforward.activation is relu2)
    c_model = _Model(blocks, add_norm(model.norm), *tables, add_table(embed), add_table(head), *sizes, squared)
    vocab, num_logits = embed.table.scale.shape[0], head.table.scale.shape[0]

    def decode(token: int, position: int) -> Tensor:
        if not 0 <= token < vocab:
            raise ValueError(f"tokens from {token} to {token}: the vocabulary is 0 to {vocab - 1}")
        if addresses.has_moved():
            raise ValueError("the model's weights were moved or replaced after this decoder was built: build a new Decoder")
        logits = torch.empty(num_logits)
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
    return is_supported_norm(model.get_submodule("norm")) and all(
        map(is_supported_block, model.get_submodule("blocks").children())
    )


def is_supported_block(block: Any) -> bool:
    """Return whether decode.c computes this block."""
    a, f = block.attention, block.feedforward
    products = (a.q_proj, a.k_proj, a.v_proj, a.o_proj, f.gate_proj, f.up_proj, f.down_proj)
    is_packed = all(
        isinstance(p, PackedLinear) and p.native and p.bias is None and p.in_features <= ternary.MAX_IN_FEATURES
        for p in products
    )
    norms = is_supported_norm(block.input_norm) and is_supported_norm(block.post_norm)
    sub_norms = all(is_supported_norm(m) or isinstance(m, nn.Identity) for m in (a.attn_sub_norm, f.ffn_sub_norm))
    return is_packed and norms and sub_norms and f.activation in (F.silu, relu2)


def is_supported_norm(norm: nn.Module) -> bool:
    """Return whether decode.c computes this norm."""
    return isinstance(norm, RMSNorm) and norm.eps == EPS
