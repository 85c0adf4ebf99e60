"""Generate tokens one after the other: sampling, decoding to text, printing, and the speed."""

import codecs
import ctypes
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile

import torch

from research.cli import escape_controls, print_message, redirect_to_null
from research.contracts import contract
from research.data.tokenizers import Tokenizer
from research.generate.hub import HubDecoder
from research.generate.sampling import Sampler, cut_at_stop
from research.load import TrainedRun, load_run
from research.models.hub import Hub
from research.models.transformer import Transformer
from research.nn.bitlinear import bitlinear_layers
from research.nn.decode import Decoder
from research.nn.packed import pack_model
from research.training.oom import get_rss_mb

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from malloc.h
# How Python holds bytes of an argument that are not UTF-8: they reach the model unchanged.
BYTES_ERRORS = "surrogateescape"


def iter_tokens(
    decoder: Decoder | HubDecoder, prompt: list[int], max_seq_len: int, sampler: Sampler, count: int
) -> Iterator[int]:
    """Yield `count` tokens. When `max_seq_len` tokens are reached, continue from the second half of them."""
    decoder.reset()
    context = prompt[-max_seq_len:]
    with retain_memory():
        logits = decoder.feed(torch.tensor(context))
    for left in reversed(range(count)):
        yield (token := sampler(logits))
        if not left:
            return
        context.append(token)
        unread = [token]
        if len(context) > max_seq_len:
            unread = context = context[-max_seq_len // 2 :]
            decoder.reset()
        logits = decoder.feed(torch.tensor(unread))


@contract
def encode(prompt: str, tokenizer: Tokenizer | None, vocab_size: int) -> list[int]:
    """Return the tokens of a text; without a tokenizer the numbers in it, or raise ValueError for anything else."""
    if tokenizer:
        return [int(token) for token in tokenizer.encode([prompt.encode(errors=BYTES_ERRORS)])[0]]
    words = prompt.split()
    if not all(word.isdecimal() and int(word) < vocab_size for word in words):
        raise ValueError(f'--prompt "{prompt}": give token ids of this run, numbers from 0 to {vocab_size - 1}')
    return [int(word) for word in words]


def get_generator(trained: TrainedRun) -> Transformer | Hub:
    """Return a run's model. Raise ValueError for one that predicts no tokens."""
    model = trained.model
    if isinstance(model, Hub):
        return model
    if not isinstance(model, Transformer):
        fix = "give a run of model=transformer, model=bitnet or model=hub"
        raise ValueError(f"RUN={trained.folder} has the model {type(model).__name__}, which cannot generate; {fix}")
    if model.num_classes:
        fix = "call it in Python, as research.load.load_run(RUN).model(tokens)"
        raise ValueError(f"RUN={trained.folder} tells classes and predicts no token; {fix}")
    return model


def generate(run: str, prompt: str, tokens: int, sampler: Sampler, packed: bool, stops: Sequence[str] = ()) -> None:
    """Print a prompt and `tokens` tokens, then on stderr their speed and the memory.

    Stop at the end of a document, before one of the texts `stops`, and where stdout is a closed pipe.
    Raise ValueError where the run cannot generate, the prompt is empty, or the weights cannot be packed.
    """
    trained = load_run(run)
    plain = get_generator(trained)
    vocab_size, max_seq_len = plain.vocab_size if isinstance(plain, Hub) else plain.embed.num_embeddings, plain.max_seq_len
    if not (context := encode(prompt, trained.tokenizer, vocab_size)):
        raise ValueError('--prompt "": give at least one token to start with')
    if (separator := trained.config.data.get("separator")) and separator not in prompt:
        print_message(f"note: the run has learnt targets behind {separator!r}, and --prompt does not hold it")
    tokenizer, packed = trained.tokenizer, packed and bool(bitlinear_layers(plain))
    try:
        model = pack_model(plain) if packed else plain
    except ValueError as error:  # no packed layer holds these weights
        raise ValueError(f"{error} with --no-packed") from error
    decoder = HubDecoder(model) if isinstance(model, Hub) else Decoder(model)
    stream = iter_tokens(decoder, context, max_seq_len, sampler, tokens)
    if tokenizer:
        stream = takewhile(lambda token: token != tokenizer.end, stream)
    if stops and not tokenizer:
        raise ValueError(f"--stop {stops[0]}: the data of {trained.folder} is not text")
    chunks: Iterator[bytes] = (tokenizer.spellings[token] if tokenizer else f" {token}".encode() for token in stream)
    if stops:
        chunks = cut_at_stop(chunks, [stop.encode(errors=BYTES_ERRORS) for stop in stops])
    del plain, trained  # frees their float32 weights
    try:
        start, *times = print_stream(prompt, chunks)
    except OSError as error:
        # Python flushes stdout once more as it exits, and would fail there.
        redirect_to_null(sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return
        raise
    form = "ternary weights packed" if packed else "in float32"
    what = "text" if stops else "document"
    end = "" if len(times) >= tokens else f"; the {what} ended after {len(times):,} of {tokens:,} tokens"
    print_message(f"{form}: {describe_speed(start, times)}, {get_rss_mb():,.0f} MB resident{end}")


def describe_speed(start: float, times: list[float]) -> str:
    """Return the tokens a second after the first, and how long that took; `times` (s) are of tokens, `start` of the prompt."""
    if not times:
        return "no token"
    speed = f"{(len(times) - 1) / max(times[-1] - times[0], 1e-9):,.0f} tokens/s" if len(times) > 1 else "one token"
    return f"{speed} after {1e3 * (times[0] - start):.0f} ms for the first"


@contextmanager
def retain_memory() -> Iterator[None]:
    """Make glibc retain freed memory inside the block: to request it again takes a third of a prompt's time."""
    try:
        mallopt, trim = ctypes.CDLL(None).mallopt, ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library
        yield
        return
    mallopt(M_MMAP_THRESHOLD, 1 << 25)  # the largest value that is allowed
    mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
    yield
    trim(0)


def print_stream(prompt: str, chunks: Iterator[bytes]) -> list[float]:
    """Print the prompt and chunks of UTF-8 as they come; return the times (s) of the start and of each chunk."""
    utf8 = codecs.getincrementaldecoder("utf-8")("replace")
    escape = escape_controls if sys.stdout.isatty() else str
    try:
        print(escape(prompt.encode(errors=BYTES_ERRORS).decode(errors="replace")), end="", flush=True)
        times = [time.perf_counter()]
        for chunk in chunks:
            print(escape(utf8.decode(chunk)), end="", flush=True)
            times.append(time.perf_counter())
    finally:
        print(utf8.decode(b"", final=True), flush=True)  # the text may stop within a character
    return times
