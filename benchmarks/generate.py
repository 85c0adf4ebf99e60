"""Whole models: ours packed, llama.cpp on the same shapes as TQ2_0, ours in bf16 and in float32. Speed and measured memory.

    python -m benchmarks.generate [--sizes 0.1 0.6] [--rounds 5] [--threads 2]

Random weights of two transformers: 0.1 billion parameters (768 wide, 12 blocks, 12 heads) and 0.65 billion (1536 wide, 24
blocks, 24 query heads, 8 key and value heads). Both have 32,000 symbols and tied embeddings. llama.cpp has the layout that
research/export/gguf.py writes, with its embedding in Q8_0 as ours is in int8. bf16 stands for fp16, which has the same size.

Each arm is a process of its own. In each round an arm reads a prompt of 256 tokens and then 32 more, one after the other.
Memory is the growth of VmRSS of /proc/self/status: by the layers, and by the whole model until it has read 32 tokens.
llama.cpp maps its file, whose pages count as they are read.
"""

import ctypes
import gc
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from benchmarks import harness, models
from research.contracts import contract
from research.data.spec import Tokens
from research.export import gguf
from research.export.layout import Options, Source
from research.generate.stream import retain_memory
from research.models.transformer import Transformer
from research.nn.bitlinear import BitLinear
from research.nn.decode import Decoder
from research.nn.packed import Int8Embedding, Int8Linear, Int8Table, move_to_huge_pages
from research.nn.rope import build_rope_table
from research.training.oom import get_rss_mb

SIZES: dict[str, dict[str, Any]] = {
    "0.1": {"dim": 768, "depth": 12, "ffn_dim": 2048, "heads": 12, "kv_heads": 4},
    "0.6": {"dim": 1536, "depth": 24, "ffn_dim": 4096, "heads": 24, "kv_heads": 8},
}
VOCAB_SIZE, SEQ_LEN, PROMPT_LEN, NEW_TOKENS = 32_000, 512, 256, 32
SHAPE = Tokens(VOCAB_SIZE, SEQ_LEN)
AT_LEAST = {
    "decode: over llama.cpp": 1.5,
    "prefill: over llama.cpp": 3.0,
    "decode: over bf16": 4.0,
    "memory of the layers: bf16 over ours, 0.6": 7.5,
    "memory: bf16 over ours, 0.6": 6.0,
}
TITLES = {  # of the ratios, by figure
    "decode": "decode: over {}",
    "prefill": "prefill: over {}",
    "layers": "memory of the layers: {} over ours",
    "all": "memory: {} over ours",
}
Feed = Callable[[list[int]], object]
DTYPES = {"ours": None, "bf16": torch.bfloat16, "float32": torch.float32}
SPAWN = multiprocessing.get_context("spawn")
MAX_ROUNDS = 1000  # of one comparison
ARMS: list[Iterator[dict[str, float]]] = []  # of this process, which is that of one arm


def measure_resident() -> float:
    """Return the resident memory in MB, after the allocator has given back its free pages."""
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    return get_rss_mb()


