"""How fast text becomes tokens: byte pairs by all processors and by one thread, and bytes.

    python -m benchmarks.tokens [--megabytes 8] [--vocab-size 4096] [--rounds 5]

The text is the sources of Python's standard library; the byte pairs are learnt from it. Speeds are medians. Other load makes
those by the clock smaller; those by the processors' own time less so.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.harness import Table, run, run_interleaved
from research.contracts import contract
from research.data.corpus import Reader, read_corpus
from research.data.streams import iter_pieces, take_batch
from research.data.tokenizers import BPE, Bytes, Tokenizer
from research.files.sources import Counts, find_files

AT_LEAST = {"bpe MB a CPU second": 1.5}  # 3 MB/s on two cores


def read_batches(num_bytes: int) -> list[list[bytes]]:
    """Return the text in batches as they are tokenized."""
    files = find_files(None, None, Counts())
    corpus = read_corpus(files, Reader("text", ("text",), "utf-8"), (0.1, 0.0), True, Counts())
    pieces, batches = iter_pieces(corpus.iter_documents("train")), []
    while num_bytes > 0 and (batch := take_batch(pieces)):
        batches.append([piece for _, piece in batch])
        num_bytes -= sum(map(len, batches[-1]))
    return batches


@contract
def make_arm(tokenizer: Tokenizer, batches: list[list[bytes]], parallel: bool) -> Callable[[], tuple[float, float]]:
    """Return an arm that tokenizes all batches, and gives its seconds by the clock and those of all processors together."""

    def measure() -> tuple[float, float]:
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if parallel else "false"
        wall, cpu = time.perf_counter(), time.process_time()
        for batch in batches:
            tokenizer.encode(batch)
        return time.perf_counter() - wall, time.process_time() - cpu

    return measure


@contract
def main(megabytes: int, vocab_size: int, rounds: int) -> Mapping[str, Any]:
    """Measure all arms in turn."""
    batches, tokenizer = read_batches(megabytes * 10**6), BPE(vocab_size)
    size = sum(len(piece) for batch in batches for piece in batch) / 1e6
    tokenizer.train(piece for batch in batches for piece in batch)
    arms = {
        "bpe": make_arm(tokenizer, batches, parallel=True),
        "bpe, one thread": make_arm(tokenizer, batches, parallel=False),
        "bytes": make_arm(Bytes(), batches, parallel=False),
    }
    results: dict[str, Any] = {}
    table = Table(f"{size:.1f} MB, {os.cpu_count()} processors", "MB/s", "MB a CPU second")
    for name, values in run_interleaved(arms, rounds).items():
        speeds = [size / statistics.median(seconds) for seconds in zip(*values, strict=True)]
        table.add(name, *(f"{speed:,.1f}" for speed in speeds))
        results |= {f"{name} MB/s": speeds[0], f"{name} MB a CPU second": speeds[1]}
    return results


if __name__ == "__main__":
    run(main, __doc__, at_least=AT_LEAST, megabytes=8, vocab_size=4096, rounds=5)
