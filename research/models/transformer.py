"""A decoder-only transformer. Its linear layer is a parameter, so a ternary model and its twin differ in nothing else."""

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor, nn

from research import rules
from research.contracts import contract
from research.data.spec import Tokens
from research.nn.attention import Attention, Cache, Mask, mask_documents
from research.nn.bitlinear import Linear
from research.nn.feedforward import Activation, FeedForward
from research.nn.norm import RMSNorm
from research.nn.rope import RopeTable, build_rope_table
from research.ranges import Depth, Fraction, NonNegativeInt, PositiveFloat, PositiveInt, check_settings


class Block(nn.Module):
    """x + dropout(attention(norm(x))), then x + dropout(feedforward(norm(x)))."""

    @contract
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
        cos: RopeTable | None = None,
        sin: RopeTable | None = None,
        cache: Cache | None = None,
        mask: Mask | None = None,
    ) -> Float[Tensor, "batch seq dim"]:
        x = x + self.dropout(self.attention(self.input_norm(x), cos, sin, cache, mask))
        return x + self.dropout(self.feedforward(self.post_norm(x)))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Embedding, blocks, norm, head.

    The layout is that of BitNet in transformers and llama.cpp: no biases, head_dim = dim / heads, RMSNorm, rotary positions,
    optional norms before the two output projections. For data with classes the head has one output a class.

    With `document_mask` a token sees its own document only, and positions count from its first token: a row of several
    documents computes what each computes alone. A document ends with the token `end` of the data. Activations that share a
    scale over a row (activation_granularity=tensor) still see the whole row.

    Raise ValueError if `heads` or `kv_heads` does not divide, or the data have no token between documents to mask by.
    """

    def __init__(
        self,
        shape: Tokens,
        dim: PositiveInt,
        depth: Depth,
        heads: PositiveInt,
        linear: Linear,
        kv_heads: PositiveInt | None = None,  # None: one key and value head a query head
        ffn_dim: NonNegativeInt = 0,  # width of the feed-forward layer; 0: 8/3 of dim, up to a multiple of 64
        activation: Activation = "silu",
        sub_norm: bool = False,  # norms before the output projections; conf/model has true, as BitNet and its exports need them
        tie_embeddings: bool = True,  # the head is the embedding; never where it is of classes
        dropout: Fraction = 0.0,
        init_std: PositiveFloat = 0.02,
        document_mask: bool = False,  # tokens see their own document only
    ) -> None:
        check_settings("model", Transformer.__init__.__annotations__, locals())
        super().__init__()
        kv_heads = kv_heads or heads
        rules.enforce(rules.check_heads(dim, heads, rotary=True), rules.check_kv_heads(heads, kv_heads))
        rules.enforce(rules.check_document_mask(document_mask, shape.end))
        ffn_dim = ffn_dim or 64 * -(-8 * dim // (3 * 64))
        build_norm: Callable[[int], nn.Module] = RMSNorm if sub_norm else nn.Identity
        self.max_seq_len, self.kv_heads, self.head_dim = shape.seq_len, kv_heads, dim // heads
        self.num_classes, self.end = shape.num_classes, shape.end if document_mask else -1
        self.embed = nn.Embedding(shape.vocab_size, dim)
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            attention = Attention(dim, heads, kv_heads, linear, build_norm(dim))
            feedforward = FeedForward(dim, ffn_dim, activation, linear, build_norm(ffn_dim))
            self.blocks.append(Block(attention, feedforward, dim, dropout))
        self.norm = RMSNorm(dim)
        self.head = nn.Linear(dim, shape.num_classes or shape.vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if "norm" not in name:
                nn.init.normal_(parameter, std=init_std)
        if tie_embeddings and not shape.num_classes:
            self.head.weight = self.embed.weight
        cos, sin = build_rope_table(shape.seq_len, dim // heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens: Int[Tensor, "batch seq"], caches: list[Cache] | None = None) -> Float[Tensor, "batch seq vocab"]:
        """Return the logits of the next symbol at every position, or of the class, which the last position is judged by.

        With `caches` the tokens follow the cached ones, all in one document.
        Raise ValueError for more positions than the data has.
        """
        start = caches[0].seq_len if caches else 0
        end = start + tokens.shape[1]
        if end > self.max_seq_len:
            raise ValueError(f"a sequence of {end} tokens: this model was built for at most {self.max_seq_len}")
        x = self.embed(tokens)
        cos, sin = self.get_buffer("cos")[start:end], self.get_buffer("sin")[start:end]
        mask: Mask | None = None
        if self.end >= 0 and not caches:
            mask, positions = mask_documents(tokens, self.end)
            cos, sin = cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)
        for index, block in enumerate(self.blocks):
            x = block(x, cos, sin, caches[index] if caches else None, mask)
        return self.head(self.norm(x))  # type: ignore[no-any-return]

    @contract
    def allocate_caches(self, batch: int = 1, max_seq_len: int | None = None) -> list[Cache]:
        """Return an empty cache for each block, for at most `max_seq_len` positions (None: those of the data)."""
        like = self.norm.weight
        return [Cache(batch, self.kv_heads, max_seq_len or self.max_seq_len, self.head_dim, like) for _ in self.blocks]
