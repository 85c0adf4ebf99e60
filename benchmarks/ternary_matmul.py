"""A packed ternary layer against ggml's TQ2_0 (llama.cpp) and a bf16 nn.Linear: one row (decode) and 512 (prefill).

    python benchmarks/ternary_matmul.py [--rounds 9] [--threads 1 2]

Decode reads every weight once, so memory bounds it: each round goes through distinct matrices of 0.45 GB, which no cache
holds. Prefill multiplies 512 rows with up to four of the matrices.

`kernel` is C, as ggml's graph and the reading loop are; it is what these two are compared with. One row goes through all
matrices in one call, as a token does through a model; ggml's graph starts its threads once too. `layer` is PackedLinear
called from Python, compared with nn.Linear. Our weights lie as pack_model lays them, in large pages where the system has
them, and the reading loop reads these very bytes.

The arms take turns in every round; a figure is the median of the rounds, a ratio the median of the rounds' ratios. For two
threads both cores must be idle.
"""

import argparse
import ctypes
import importlib.util
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from research.kernels import ternary
from research.nn.packed import PackedLinear, move_to_huge_pages
from research.nn.tiles import unpack

SHAPES = [(2048, 2048), (4096, 4096), (4096, 11008)]  # outputs, inputs
COLD, ROWS, TQ2_0 = 450_000_000, 512, 35  # bytes; rows of a prefill; ggml's number of the type
AT_LEAST = {
    "decode: bandwidth": 0.8,
    "decode: over TQ2_0": 1.7,
    "decode: over bf16": 4.0,
    "prefill: over TQ2_0": 4.0,
    "prefill: over bf16": 2.0,
}
WIDTHS = (18, 9, 12, 11, 13, 12, 11, 11)
Arm = Callable[[int], float]  # threads -> seconds a matrix


