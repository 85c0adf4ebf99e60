"""Symbols one after the other: how each is drawn, what is shown of it, and how fast they come."""

import codecs
import ctypes
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from research.load import TrainedRun, load_run
from research.models.transformer import Transformer
from research.nn.bitlinear import bitlinear_layers
from research.nn.decode import Decoder
from research.nn.packed import pack_model
from research.run_dir import get_rss_mb

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as malloc.h has them
BYTES_ERRORS = "surrogateescape"  # what of an argument is no UTF-8 goes in as the bytes that it is


@dataclass
class Sampler:
    """The next symbol from its logits. At temperature 0 the likeliest; else drawn from the `top_k` likeliest, 0: from all."""

    temperature: float = 0.8
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature == 0 or 1e-3 <= self.temperature < math.inf):
            raise ValueError(f"--temperature {self.temperature:g}: give 0 for the likeliest symbol, or 0.001 and more")
        if self.top_k < 0:
            raise ValueError(f"--top-k {self.top_k}: give 0 for all symbols, or how many to draw from")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"--seed {self.seed}: give a number from 0 to 2^63 - 1")
        self.generator = torch.Generator().manual_seed(self.seed)

    def __call__(self, logits: Float[Tensor, "vocab"]) -> int:
        if self.temperature == 0:
            return int(logits.argmax())
        if 0 < self.top_k < len(logits):
            logits = logits.where(logits >= logits.topk(self.top_k).values[-1], -torch.inf)
        return int(torch.multinomial((logits / self.temperature).softmax(-1), 1, generator=self.generator))


def iter_symbols(decoder: Decoder, prompt: list[int], max_seq_len: int, sampler: Sampler) -> Iterator[int]:
    """Symbols for ever. Where the model's `length` is full, it goes on from the second half of what it has seen."""
    decoder.reset()
    seen = prompt[-max_seq_len:]
    logits = decoder.feed(torch.tensor(seen))
    while True:
        yield (symbol := sampler(logits))
        seen.append(symbol)
        if len(seen) > max_seq_len:
            seen = seen[-max_seq_len // 2 :]
            decoder.reset()
            logits = decoder.feed(torch.tensor(seen))
        else:
            logits = decoder.feed(torch.tensor([symbol]))


def build_codec(run: TrainedRun, vocab_size: int) -> tuple[Callable[[str], list[int]], Callable[[int | None], str]]:
    """How a prompt becomes symbols, and a symbol what is shown: UTF-8 where the run was on text, else numbers. None is the
    end: a character may still want bytes.
    """
    if run.is_text:
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        return lambda text: list(text.encode(errors=BYTES_ERRORS)), lambda symbol: utf8.decode(
            bytes([] if symbol is None else [symbol]), symbol is None
        )

    def encode_numbers(text: str) -> list[int]:
        parts = text.split()
        if not all(part.isdecimal() and int(part) < vocab_size for part in parts):
            raise ValueError(f'--prompt "{text}": the symbols of this run are the numbers from 0 to {vocab_size - 1}')
        return [int(part) for part in parts]

    return encode_numbers, lambda symbol: "" if symbol is None else f" {symbol}"


def require_language_model(run: TrainedRun) -> Transformer:
    """Raises ValueError where the run has learnt no sequences."""
    if not isinstance(run.model, Transformer):
        raise ValueError(
            f"RUN={run.folder} is of a {type(run.model).__name__}: only model=transformer and its kin go on with a text"
        )
    return run.model


def generate(run: str, prompt: str, tokens: int, sampler: Sampler, packed: bool) -> str:
    """Stream `tokens` symbols to the terminal; return what is to be told of speed and memory, nothing where the reader has
    gone.
    """
    trained = load_run(run)
    plain = require_language_model(trained)
    length = plain.max_seq_len
    encode, decode = build_codec(trained, plain.embed.num_embeddings)
    if not (start := encode(prompt)):
        raise ValueError('--prompt "": give at least one symbol to begin with')
    packed = packed and bool(bitlinear_layers(plain))
    try:
        model = pack_model(plain) if packed else plain
    except ValueError as error:  # no packed layer holds these
        raise ValueError(f"{error} with --no-packed") from error
    del plain, trained  # their float32 weights
    stream = iter_symbols(Decoder(model), start, length, sampler)
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal may have fewer characters than UTF-8
    try:
        begun, first, last = print_stream(prompt, stream, tokens, decode)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or else Python tries once more as it ends
        if isinstance(error, BrokenPipeError):
            return ""
        raise
    how = "ternary weights packed" if packed else "in float32"
    speed = f"{(tokens - 1) / max(last - first, 1e-9):,.0f} tokens/s" if tokens > 1 else "one token"
    return f"{how}: {speed} after {1e3 * (first - begun):.0f} ms for the first, {get_rss_mb():,.0f} MB resident"


@contextmanager
def retain_memory() -> Iterator[None]:
    """From here on what a tensor has left is kept for the next one, at the end it is given back. By itself glibc gives large
    blocks back at once and asks for them again: a third of a prompt's time. Where there is no glibc nothing is changed.
    """
    try:
        mallopt, trim = ctypes.CDLL(None).mallopt, ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        yield
        return
    mallopt(M_MMAP_THRESHOLD, 1 << 25)  # the largest that there may be
    mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
    yield
    trim(0)


def print_stream(
    prompt: str, stream: Iterator[int], tokens: int, decode: Callable[[int | None], str]
) -> tuple[float, float, float]:
    """The text on the terminal, symbol by symbol. Returns when it began, when the first one came, and the last."""

    def show(symbol: int) -> float:
        print(decode(symbol), end="", flush=True)
        return time.perf_counter()

    try:
        print(prompt.encode(errors=BYTES_ERRORS).decode(errors="replace"), end="", flush=True)
        begun = time.perf_counter()
        with retain_memory():
            symbol = next(stream)
        first = last = show(symbol)
        for _ in range(tokens - 1):
            last = show(next(stream))
    finally:
        print(decode(None), flush=True)
    return begun, first, last