def make_model(size: dict[str, Any], dtype: torch.dtype | None) -> tuple[Transformer, float]:
    """Return a model with random weights, packed if `dtype` is None, and the MB by which its linear layers grew the process.

    No weight exists in a wider type at any moment.
    """

    def make_linear(width: int, out: int, bias: bool) -> nn.Module:
        with torch.device("cpu"):
            return nn.Linear(width, out, bias, dtype=dtype) if dtype else models.make_packed(out, width, 1.5 / width**0.5)

    start = measure_resident()
    with torch.device("meta"):
        model = Transformer(SHAPE, linear=make_linear, sub_norm=True, **size)
    move_to_huge_pages(model.blocks)
    layers_mb = measure_resident() - start
    for module in model.modules():
        if isinstance(module, nn.RMSNorm):
            module.weight = nn.Parameter(torch.ones(module.normalized_shape, dtype=dtype or torch.float32))
    weight = torch.randn(VOCAB_SIZE, size["dim"]).mul_(0.02)
    if dtype:
        model.head.weight = model.embed.weight = nn.Parameter(weight.to(dtype))
    else:
        table = Int8Table(weight)
        model.embed, model.head = Int8Embedding(table), Int8Linear(table)  # type: ignore[assignment]
    model.cos, model.sin = build_rope_table(SEQ_LEN, size["dim"] // size["heads"])
    return model.eval().requires_grad_(False), layers_mb


@contract
def build(name: str, size: dict[str, Any], threads: int) -> tuple[Feed, Callable[[], None], float]:
    """Return what an arm reads tokens with, what makes it forget them, and the MB of its layers."""
    if name == "llama.cpp":
        from llama_cpp import Llama

        run: Any = SimpleNamespace(config={}, is_text=False)
        source = Source(run, Transformer(SHAPE, linear=BitLinear, sub_norm=True, **size).requires_grad_(False))
        with tempfile.TemporaryDirectory() as folder:
            gguf.write(source, Path(folder), Options(embedding="Q8_0"))
            llama = Llama(f"{folder}/{gguf.FILE}", n_ctx=SEQ_LEN, n_threads=threads, n_threads_batch=threads, verbose=False)
        return llama.eval, llama.reset, float("nan")
    model, layers_mb = make_model(size, DTYPES[name])
    decoder = Decoder(model)
    return lambda tokens: decoder.feed(torch.tensor(tokens)), decoder.reset, layers_mb


@contract
def run_arm(name: str, size: dict[str, Any], threads: int) -> Iterator[dict[str, float]]:
    """Yield the figures of each round: seconds a token, and MB."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    tokens = torch.randint(VOCAB_SIZE, (PROMPT_LEN + NEW_TOKENS,)).tolist()
    # What a library loads on first use is not part of the model.
    for part in (tokens[:NEW_TOKENS], tokens[:1]):
        build(name, {"dim": 256, "depth": 1, "ffn_dim": 256, "heads": 4, "kv_heads": 2}, threads)[0](part)
    start_mb = measure_resident()
    feed, reset, layers_mb = build(name, size, threads)
    for token in tokens[:NEW_TOKENS]:
        feed([token])
    memory = {"layers": layers_mb, "all": measure_resident() - start_mb}
    for _ in range(MAX_ROUNDS):
        reset()
        with retain_memory():  # as the program does
            prefill = harness.make_arm(lambda: feed(tokens[:PROMPT_LEN]))()
        decode = [harness.make_arm(partial(feed, [token]))() for token in tokens[PROMPT_LEN:]]
        yield {"decode": statistics.median(decode), "prefill": prefill / PROMPT_LEN, **memory}


def start_arm(*args: Any) -> None:
    ARMS.append(run_arm(*args))


def advance_arm() -> dict[str, float]:
    return next(ARMS[0])


def read_figures(process: ProcessPoolExecutor) -> dict[str, float]:
    """Run a round of the arm in that process; return its figures."""
    return process.submit(advance_arm).result()


@contract
def compare(size: str, names: list[str], threads: int, rounds: int) -> dict[str, float]:
    """Print the table of a size; return its ratios."""
    with ExitStack() as stack:
        processes = {name: ProcessPoolExecutor(1, SPAWN, start_arm, (name, SIZES[size], threads)) for name in names}
        arms = {name: partial(read_figures, stack.enter_context(process)) for name, process in processes.items()}
        results = harness.run_interleaved(arms, rounds)
    table = harness.Table(f"{size} billion, {threads} threads", "decode t/s", "prefill t/s", "layers MB", "all MB")
    ratios: dict[str, float] = {}
    ours = {figure: [row[figure] for row in results["ours"]] for figure in TITLES}
    for name, rows in results.items():
        figures = {figure: [row[figure] for row in rows] for figure in TITLES}
        decode, prefill, *memory = map(statistics.median, figures.values())
        table.add(name, f"{1 / decode:.1f}", f"{1 / prefill:.0f}", *(f"{mb:.0f}" if mb > 0 else "-" for mb in memory))
        for figure, title in TITLES.items():
            if name != "ours" and figures[figure][0] > 0:  # the layers of llama.cpp are not measured
                ratios[f"{title.format(name)}, {size}"] = harness.compare(figures[figure], ours[figure]).median
    return ratios


@contract
def main(sizes: list[str], rounds: int, threads: int) -> harness.Results:
    llama = harness.has_peer("llama.cpp", "llama-cpp-python gguf", "llama_cpp", "gguf")
    names = ["ours", *["llama.cpp"] * llama, "bf16", "float32"]
    ratios = dict[str, float]()
    for size in sizes:
        ratios |= compare(size, names, threads, rounds)
    for title in ("decode: over llama.cpp", "prefill: over llama.cpp", "decode: over bf16"):
        if matches := [ratio for name, ratio in ratios.items() if name.startswith(f"{title},")]:
            ratios[title] = min(matches)
    return ratios


if __name__ == "__main__":
    sizes = {"nargs": "+", "choices": list(SIZES), "default": list(SIZES)}
    harness.run(main, __doc__, {}, AT_LEAST, sizes=sizes, rounds=5, threads=min(2, os.cpu_count() or 1))
