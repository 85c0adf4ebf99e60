"""Whole models: ours packed, llama.cpp on the same shapes as TQ2_0, ours in bf16 and in float32. Speed, and memory as measured.

    python benchmarks/generate.py [--sizes 0.1 0.6] [--rounds 5] [--threads 2]

Random weights of two transformers: 0.1 billion parameters (768 wide, 12 blocks, 12 heads) and 0.65 billion (1536 wide, 24
blocks, 24 heads over 8 of keys and values), 32,000 symbols, embedding and head tied. llama.cpp has the layout that
research/export/gguf.py writes, with its embedding in Q8_0 as ours is in int8.

Each arm is a process of its own; they take turns, and in each round an arm reads a prompt of 256 tokens and then 32 more,
one after the other, one arm at a time. A figure is the median of the rounds, a ratio the median of the rounds' ratios.
Memory is VmRSS of /proc/self/status: how much it grows by the layers, and by the whole model until it has read 32 tokens
(llama.cpp maps its file, whose pages count as they are read). bf16 stands for fp16, which has the same size.
"""

import argparse
import contextlib
import ctypes
import gc
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

from research.data.spec import Tokens
from research.export.layout import LINEARS, MODULE_NAMES
from research.generate.stream import retain_memory
from research.models.transformer import Transformer
from research.nn.decode import Decoder
from research.nn.packed import Int8Embedding, Int8Linear, Int8Table, PackedLinear, move_to_huge_pages
from research.nn.rope import build_rope_table

SIZES = {
    "0.1": {"dim": 768, "depth": 12, "ffn_dim": 2048, "heads": 12, "kv_heads": 4},
    "0.6": {"dim": 1536, "depth": 24, "ffn_dim": 4096, "heads": 24, "kv_heads": 8},
}
VOCAB_SIZE, SEQ_LEN, PROMPT_LEN, NEW_TOKENS = 32_000, 512, 256, 32
AT_LEAST = {
    "decode: over llama.cpp": 1.5,
    "prefill: over llama.cpp": 3.0,
    "decode: over bf16": 4.0,
    "memory of the layers: bf16 over ours, 0.6": 7.5,
    "memory: bf16 over ours, 0.6": 6.0,
}
Feed = Callable[[list[int]], object]


