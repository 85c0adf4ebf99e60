"""The small transformer of the grokking papers (Power et al. 2022, arXiv 2201.02177; Lee et al. 2024, 2405.20233).

As in the code of Lee et al., a block adds its attention to the normalised input. The linear layer is a parameter.
"""

import math

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from research import rules
from research.contracts import contract
from research.data.spec import Tokens
from research.nn.bitlinear import Linear, shared_input_linears
from research.ranges import Depth, NonNegativeInt, PositiveInt, check_settings


class Block(nn.Module):
    """h = norm(x), h <- h + attention(h), then h + feedforward(norm(h)): causal, all layers with biases."""

    @contract
    def __init__(self, dim: int, heads: int, ffn_dim: int, linear: Linear) -> None:
        super().__init__()
        self.head_dim = dim // heads
        self.input_norm, self.post_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (linear(dim, dim) for _ in range(4))
        self.up_proj, self.down_proj = linear(dim, ffn_dim), linear(ffn_dim, dim)
        for layer in (self.q_proj, self.k_proj, self.v_proj):  # as nn.MultiheadAttention, where one matrix holds all three
            nn.init.uniform_(layer.get_parameter("weight"), -(bound := math.sqrt(6 / (4 * dim))), bound)
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, x: Float[Tensor, "batch seq dim"], last: bool) -> Float[Tensor, "batch out dim"]:
        """Return the block's output at every position, or at the last one only."""
        h = self.input_norm(x)
        query_input = h[:, -1:] if last else h
        k, v = shared_input_linears(h, self.k_proj, self.v_proj)
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for y in (self.q_proj(query_input), k, v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=not last)
        h = query_input + self.o_proj(attended.transpose(1, 2).flatten(2))
        return h + self.down_proj(F.gelu(self.up_proj(self.post_norm(h))))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Embeddings of symbol and position, blocks, norm, head.

    It computes the logits after the last position only, in half the time, for data whose answer stands there. Raise
    ValueError if `heads` does not divide `dim`.
    """

    def __init__(
        self,
        shape: Tokens,
        dim: PositiveInt,
        depth: Depth,
        heads: PositiveInt,
        linear: Linear,
        ffn_dim: NonNegativeInt = 0,  # width of the feed-forward layer; 0: 4 times dim
    ) -> None:
        check_settings("model", Decoder.__init__.__annotations__, locals())
        super().__init__()
        rules.enforce(rules.check_heads(dim, heads, rotary=False))
        self.embed, self.position = nn.Embedding(shape.vocab_size, dim), nn.Embedding(shape.seq_len, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, ffn_dim or 4 * dim, linear) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, shape.num_classes or shape.vocab_size, bias=False)

    def forward(self, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch 1 vocab"]:
        """Return the logits of the symbol after the last position, or of the class."""
        x = self.embed(tokens) + self.position.weight[: tokens.shape[1]]
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, last=number == len(self.blocks))
        return self.head(self.norm(x))  # type: ignore[no-any-return]
