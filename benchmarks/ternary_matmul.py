"""A packed ternary layer against ggml's TQ2_0 (llama.cpp) and a bf16 nn.Linear: one row (decode) and 512 (prefill).

    python -m benchmarks.ternary_matmul [--rounds 9] [--threads 1 2]

Decode reads every weight once, so memory bounds it. Each round goes through distinct matrices of 0.45 GB, more than any
cache holds. Prefill multiplies 512 rows with up to four of the matrices.

`kernel` is C and is compared with C: ggml's graph and the loop that only reads. One row goes through all matrices in one
call, as a token does through a model; ggml's graph starts its threads once too. `layer` is PackedLinear called from Python,
compared with nn.Linear. Our weights lie as pack_model lays them, in large pages where the system has them. The reading loop
reads these very bytes.

All arms run in every round; a figure is the median of the rounds, a ratio the median of the rounds' ratios. For two threads
both cores must be idle.
"""

import ctypes
import importlib.util
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import harness, models
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
Arm = Callable[[int], object]  # threads -> one pass over all matrices
Ratios = dict[str, list[float]]


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
        self.free: Callable[[], object] = lambda: None  # of the last graph
        self.backend = pointer(self.cpu.ggml_backend_cpu_init())

    def build_graph(self, codes: Tensor, count: int, x: Tensor) -> tuple[Callable[[int], None], Callable[[], Tensor]]:
        """Return a function that multiplies x by so many copies of a matrix, and one that reads the first product."""
        from gguf import GGMLQuantizationType
        from gguf.quants import quantize

        (out, width), rows, pointer = codes.shape, x.shape[0], ctypes.c_void_p
        blocks = torch.from_numpy(quantize(codes.float().numpy(), GGMLQuantizationType.TQ2_0))

        class Parameters(ctypes.Structure):
            _fields_ = (("size", ctypes.c_size_t), ("memory", pointer), ("no_alloc", ctypes.c_bool))

        size = count * (out * width // 256 * 66 + 4 * rows * out + 4096) + 4 * rows * width + (1 << 22)
        context = pointer(self.base.ggml_init(Parameters(size, None, False)))

        def make_tensor(kind: int, inner: int, outer: int) -> ctypes.c_void_p:
            return pointer(self.base.ggml_new_tensor_2d(context, kind, ctypes.c_int64(inner), ctypes.c_int64(outer)))

        def copy_values(to: ctypes.c_void_p, values: Tensor) -> None:
            flat = values.contiguous()
            ctypes.memmove(self.base.ggml_get_data(to), flat.data_ptr(), flat.nbytes)

        inputs = make_tensor(0, width, rows)
        copy_values(inputs, x)
        graph = pointer(self.base.ggml_new_graph_custom(context, ctypes.c_size_t(count + 8), False))
        products = []
        for _ in range(count):
            weights = make_tensor(TQ2_0, width, out)
            copy_values(weights, blocks)
            products.append(pointer(self.base.ggml_mul_mat(context, weights, inputs)))
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


def call_layers(modules: nn.ModuleList, x: Tensor, threads: int) -> None:
    """Call modules from Python, one after the other."""
    torch.set_num_threads(threads)
    for module in modules:
        module(x)


def make_kernel_arms(layers: list[PackedLinear], x: Tensor) -> tuple[Arm, Arm]:
    """Return an arm of the kernels alone, and one that reads all weights, which lie side by side."""
    library, first = ternary.get_library(), layers[0]
    assert library is not None, "there is no C compiler"
    c: Any = library.c
    (rows, width), out, count = x.shape, first.out_features, len(layers)
    y = torch.empty(rows, out)
    matrix_list = [ternary.Matrix(layer.codes.data_ptr(), layer.scale.data_ptr(), out, width, 2) for layer in layers]
    matrices = (ternary.Matrix * count)(*matrix_list)

    def run_kernel(threads: int) -> None:
        if rows == 1:
            c.grokbit_row(matrices, count, x.data_ptr(), y.data_ptr(), threads)
        else:
            for matrix in matrix_list:
                c.grokbit_linear(ctypes.byref(matrix), x.data_ptr(), rows, y.data_ptr(), threads)

    def read_weights(threads: int) -> None:
        c.grokbit_read(first.codes.data_ptr(), count * first.codes.numel() // 8, threads)

    return run_kernel, read_weights


def make_ggml_arm(ggml: Ggml, layers: list[PackedLinear], x: Tensor) -> Arm:
    """Return an arm of ggml's products, once the first is checked to equal ours."""
    first = layers[0]
    codes = unpack(first.codes, first.out_features, first.in_features)
    compute, read_first = ggml.build_graph(codes, len(layers), x)
    compute(1)
    product = read_first()
    error = (product - first(x)).norm() / product.norm()
    assert error < 0.02, f"not the same product: {error}"  # ggml quantizes activations by 256, with scales in half precision
    return compute


def make_arms(out: int, width: int, rows: int, ggml: Ggml | None) -> dict[str, tuple[Arm, int]]:
    """Return all sides of one comparison, each with the number of its matrices."""
    count = COLD * 4 // (out * width) if rows == 1 else 4
    layers = [models.make_packed(out, width) for _ in range(count)]
    modules = nn.ModuleList(layers)
    move_to_huge_pages(modules)  # as pack_model does
    num_wide = min(count, COLD // (2 * out * width) + 1)
    wide = nn.ModuleList(nn.Linear(width, out, bias=False, dtype=torch.bfloat16) for _ in range(num_wide))
    x = torch.randn(rows, width)
    kernel, read = make_kernel_arms(layers, x)
    arms: dict[str, tuple[Arm, int]] = {
        "kernel": (kernel, count),
        "ours": (partial(call_layers, modules, x), count),
        "bf16": (partial(call_layers, wide, x.bfloat16()), num_wide),
    }
    if rows == 1:
        arms["read"] = read, count
    if ggml:
        arms["TQ2_0"] = make_ggml_arm(ggml, layers, x), count
    return arms


def measure(arm: Arm, count: int, threads: int, warm: bool) -> float:
    """Return the seconds a matrix. A warm arm runs once before, for prefill does not depend on memory."""
    if warm:
        arm(threads)
    return harness.make_arm(partial(arm, threads))() / count


def compare(shape: tuple[int, int, int], threads: list[int], rounds: int, ggml: Ggml | None, table: harness.Table) -> Ratios:
    """Add a row for each number of threads; return the ratios of time over ours, and of bandwidth."""
    rows, out, width = shape
    sides, ratios = make_arms(out, width, rows, ggml), Ratios()
    phase, work = ("decode", out * width / 4e9) if rows == 1 else ("prefill", 2e-9 * rows * out * width)
    titles = {"TQ2_0": f"{phase}: over TQ2_0", "bf16": f"{phase}: over bf16", "read": "decode: bandwidth"}
    for number in threads:
        times = harness.run_interleaved(
            {name: partial(measure, *side, number, rows > 1) for name, side in sides.items()}, rounds
        )
        kernel, layer = (statistics.median(times[name]) for name in ("kernel", "ours"))
        cells = [f"{1e6 * kernel:.0f}", f"{1e6 * layer:.0f}", f"{work / kernel:.1f}"]
        for name, title in titles.items():
            base = times["ours" if name == "bf16" else "kernel"]
            values = [harness.compare(times[name], base).median] if name in times else []
            ratios.setdefault(title, []).extend(values)
            cells.append(f"{values[0]:.2f}" if values else "-")
        table.add(f"{rows:>4} x {out}x{width}", f"{number}", *cells)
    if ggml:
        ggml.free()
    return ratios


def main() -> None:
    parser = harness.Parser(__doc__)
    parser.add_count("--rounds", 9, "rounds that count")
    parser.add_count("--threads", [1, 2], nargs="+")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    # glibc reuses freed blocks smaller than the largest it has seen. After this one outputs need no new pages.
    torch.empty(31 << 20, dtype=torch.uint8)
    ggml = Ggml() if harness.has_peer("TQ2_0", "llama-cpp-python gguf", "llama_cpp", "gguf") else None
    library = ternary.get_library()
    print(f"kernels: {next(iter(library.isas)) if library else 'none'}")
    titles = ("threads", "kernel, us", "layer, us", "GB/s, GOP/s", "over TQ2_0", "over bf16", "bandwidth")
    table = harness.Table("rows x layer", *titles, width=18)
    ratios = Ratios()
    for rows, rounds in ((1, args.rounds), (ROWS, min(args.rounds, 5))):
        for out, width in SHAPES:
            for name, values in compare((rows, out, width), args.threads, rounds, ggml, table).items():
                ratios.setdefault(name, []).extend(values)
    harness.finish({name: min(values) for name, values in ratios.items() if values}, {}, AT_LEAST)


if __name__ == "__main__":
    main()