class Ggml:
    """TQ2_0 products through ggml's own C interface, as llama-cpp-python ships it."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("llama_cpp")
        assert spec is not None
        assert spec.origin is not None
        library, suffix = Path(spec.origin).parent / "lib", "dylib" if sys.platform == "darwin" else "so"
        self.base = ctypes.CDLL(str(library / f"libggml-base.{suffix}"))
        self.cpu = ctypes.CDLL(str(library / f"libggml-cpu.{suffix}"))
        pointer = ctypes.c_void_p
        for name in ("ggml_init", "ggml_new_tensor_2d", "ggml_mul_mat", "ggml_new_graph_custom", "ggml_get_data"):
            getattr(self.base, name).restype = pointer
        self.cpu.ggml_backend_cpu_init.restype = pointer
        self.backend = pointer(self.cpu.ggml_backend_cpu_init())

    def build_graph(self, codes: list[Tensor], x: Tensor) -> tuple[Callable[[int], None], Callable[[], Tensor]]:
        """What multiplies x by every matrix, and what reads the product with the first."""
        (out, width), rows, pointer = codes[0].shape, x.shape[0], ctypes.c_void_p

        class Parameters(ctypes.Structure):
            _fields_ = (("size", ctypes.c_size_t), ("memory", pointer), ("no_alloc", ctypes.c_bool))

        size = len(codes) * (out * width // 256 * 66 + 4 * rows * out + 4096) + 4 * rows * width + (1 << 22)
        context = pointer(self.base.ggml_init(Parameters(size, None, False)))

        def make_tensor(kind: int, inner: int, outer: int) -> ctypes.c_void_p:
            return pointer(self.base.ggml_new_tensor_2d(context, kind, ctypes.c_int64(inner), ctypes.c_int64(outer)))

        def copy_values(to: ctypes.c_void_p, values: Tensor) -> None:
            flat = values.contiguous()
            ctypes.memmove(self.base.ggml_get_data(to), flat.data_ptr(), flat.nbytes)

        of_x = make_tensor(0, width, rows)
        copy_values(of_x, x)
        graph = pointer(self.base.ggml_new_graph_custom(context, ctypes.c_size_t(len(codes) + 8), False))
        products = []
        for matrix in codes:
            weights = make_tensor(TQ2_0, width, out)
            copy_values(weights, pack_tq2_0(matrix))
            products.append(pointer(self.base.ggml_mul_mat(context, weights, of_x)))
            self.base.ggml_build_forward_expand(graph, products[-1])

        def compute(threads: int) -> None:
            self.cpu.ggml_backend_cpu_set_n_threads(self.backend, threads)
            assert self.base.ggml_backend_graph_compute(self.backend, graph) == 0

        def read_first() -> Tensor:
            y = torch.empty(rows, out)
            ctypes.memmove(y.data_ptr(), self.base.ggml_get_data(products[0]), y.nbytes)
            return y

        self.free = lambda: self.base.ggml_free(context)
        return compute, read_first


def pack_tq2_0(codes: Tensor) -> Tensor:
    """int8 codes in blocks of 256 inputs: byte 32 h + m has, in bit pair l, input 128 h + 32 l + m; then a scale of 1."""
    pairs = (codes.view(-1, 2, 4, 32) + 1).to(torch.uint8) << torch.arange(0, 8, 2, dtype=torch.uint8).view(4, 1)
    scale = torch.ones(codes.numel() // 256, 1, dtype=torch.half).view(torch.uint8)
    return torch.cat((pairs.sum(2, dtype=torch.uint8).view(-1, 64), scale), 1)


def make_packed(out: int, width: int) -> PackedLinear:
    """Random codes."""
    layer = PackedLinear(width, out, bias=False)
    layer.codes.random_(0, 3).mul_(0b01010101)
    layer.scale.fill_(1.0)
    return layer


def make_layer_arm(modules: nn.ModuleList, x: Tensor) -> Arm:
    """Modules called from Python."""

    def run(threads: int) -> float:
        torch.set_num_threads(threads)
        started = time.perf_counter()
        for module in modules:
            module(x)
        return (time.perf_counter() - started) / len(modules)

    return run


def make_kernel_arms(layers: nn.ModuleList, x: Tensor) -> tuple[Arm, Arm]:
    """The kernels alone, and the reading of all weights, which lie side by side."""
    library, first = ternary.get_library(), layers[0]
    assert library is not None, "there is no C compiler"
    assert isinstance(first, PackedLinear)
    (rows, width), out, count = x.shape, first.out_features, len(layers)
    y = torch.empty(rows, out)
    made = [ternary.Matrix(layer.codes.data_ptr(), layer.scale.data_ptr(), out, width, 2) for layer in layers]
    matrices = (ternary.Matrix * count)(*made)

    def run_kernel(threads: int) -> float:
        started = time.perf_counter()
        if rows == 1:
            library.c.grokbit_row(matrices, count, x.data_ptr(), y.data_ptr(), threads)
        else:
            for matrix in made:
                library.c.grokbit_linear(ctypes.byref(matrix), x.data_ptr(), rows, y.data_ptr(), threads)
        return (time.perf_counter() - started) / count

    def read_weights(threads: int) -> float:
        started = time.perf_counter()
        library.c.grokbit_read(first.codes.data_ptr(), count * first.codes.numel() // 8, threads)
        return (time.perf_counter() - started) / count

    return run_kernel, read_weights


def make_ggml_arm(ggml: Ggml, layers: nn.ModuleList, x: Tensor) -> Arm:
    """ggml's product of the same codes, once seen to be the same."""
    compute, first = ggml.build_graph([unpack(layer.codes, layer.out_features, layer.in_features) for layer in layers], x)
    compute(1)
    error = (first() - layers[0](x)).norm() / first().norm()
    assert error < 0.02, f"not the same product: {error}"  # it rounds activations by 256, in half precision

    def run(threads: int) -> float:
        started = time.perf_counter()
        compute(threads)
        return (time.perf_counter() - started) / len(layers)

    return run


