"""Text, one token after the other: a transformer and the keys and values of what it has read.

A packed transformer computes a single token in one call of ternary.c: with a few microseconds of work in each operator,
calling them from Python would take longer than reading all weights from memory. Everything else (a prompt, a model that is
not packed, a machine without a compiler) goes through the model's own layers.
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

EPS = 1e-5  # of the norms in ternary.c
PROMPT_CHUNK = 512  # tokens of a prompt at a time: bounds the memory of what lies between the layers


class TransformerLike(Protocol):
    """What a decoder needs of research.models.transformer.Transformer."""

    max_seq_len: int  # positions
    kv_heads: int
    head_dim: int  # of a head
    embed: nn.Module
    blocks: nn.ModuleList
    norm: nn.Module
    head: nn.Module

    def allocate_caches(self, batch: int, max_seq_len: int | None) -> list[Cache]: ...

    def get_buffer(self, name: str) -> Tensor: ...


class _Block(ctypes.Structure):
    """As in ternary.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("input_norm", "attention_norm", "post_norm", "feedforward_norm")),
        *((name, ternary.Matrix) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
    )


class _Model(ctypes.Structure):
    """As in ternary.c."""

    _fields_ = (
        ("blocks", ctypes.POINTER(_Block)),
        *((name, ctypes.c_void_p) for name in ("norm", "cos", "sin")),
        *((name, ternary.Matrix) for name in ("embed", "head")),
        *((name, ctypes.c_int32) for name in ("depth", "dim", "heads", "kv_heads", "width", "hidden", "length", "squared")),
    )


class _TensorAddresses:
    """The tensors whose addresses C holds: their memory, which is given to no other meanwhile, and where the model has them."""

    def __init__(self) -> None:
        self.memory: list[Tensor] = []
        self.addresses: list[int] = []
        self.owners: list[tuple[dict[str, Any], str]] = []

    def register(self, tensors: dict[str, Any], *names: str) -> list[int]:
        """The addresses of these from now on."""
        self.memory += (tensors[name].detach() for name in names)
        self.owners += ((tensors, name) for name in names)
        self.addresses += (tensors[name].data_ptr() for name in names)
        return self.addresses[-len(names) :]

    def has_moved(self) -> bool:
        """Whether the model has others by now: a token waits 0.1 us a tensor for this."""
        return [tensors[name].data_ptr() for tensors, name in self.owners] != self.addresses


class Decoder:
    """The next token's logits after all tokens that were fed, of a transformer in evaluation mode.

    A copy has keys and values of its own. Weights may be loaded in place, but not moved or replaced: `feed` refuses then.
    Raises ValueError for a `length` (tokens to remember; None: all that the model was built for) that the model has not.
    """

    def __init__(self, model: nn.Module, max_seq_len: int | None = None) -> None:
        self.model: TransformerLike = cast(TransformerLike, model)
        if max_seq_len is not None and not 0 < max_seq_len <= self.model.max_seq_len:
            raise ValueError(f"length={max_seq_len}: this model was built for at most {self.model.max_seq_len} tokens")
        self.max_seq_len = max_seq_len or self.model.max_seq_len
        self.caches = self.model.allocate_caches(1, self.max_seq_len)
        self.native = build_native_decode(model, self.caches)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"native": None}  # it holds addresses of these very tensors

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.native = build_native_decode(cast(nn.Module, self.model), self.caches)

    def reset(self) -> None:
        """Forget all tokens."""
        for cache in self.caches:
            cache.seq_len = 0

    @torch.no_grad()
    def feed(self, tokens: Int[Tensor, "seq"]) -> Float[Tensor, "vocab"]:
        """Read these tokens too. Raises ValueError where there are none, more than the decoder remembers, or some that the
        model does not know, or where weights are no longer those that it was built for.
        """
        place = self.caches[0].seq_len
        if tokens.ndim != 1 or tokens.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"tokens of {tokens.dtype} {list(tokens.shape)}: give a list of whole numbers, int64 or int32")
        if not 0 < tokens.shape[0] <= self.max_seq_len - place:
            raise ValueError(f"{tokens.shape[0]} tokens after {place}: this decoder remembers at most {self.max_seq_len}")
        after = place  # if this fails, or is interrupted, nothing was read
        try:
            logits = self._forward(tokens) if tokens.shape[0] > 1 or self.native is None else self.native(int(tokens), place)
            after += tokens.shape[0]
        finally:
            for cache in self.caches:
                cache.seq_len = after
        return logits

    def _forward(self, tokens: Int[Tensor, "seq"]) -> Float[Tensor, "vocab"]:
        """The model's forward, but for the head, which sees the last position only."""
        model = self.model
        low, high, vocab = int(tokens.min()), int(tokens.max()), cast(nn.Embedding, model.embed).num_embeddings
        if low < 0 or high >= vocab:
            raise ValueError(f"tokens from {low} to {high}: this model knows 0 to {vocab - 1}")
        for part in tokens.split(PROMPT_CHUNK):
            start = self.caches[0].seq_len
            cos, sin = (model.get_buffer(name)[start : start + part.shape[0]] for name in ("cos", "sin"))
            x = model.embed(part.unsqueeze(0))
            for block, cache in zip(model.blocks, self.caches, strict=True):
                x = block(x, cos, sin, cache)
        y: Tensor = model.head(model.norm(x[:, -1:]))
        return y[0, 0]


