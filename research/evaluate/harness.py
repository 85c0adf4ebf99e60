"""A trained run as a model of lm-eval, by the three methods that its tasks call.

    from lm_eval import simple_evaluate
    from research.evaluate.harness import TrainedLM

    simple_evaluate(model=TrainedLM("outputs/text/RUN"), tasks=["mine.yaml"])

Requests of one length make a batch: nothing is padded, so no result depends on its neighbours.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor, nn

from research.contracts import contract
from research.data.tokenizers import Tokenizer
from research.generate.sampling import MIN_TEMPERATURE, Sampler, cut_at_stop
from research.load import TrainedRun, load_run
from research.models.hub import Hub
from research.models.transformer import Transformer
from research.nn.packed import pack_model

MAX_NEW_TOKENS = 256  # of a task that names no number
Request = tuple[Any, list[int], list[int]]  # its texts, the context's tokens, and those that are judged


@contract
class TrainedLM(TemplateLM):
    """A run folder, a checkpoint or an MLflow run id. Raise ValueError for a run that predicts no text."""

    def __init__(self, run: str | Path, packed: bool = False, batch_size: int = 16) -> None:
        super().__init__()
        trained = load_run(run)
        self.text_tokenizer, self.max_length = check_text(str(run), trained)
        self.model: nn.Module = pack_model(trained.model) if packed else trained.model
        self.batch_size = batch_size

    @property
    def eot_token_id(self) -> int:
        """Return the token between two documents, which stands before a text without a context."""
        return self.text_tokenizer.end

    @property
    def max_gen_toks(self) -> int:
        """Return how many tokens are generated where a task names no number: they leave room for a context."""
        return min(MAX_NEW_TOKENS, max(1, self.max_length // 2))

    @property
    def tokenizer_name(self) -> str:
        """Return the name by which lm-eval keeps requests in its cache."""
        return self.text_tokenizer.describe().replace("/", "_")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the tokens of a text; none is added. Half of a character, which JSON may hold, becomes a question mark."""
        return [int(token) for token in self.text_tokenizer.encode([string.encode(errors="replace")])[0]]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the tokens of a context and of its continuation, which are cut into tokens together.

        As in lm-eval spaces that end a context are the continuation's, and the end of a document stands for no context.
        Where the last token of the context would take in the whole continuation, that has tokens of its own.
        """
        before = context.rstrip()
        after = context[len(before) :] + continuation
        tokens = self.tok_encode(before)
        return tokens or [self.prefix_token_id], self.tok_encode(before + after)[len(tokens) :] or self.tok_encode(after)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the sum of log-probabilities (nats) of each continuation, and whether each token of it is the likeliest."""
        return self._loglikelihood_tokens([(request.args, *self._encode_pair(*request.args)) for request in requests])

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Return the same of tokens. An empty continuation is certain: 0 nats.

        Of a context that is too long the start is cut off. Raise ValueError for a continuation that is too long itself.
        """
        results = {number: (0.0, True) for number in range(len(requests))}
        by_length = defaultdict[int, list[tuple[int, list[int], list[int]]]](list)
        for number, (_, context, continuation) in enumerate(requests):
            if len(continuation) > self.max_length:
                message = f"a continuation has {len(continuation):,} tokens, the model was trained on {self.max_length:,}"
                raise ValueError(f"{message}; give a task with shorter ones, or a run with a longer data.seq_len")
            tokens = (context + continuation)[-(self.max_length + 1) :]
            if continuation:
                by_length[len(tokens)].append((number, tokens, continuation))
        for length in sorted(by_length, reverse=True):
            items = iter(by_length[length])
            while batch := list(islice(items, self.batch_size)):
                logits = self.compute_logits(torch.tensor([tokens[:-1] for _, tokens, _ in batch])).log_softmax(-1)
                for row, (number, _, continuation) in zip(logits, batch, strict=True):
                    results[number] = judge_continuation(row[len(row) - len(continuation) :], continuation)
        answers = [results[number] for number in range(len(requests))]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the sum of log-probabilities (nats) of each text, in windows of the model's length; each token counts once."""
        windows, counts = list[Request](), list[int]()
        for request in requests:
            (text,) = request.args
            pairs = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1)
            own = [(None, *make_disjoint_window(pair)) for pair in pairs]
            windows += own
            counts.append(len(own))
        answers = iter(self._loglikelihood_tokens(windows))
        return [sum(value for value, _ in islice(answers, count)) for count in counts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the text that follows each context: the likeliest, or drawn where a task says so, up to its stops."""
        texts = []
        for number, request in enumerate(requests):
            context = request.args[0]
            settings = normalize_gen_kwargs(request.args[1], self.max_gen_toks)
            stops = [stop.encode(errors="replace") for stop in settings["until"] if stop]
            count = max(0, settings["max_gen_toks"])
            temperature = float(settings.get("temperature", 1.0)) if settings["do_sample"] else 0.0
            limits = int(settings.get("top_k") or 0), float(settings.get("top_p") or 1.0)
            # Of a task that repeats its requests each draw is another one.
            sampler = Sampler(temperature if temperature >= MIN_TEMPERATURE else 0.0, *limits, seed=number)
            chunks = self.iter_spellings(context, count, sampler)
            texts.append(b"".join(cut_at_stop(chunks, stops)).decode(errors="replace"))
            self.cache_hook.add_partial("generate_until", request.args, texts[-1])
        return texts

    def iter_spellings(self, context: str, count: int, sampler: Sampler) -> Iterator[bytes]:
        """Yield the text of each of the next `count` tokens, until a document ends.

        The context leaves room for `count` tokens, at most half of the model's; then the oldest tokens are left out.
        """
        room = max(self.max_length - count, self.max_length // 2, 1)
        tokens = self.tok_encode(context)[-room:] or [self.eot_token_id]
        for _ in range(count):
            token = sampler(self.compute_logits(torch.tensor([tokens[-self.max_length :]]))[0, -1])
            if token == self.text_tokenizer.end:
                return
            yield self.text_tokenizer.spellings[token] if token < self.text_tokenizer.vocab_size else b""
            tokens.append(token)

    @torch.no_grad()
    def compute_logits(self, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq vocab"]:
        """Return the logits of the next token at each position, in float32."""
        return self.model(tokens).float()  # type: ignore[no-any-return]


def check_text(run: str, trained: TrainedRun) -> tuple[Tokenizer, int]:
    """Return a run's tokenizer and the number of its positions. Raise ValueError for a run that predicts no text."""
    model, tokenizer = trained.model, trained.tokenizer
    if tokenizer is None:
        raise ValueError(f"RUN={run}: tasks of lm-eval are texts, and it was not trained on text; give a run of data=text")
    if not isinstance(model, Transformer | Hub) or (isinstance(model, Transformer) and model.num_classes):
        reason = f"its model {type(model).__name__} predicts no next token at every position"
        raise ValueError(f"RUN={run}: {reason}; give a run of model=bitnet, transformer or hub on data=text")
    length = model.max_seq_len if isinstance(model, Transformer) else int(trained.config.data.seq_len)
    return tokenizer, length


def judge_continuation(log_probs: Float[Tensor, "tokens vocab"], continuation: list[int]) -> tuple[float, bool]:
    """Return the sum of a continuation's log-probabilities (nats), and whether each of its tokens is the likeliest."""
    chosen = torch.tensor(continuation)
    total = log_probs.gather(1, chosen[:, None]).double().sum()
    return float(total), bool((log_probs.argmax(-1) == chosen).all())