def make_arms(out: int, width: int, rows: int, ggml: Ggml | None) -> dict[str, Arm]:
    """All sides of one comparison."""
    count = COLD * 4 // (out * width) if rows == 1 else 4
    layers = nn.ModuleList(make_packed(out, width) for _ in range(count))
    move_to_huge_pages(layers)  # as pack_model does
    wide = nn.ModuleList(
        nn.Linear(width, out, bias=False, dtype=torch.bfloat16) for _ in range(min(count, COLD // (2 * out * width) + 1))
    )
    x = torch.randn(rows, width)
    kernel, read = make_kernel_arms(layers, x)
    found: dict[str, Arm] = {"kernel": kernel, "ours": make_layer_arm(layers, x), "bf16": make_layer_arm(wide, x.bfloat16())}
    found |= {"read": read} if rows == 1 else {}
    return found | ({"TQ2_0": make_ggml_arm(ggml, layers, x)} if ggml else {})


def compare(out: int, width: int, rows: int, threads: list[int], rounds: int, ggml: Ggml | None) -> dict[str, list[float]]:
    """Print a line for each number of threads; the ratios of time over ours, and of bandwidth."""
    sides, ratios = make_arms(out, width, rows, ggml), dict[str, list[float]]()
    for number in threads:
        times: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(rounds + 1):
            for name in random.sample(list(sides), len(sides)):
                sides[name](number) if rows > 1 else None  # warm: prefill is no matter of memory
                seconds = sides[name](number)
                if turn:
                    times[name].append(seconds)
        middle = {name: statistics.median(each) for name, each in times.items()}
        over = {
            name: statistics.median(
                a / b for a, b in zip(times[name], times["ours" if name == "bf16" else "kernel"], strict=True)
            )
            for name in ("TQ2_0", "bf16", "read")
            if name in times
        }
        work = out * width / 4e9 if rows == 1 else 2e-9 * rows * out * width
        cells = [f"{rows:>4} x {out}x{width}", f"{number}", *(f"{1e6 * middle[name]:.0f}" for name in ("kernel", "ours"))]
        cells.append(f"{work / middle['kernel']:.1f}")
        cells += [f"{over[name]:.2f}" if name in over else "-" for name in ("TQ2_0", "bf16", "read")]
        print("".join(f"{cell:>{w}}" for cell, w in zip(cells, WIDTHS, strict=True)), flush=True)
        for name, ratio in over.items():
            key = "decode: bandwidth" if name == "read" else f"{'decode' if rows == 1 else 'prefill'}: over {name}"
            ratios.setdefault(key, []).append(ratio)
    if ggml:
        ggml.free()
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="rounds that count")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    torch.empty(31 << 20, dtype=torch.uint8)  # glibc keeps freed blocks of less than what it has seen: no new pages for outputs
    ggml = Ggml() if importlib.util.find_spec("llama_cpp") else None
    if ggml is None:
        print("TQ2_0 is not compared: pip install llama-cpp-python")
    library = ternary.get_library()
    print(f"kernels: {next(iter(library.isas)) if library else 'none'}")
    titles = ("rows x layer", "threads", "kernel, us", "layer, us", "GB/s, GOP/s", "over TQ2_0", "over bf16", "bandwidth")
    print("".join(f"{title:>{w}}" for title, w in zip(titles, WIDTHS, strict=True)))
    ratios: dict[str, list[float]] = {}
    for rows, rounds in ((1, args.rounds), (ROWS, min(args.rounds, 5))):
        for out, width in SHAPES:
            for name, each in compare(out, width, rows, args.threads, rounds, ggml).items():
                ratios.setdefault(name, []).extend(each)
    worst = {name: round(min(each), 3) for name, each in ratios.items()}
    print(json.dumps(worst | {"at least": AT_LEAST}))


if __name__ == "__main__":
    main()
