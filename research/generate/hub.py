"""Decode with a model of transformers, by its own cache of keys and values; one without such a cache reads all tokens again."""

import inspect

import torch
from jaxtyping import Float, Int
from torch import Tensor

from research.contracts import contract
from research.models.hub import Hub


@contract
class HubDecoder:
    """Computes the logits of the next token after all tokens that were fed, as nn.decode.Decoder does for our own models."""

    def __init__(self, model: Hub) -> None:
        self.model = model
        names = inspect.signature(model.net.forward).parameters
        # What the cache is called there: the second is of transformers before 5.24.
        self.cache_name = next((name for name in ("cache", "past_key_values") if name in names), "")
        # The logits of a whole prompt would take more memory than the model.
        self.options = {"use_cache": bool(self.cache_name)} | ({"logits_to_keep": 1} if "logits_to_keep" in names else {})
        self.reset()

    def reset(self) -> None:
        """Forget all tokens."""
        self.cache: object | None = None
        self.context = torch.empty(0, dtype=torch.int64)

    @torch.no_grad()
    def feed(self, tokens: Int[Tensor, "seq"]) -> Float[Tensor, "vocab"]:
        """Feed more tokens; return the logits of the next one, of the data's vocabulary alone."""
        self.context = torch.cat([self.context, tokens])
        unread = self.context if self.cache is None else tokens
        earlier = {self.cache_name: self.cache} if self.cache_name else {}
        outputs = self.model.net(input_ids=unread[None], **earlier, **self.options)
        self.cache = outputs.get(self.cache_name)
        logits: Tensor = outputs.logits[0, -1, : self.model.vocab_size]
        return logits.float()
