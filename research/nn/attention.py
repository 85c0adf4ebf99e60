"""Self-attention with grouped queries (Ainslie et al. 2023, arXiv 2305.13245), causal unless it says otherwise."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from research.contracts import contract
from research.nn.bitlinear import Linear, shared_input_linears
from research.nn.rope import Heads, RopeTable, rotate

CachedHeads = Float[Tensor, "batch heads all head_dim"]
Mask = Bool[Tensor, "batch 1 seq seq"]  # which positions (last axis) a position sees; each sees itself


def mask_documents(tokens: Int[Tensor, "batch seq"], end: int) -> tuple[Mask, Int[Tensor, "batch seq"]]:
    """Return what each token sees, itself and those before it in its document, and its position in that document.

    The token `end` is the last one of its document. So a document begins at position 0 with nothing before it, as a prompt
    does, and it computes the same behind any padding with `end`.
    """
    is_end = tokens == end
    document = is_end.cumsum(1) - is_end.long()
    mask = (document.unsqueeze(2) == document.unsqueeze(1)).tril()
    return mask.unsqueeze(1), mask.sum(-1) - 1


class Cache:
    """The keys and values of one block for earlier positions, so that they are computed once."""

    @contract
    def __init__(self, batch: int, kv_heads: int, max_seq_len: int, head_dim: int, like: Tensor) -> None:
        # Uninitialised: never read before it is written, and no memory until then.
        self.k = like.new_empty(batch, kv_heads, max_seq_len, head_dim)
        self.v = torch.empty_like(self.k)
        self.seq_len = 0  # positions that are filled

    def extend(self, k: Heads, v: Heads) -> tuple[CachedHeads, CachedHeads]:
        """Store keys and values of the next positions; return those of all positions so far."""
        start, self.seq_len = self.seq_len, self.seq_len + k.shape[2]
        self.k[:, :, start : self.seq_len], self.v[:, :, start : self.seq_len] = k, v
        return self.k[:, :, : self.seq_len], self.v[:, :, : self.seq_len]


class Attention(nn.Module):
    """softmax(q k^T / sqrt(head_dim)) v (1706.03762, eq. 1); each group of query heads shares one key and value head."""

    @contract
    def __init__(self, dim: int, heads: int, kv_heads: int, linear: Linear, sub_norm: nn.Module, causal: bool = True) -> None:
        super().__init__()
        self.head_dim, self.causal = dim // heads, causal
        self.q_proj = linear(dim, heads * self.head_dim, bias=False)
        self.k_proj = linear(dim, kv_heads * self.head_dim, bias=False)
        self.v_proj = linear(dim, kv_heads * self.head_dim, bias=False)
        self.attn_sub_norm = sub_norm  # BitNet normalises again before a quantized output projection
        self.o_proj = linear(heads * self.head_dim, dim, bias=False)
        self.grouped = kv_heads != heads

    def forward(
        self,
        x: Float[Tensor, "batch seq dim"],
        cos: RopeTable | None = None,  # None: no rotary positions
        sin: RopeTable | None = None,
        cache: Cache | None = None,
        mask: Mask | None = None,  # None: causal, or all
    ) -> Float[Tensor, "batch seq dim"]:
        projected = shared_input_linears(x, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for y in projected)
        if cos is not None and sin is not None:
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache:
            k, v = cache.extend(k, v)
            if 1 < q.shape[2] < k.shape[2]:  # several positions after cached ones
                mask = q.new_ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
        # Each sees itself and those before it. Without a cache no lengths are compared: torch.export would make that a symbol.
        causal = self.causal and mask is None and (cache is None or q.shape[2] == k.shape[2])
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=self.grouped)
        return self.o_proj(self.attn_sub_norm(y.transpose(1, 2).flatten(2)))  # type: ignore[no-any-return]
