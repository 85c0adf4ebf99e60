"""On an NVIDIA GPU: packed ternary products against bf16 nn.Linear, beside the bandwidth that bounds one row; training steps.

    python -m benchmarks.gpu [--rounds 20]

One row reads every weight once. Its figure is the bytes of the weights over the time, and the share of what a copy of as
much memory reaches in the same round (the roofline). 512 rows are given as multiplications over the time. A training step is
bitnet's over its full-precision twin's, both under bf16 autocast (d = 1024, 8 layers, 8 sequences of 512). Without a GPU it
measures nothing.
"""

import statistics
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import harness, models
from research.contracts import contract
from research.data.spec import Tokens
from research.models.transformer import Transformer
from research.nn.bitlinear import BitLinear
from research.nn.packed import PackedLinear

SHAPES = [(4096, 4096), (4096, 11008)]  # outputs, inputs
COPIES = 16  # distinct matrices: more than a cache holds
Work = Callable[[], object]


@contract
def measure(work: Work) -> float:
    """Return the seconds of a work by the GPU's own clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3


@contract
def run_interleaved(works: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """Run the works in turn, after two rounds that do not count; return their seconds."""
    return harness.run_interleaved({name: partial(measure, work) for name, work in works.items()}, rounds, warm_up=2)


def compare_products(out: int, width: int, rows: int, rounds: int, table: harness.Table) -> dict[str, float]:
    """Add a row on packed and bf16 products of `rows` rows; return the ratios."""
    packed = [PackedLinear.from_bitlinear(BitLinear(width, out, bias=False)).cuda() for _ in range(COPIES)]
    plain = [nn.Linear(width, out, bias=False, device="cuda", dtype=torch.bfloat16) for _ in range(COPIES)]
    x = torch.randn(rows, width, device="cuda")
    num_bytes = packed[0].codes.nbytes
    source = torch.empty(COPIES * num_bytes, dtype=torch.uint8, device="cuda")

    def make_work(layers: Sequence[nn.Module], inputs: Tensor) -> Work:
        return lambda: [layer(inputs) for layer in layers]

    with torch.no_grad():
        works = {"packed": make_work(packed, x), "bf16": make_work(plain, x.bfloat16()), "copy": source.clone}
        times = run_interleaved(works, rounds)
    seconds = {name: statistics.median(values) / COPIES for name, values in times.items()}
    flops = 2 * rows * out * width / seconds["packed"] / 1e12
    rate, peak = num_bytes / seconds["packed"] / 1e9, 2 * num_bytes / seconds["copy"] / 1e9
    name = f"{out}x{width}, {rows} row{'s' * (rows > 1)}"
    microseconds = [f"{1e6 * seconds[arm]:.1f}" for arm in ("packed", "bf16")]
    table.add(name, *microseconds, f"{rate:.0f}", f"{peak:.0f}", f"{flops:.1f}")
    ratios = {f"bf16/packed, {name}": harness.compare(times["bf16"], times["packed"]).median}
    return ratios | ({f"share of bandwidth, {name}": rate / peak} if rows == 1 else {})


def make_training_step(linear: type[nn.Linear]) -> Work:
    """Return a function that does one training step of a transformer with these layers."""
    torch.manual_seed(0)
    model = Transformer(Tokens(4096, 512), 1024, 8, 16, linear, sub_norm=True).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(4096, (8, 513), device="cuda")
    return models.make_step(model, optimizer, tokens, autocast=True, clip_norm=None)


@contract
def main(rounds: int) -> harness.Results:
    if not torch.cuda.is_available():
        print("no NVIDIA GPU here: nothing to measure")
        return {}
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    table, ratios = harness.Table("product", "packed us", "bf16 us", "GB/s", "copy GB/s", "TFLOP/s"), dict[str, float]()
    for out, width in SHAPES:
        for rows in (1, 512):
            ratios |= compare_products(out, width, rows, rounds, table)
    times = run_interleaved({"ternary": make_training_step(BitLinear), "twin": make_training_step(nn.Linear)}, rounds)
    ours, twin = (f"{8 * 512 / statistics.median(times[name]):,.0f}" for name in ("ternary", "twin"))
    memory = torch.cuda.max_memory_allocated() / 1e6
    print(f"training: {ours} tokens/s ternary, {twin} its twin, peak memory of both {memory:,.0f} MB")
    ratios["training step: ternary/twin"] = harness.compare(times["ternary"], times["twin"]).median
    return {"gpu": torch.cuda.get_device_name(), **ratios}


if __name__ == "__main__":
    harness.run(main, __doc__, rounds=20)