def measure_resident() -> float:
    """MB, after the allocator gave back what it only keeps for later."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def make_packed(width: int, out: int) -> PackedLinear:
    layer = PackedLinear(width, out, bias=False)
    layer.codes.random_(0, 3).mul_(0b01010101)
    layer.scale.fill_(1.5 / width**0.5)
    return layer


def make_model(size: dict[str, int], dtype: torch.dtype | None) -> tuple[Transformer, float]:
    """Random weights, packed without a dtype, and by how many MB its linear layers grew the process. No weight is there in
    a wider type, not even for a moment.
    """
    with torch.device("meta"):
        made = Transformer(Tokens(VOCAB_SIZE, SEQ_LEN), linear=nn.Linear, sub_norm=True, **size)
    begun = measure_resident()
    for block in made.blocks:
        for name in LINEARS:
            old: Any = block.get_submodule(name)
            linear = make_packed(old.in_features, old.out_features) if dtype is None else old.to(dtype).to_empty(device="cpu")
            if dtype:
                nn.init.normal_(linear.weight, std=0.02)
            block.set_submodule(name, linear)
    move_to_huge_pages(made.blocks)
    of_layers = measure_resident() - begun
    for module in made.modules():
        if isinstance(module, nn.RMSNorm):
            module.weight = nn.Parameter(torch.ones(module.normalized_shape, dtype=dtype or torch.float32))
    if dtype:
        made.embed.weight = nn.Parameter(torch.randn(VOCAB_SIZE, size["dim"]).mul_(0.02).to(dtype))
        made.head.weight = made.embed.weight
    else:
        table = Int8Table(torch.randn(VOCAB_SIZE, size["dim"]).mul_(0.02))
        made.embed, made.head = Int8Embedding(table), Int8Linear(table)  # type: ignore[assignment]
    made.cos, made.sin = build_rope_table(SEQ_LEN, size["dim"] // size["heads"])
    return made.eval().requires_grad_(False), of_layers


def write_gguf(size: dict[str, int], path: Path) -> None:
    """A file of llama.cpp's architecture `bitnet` with random ternary blocks: 256 inputs are 64 bytes and a scale."""
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    writer = GGUFWriter(path, "bitnet")
    writer.add_vocab_size(VOCAB_SIZE)
    writer.add_context_length(SEQ_LEN)
    writer.add_embedding_length(size["dim"])
    writer.add_block_count(size["depth"])
    writer.add_feed_forward_length(size["ffn_dim"])
    writer.add_head_count(size["heads"])
    writer.add_head_count_kv(size["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(size["dim"] // size["heads"])
    writer.add_rope_freq_base(10_000.0)
    writer.add_tokenizer_model("none")
    with torch.device("meta"):
        shapes = Transformer(Tokens(VOCAB_SIZE, SEQ_LEN), linear=nn.Linear, sub_norm=True, **size)
    table = torch.randn(VOCAB_SIZE, size["dim"]).mul_(0.02).numpy()
    writer.add_tensor("token_embd.weight", quantize(table, GGMLQuantizationType.Q8_0), raw_dtype=GGMLQuantizationType.Q8_0)
    writer.add_tensor("output_norm.weight", torch.ones(size["dim"]).numpy())
    for number, block in enumerate(shapes.blocks):
        for ours, (_, theirs) in MODULE_NAMES.items():
            name, weight = f"blk.{number}.{theirs}", block.get_submodule(ours).weight
            if ours not in LINEARS:
                writer.add_tensor(f"{name}.weight", torch.ones(weight.shape).numpy())
                continue
            codes = torch.empty(weight.numel() // 256, 66, dtype=torch.uint8).random_(0, 3).mul_(0b01010101)
            codes[:, 64:] = torch.ones(1, dtype=torch.half).view(torch.uint8)
            raw = codes.view(weight.shape[0], -1).numpy()
            writer.add_tensor(f"{name}.weight", raw, raw_dtype=GGMLQuantizationType.TQ2_0)
            writer.add_tensor(f"{name}.scale", torch.full((1,), 1.5 / weight.shape[1] ** 0.5).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def build_ours(size: dict[str, int], dtype: torch.dtype | None) -> tuple[Feed, Callable[[], None], float]:
    made, of_layers = make_model(size, dtype)
    decoder = Decoder(made)
    return lambda tokens: decoder.feed(torch.tensor(tokens)), decoder.reset, of_layers


def build_llama(size: dict[str, int], threads: int) -> tuple[Feed, Callable[[], None], float]:
    from llama_cpp import Llama

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_gguf(size, path)
        made = Llama(str(path), n_ctx=SEQ_LEN, n_threads=threads, n_threads_batch=threads, verbose=False)
    return made.eval, made.reset, float("nan")


def run_arm(name: str, size: dict[str, int], threads: int) -> None:
    """One process: says what it weighs, then does a round for each line that it is sent."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    tiny = {"dim": 256, "depth": 1, "ffn_dim": 256, "heads": 4, "kv_heads": 2}
    dtype = {"ours": None, "bf16": torch.bfloat16, "float32": torch.float32}.get(name)

    def build_arm(size: dict[str, int]) -> tuple[Feed, Callable[[], None], float]:
        return build_llama(size, threads) if name == "llama.cpp" else build_ours(size, dtype)

    tokens = torch.randint(VOCAB_SIZE, (PROMPT_LEN + NEW_TOKENS,)).tolist()
    for part in (tokens[:NEW_TOKENS], tokens[:1]):
        build_arm(tiny)[0](part)  # what is loaded on first use is not the model's
    begun = measure_resident()
    feed, reset, of_layers = build_arm(size)
    for token in tokens[:NEW_TOKENS]:
        feed([token])
    print(json.dumps({"layers": of_layers, "all": measure_resident() - begun}), flush=True)
    for _ in sys.stdin:
        reset()
        started = time.perf_counter()
        with retain_memory():  # as the program does
            feed(tokens[:PROMPT_LEN])
        prefill, each = time.perf_counter() - started, []
        for token in tokens[PROMPT_LEN:]:
            started = time.perf_counter()
            feed([token])
            each.append(time.perf_counter() - started)
        print(json.dumps({"prefill": prefill / PROMPT_LEN, "decode": statistics.median(each)}), flush=True)


def compare(size: str, names: list[str], threads: int, rounds: int) -> dict[str, float]:
    """Print the table of a size; its ratios."""
    processes, weighs = {}, {}
    for name in names:
        words = [sys.executable, __file__, "--arm", name, "--sizes", size, "--threads", str(threads)]
        processes[name] = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        weighs[name] = read_message(processes[name])
    times: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name in random.sample(names, len(names)):
            pipe = processes[name].stdin
            assert pipe is not None
            pipe.write("\n")
            pipe.flush()
            round_ = read_message(processes[name])
            if turn:
                times[name].append(round_)
    for process in processes.values():
        process.communicate(timeout=60)
    print(f"{size} billion, {threads} threads{'decode':>12}{'prefill':>12}{'layers':>12}{'all':>12}")
    ratios = {}
    for name in names:
        speed = [statistics.median(1 / each[what] for each in times[name]) for what in ("decode", "prefill")]
        memory = [f"{weighs[name][what]:.0f} MB" if weighs[name][what] > 0 else "-" for what in ("layers", "all")]
        print(f"{name:<24}{speed[0]:>8.1f} t/s{speed[1]:>8.0f} t/s{memory[0]:>12}{memory[1]:>12}", flush=True)
        if name != "ours":
            for what in ("decode", "prefill"):
                pairs = zip(times[name], times["ours"], strict=True)
                ratios[f"{what}: over {name}, {size}"] = statistics.median(a[what] / b[what] for a, b in pairs)
            for what, title in (("layers", "memory of the layers"), ("all", "memory")):
                ratios[f"{title}: {name} over ours, {size}"] = weighs[name][what] / weighs["ours"][what]
    return ratios


def read_message(process: subprocess.Popen[str]) -> dict[str, float]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args} ended with {process.wait()}")
    return json.loads(line)  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES), help="billions of parameters")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        run_arm(args.arm, SIZES[args.sizes[0]], args.threads)
        return
    names = ["ours", "bf16", "float32"]
    if all(importlib.util.find_spec(name) for name in ("llama_cpp", "gguf")):
        names.insert(1, "llama.cpp")
    else:
        print("llama.cpp is not compared: pip install llama-cpp-python gguf")
    ratios: dict[str, float] = {}
    for size in args.sizes:
        ratios |= compare(size, names, args.threads, args.rounds)
    for title in ("decode: over llama.cpp", "prefill: over llama.cpp", "decode: over bf16"):
        found = [ratio for name, ratio in ratios.items() if name.startswith(f"{title},")]
        ratios |= {title: min(found)} if found else {}
    print(json.dumps({name: round(ratio, 2) for name, ratio in ratios.items() if ratio == ratio} | {"at least": AT_LEAST}))


if __name__ == "__main__":
    main()