def build_native_decode(net: nn.Module, caches: list[Cache]) -> Callable[[int, int], Tensor] | None:
    """Token and its position -> logits in one call of C; None where the model or the machine does not allow it."""
    model = cast(TransformerLike, net)
    library = ternary.get_library() if is_supported(net) else None
    if library is None:
        return None
    held = _TensorAddresses()

    def add_norm(module: nn.Module) -> int | None:
        return held.register(module._parameters, "weight")[0] if isinstance(module, RMSNorm) else None

    def add_ternary(layer: PackedLinear) -> ternary.Matrix:
        return ternary.Matrix(*held.register(layer._buffers, "codes", "step"), layer.out_features, layer.in_features, 2)

    def add_table(layer: Int8Embedding | Int8Linear) -> ternary.Matrix:
        rows: Int8Table = layer.table
        return ternary.Matrix(*held.register(rows._buffers, "codes", "step"), rows.step.shape[0], rows.dim, 8)

    def add_block(module: Any, cache: Cache) -> _Block:
        a, f = module.attention, module.feedforward
        norms = (add_norm(m) for m in (module.input_norm, a.attn_sub_norm, module.post_norm, f.ffn_sub_norm))
        products = (a.q_proj, a.k_proj, a.v_proj, a.o_proj, f.gate_proj, f.up_proj, f.down_proj)
        return _Block(*norms, *map(add_ternary, products), *held.register(vars(cache), "k", "v"))

    first: Any = model.blocks[0]
    embed, head = cast(Int8Embedding, model.embed), cast(Int8Linear, model.head)
    blocks = (_Block * len(model.blocks))(*map(add_block, model.blocks, caches))
    heads, hidden = first.attention.q_proj.out_features // model.head_dim, first.feedforward.gate_proj.out_features
    sizes = len(blocks), embed.table.dim, heads, model.kv_heads, model.head_dim, hidden, caches[0].k.shape[2]
    tables = held.register(net._buffers, "cos", "sin")
    squared = int(first.feedforward.activation is relu2)
    whole = _Model(blocks, add_norm(model.norm), *tables, add_table(embed), add_table(head), *sizes, squared)
    vocab, symbols = embed.table.step.shape[0], head.table.step.shape[0]

    def decode(token: int, position: int) -> Tensor:
        if not 0 <= token < vocab:
            raise ValueError(f"tokens from {token} to {token}: this model knows 0 to {vocab - 1}")
        if held.has_moved():
            raise ValueError("the model's weights were moved or replaced after this decoder was built: build another Decoder")
        logits = torch.empty(symbols)
        if library.c.grokbit_decode(ctypes.byref(whole), token, position, logits.data_ptr(), torch.get_num_threads()):
            raise MemoryError("ternary.c: no memory for a token")
        return logits

    return decode


def is_supported(model: nn.Module) -> bool:
    """Whether ternary.c computes this model: packed without biases, int8 embedding and head, float32 norms, on a CPU."""
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
    """Whether a block is made of what ternary.c knows."""
    a, f = block.attention, block.feedforward
    products = (a.q_proj, a.k_proj, a.v_proj, a.o_proj, f.gate_proj, f.up_proj, f.down_proj)
    plain = all(
        isinstance(p, PackedLinear) and p.native and p.bias is None and p.in_features <= ternary.MAX_IN_FEATURES
        for p in products
    )
    norms = is_supported_norm(block.input_norm) and is_supported_norm(block.post_norm)
    sub_norms = all(is_supported_norm(m) or isinstance(m, nn.Identity) for m in (a.attn_sub_norm, f.ffn_sub_norm))
    return plain and norms and sub_norms and f.activation in (F.silu, relu2)


def is_supported_norm(norm: nn.Module) -> bool:
    """Whether ternary.c computes this norm."""
    return isinstance(norm, RMSNorm) and norm.eps == EPS
