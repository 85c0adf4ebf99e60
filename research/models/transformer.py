"""One decoder-only transformer for all: its linear layer is a parameter, so the ternary twin differs in nothing else."""

from collections.abc import Callable, Sequence

from jaxtyping import Float, Int
from torch import Tensor, nn

from research.dataset import Tokens
from research.nn.attention import Attention, Cache
from research.nn.feedforward import Activation, FeedForward
from research.nn.norm import RMSNorm
from research.nn.rope import rope_table
from research.ranges import Count, Fraction, Natural, Positive


class Block(nn.Module):
    """x + attention(norm(x)), then x + feedforward(norm(x)); each half is dropped out as a whole vector."""

    def __init__(self, attention: Attention, feedforward: FeedForward, dim: int, dropout: float) -> None:
        super().__init__()
        self.input_norm = RMSNorm(dim)
        self.attention = attention
        self.post_norm = RMSNorm(dim)
        self.feedforward = feedforward
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch seq dim"],
        cos: Float[Tensor, "seq half"],
        sin: Float[Tensor, "seq half"],
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch seq dim"]:
        x = x + self.dropout(self.attention(self.input_norm(x), cos, sin, cache))
        return x + self.dropout(self.feedforward(self.post_norm(x)))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Embedding, blocks, norm, head. The layout is BitNet's in transformers and llama.cpp: no biases, head width
    dim / heads, RMSNorm, rotary positions, optional norms before the two output projections.

    Raises ValueError where the numbers do not divide.
    """

    def __init__(
        self,
        shape: Tokens,
        dim: Count,
        depth: Count,
        heads: Count,
        linear: Callable[..., nn.Module],
        kv_heads: Count | None = None,  # None: one key and value head a query head
        hidden: Natural = 0,  # width of the feed-forward layer; 0: 8/3 of dim, up to a multiple of 64
        act: Activation = "silu",
        sub_norm: bool = False,
        tied: bool = True,  # the head is the embedding
        dropout: Fraction = 0.0,
        init_std: Positive = 0.02,
    ) -> None:
        super().__init__()
        kv_heads = kv_heads or heads
        if dim % (2 * heads):
            raise ValueError(f"model.heads={heads} does not fit model.dim={dim}: rotary heads need dim / heads to be even")
        if heads % kv_heads:
            raise ValueError(f"model.kv_heads={kv_heads} does not divide model.heads={heads}")
        hidden = hidden or 64 * -(-8 * dim // (3 * 64))

        def norm(width: int) -> nn.Module:
            return RMSNorm(width) if sub_norm else nn.Identity()

        self.length, self.kv_heads, self.width = shape.length, kv_heads, dim // heads
        self.embed = nn.Embedding(shape.vocab, dim)
        self.blocks = nn.ModuleList(
            Block(
                Attention(dim, heads, kv_heads, linear, norm(dim)),
                FeedForward(dim, hidden, act, linear, norm(hidden)),
                dim,
                dropout,
            )
            for _ in range(depth)
        )
        self.norm = RMSNorm(dim)
        self.head = nn.Linear(dim, shape.vocab, bias=False)
        for name, parameter in self.named_parameters():
            if "norm" not in name:
                nn.init.normal_(parameter, std=init_std)
        if tied:
            self.head.weight = self.embed.weight
        cos, sin = rope_table(shape.length, dim // heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(
        self, tokens: Int[Tensor, "batch seq"], caches: Sequence[Cache] | None = None
    ) -> Float[Tensor, "batch seq vocab"]:
        """Logits of the next symbol at each position; at most as many positions as the data has.

        With `caches` the tokens follow those that are in them.
        """
        start = caches[0].filled if caches else 0
        end = start + tokens.shape[1]
        if end > self.length:
            raise ValueError(f"{end} tokens in a sequence; this model was built for at most {self.length}")
        x = self.embed(tokens)
        cos, sin = self.get_buffer("cos")[start:end], self.get_buffer("sin")[start:end]
        for place, block in enumerate(self.blocks):
            x = block(x, cos, sin, caches[place] if caches else None)
        return self.head(self.norm(x))  # type: ignore[no-any-return]

    def caches(self, batch: int = 1, length: int | None = None) -> list[Cache]:
        """An empty one a block, for at most `length` positions."""
        like = self.norm.weight
        return [Cache(batch, self.kv_heads, length or self.length, self.width, like) for _ in self.blocks]
