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
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import harness
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
Arm = Callable[[int], float]  # threads -> seconds a matrix
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

    def build_graph(self, codes: list[Tensor], x: Tensor) -> tuple[Callable[[int], None], Callable[[], Tensor]]:
        """Return a function that multiplies x by every matrix, and one that reads the product with the first."""
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

        inputs = make_tensor(0, width, rows)
        copy_values(inputs, x)
        graph = pointer(self.base.ggml_new_graph_custom(context, ctypes.c_size_t(len(codes) + 8), False))
        products = []
        for matrix in codes:
            weights = make_tensor(TQ2_0, width, out)
            copy_values(weights, pack_tq2_0(matrix))
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


def pack_tq2_0(codes: Tensor) -> Tensor:
    """Return int8 codes in ggml's blocks of 256 inputs.

    Byte 32 h + m of a block has input 128 h + 32 l + m in its bit pair l; a scale of 1 follows.
    """
    pairs = (codes.view(-1, 2, 4, 32) + 1).to(torch.uint8) << torch.arange(0, 8, 2, dtype=torch.uint8).view(4, 1)
    scale = torch.ones(codes.numel() // 256, 1, dtype=torch.half).view(torch.uint8)
    return torch.cat((pairs.sum(2, dtype=torch.uint8).view(-1, 64), scale), 1)


def make_packed(out: int, width: int) -> PackedLinear:
    """Return a packed layer with random codes."""
    layer = PackedLinear(width, out, bias=False)
    layer.codes.random_(0, 3).mul_(0b01010101)
    layer.scale.fill_(1.0)
    return layer


def make_layer_arm(modules: nn.ModuleList, x: Tensor) -> Arm:
    """Return an arm that calls modules from Python."""

    def run(threads: int) -> float:
        torch.set_num_threads(threads)
        start = time.perf_counter()
        for module in modules:
            module(x)
        return (time.perf_counter() - start) / len(modules)

    return run


def make_kernel_arms(layers: list[PackedLinear], x: Tensor) -> tuple[Arm, Arm]:
    """Return an arm of the kernels alone, and one that reads all weights, which lie side by side."""
    library, first = ternary.get_library(), layers[0]
    assert library is not None, "there is no C compiler"
    c: Any = library.c
    (rows, width), out, count = x.shape, first.out_features, len(layers)
    y = torch.empty(rows, out)
    matrix_list = [ternary.Matrix(layer.codes.data_ptr(), layer.scale.data_ptr(), out, width, 2) for layer in layers]
    matrices = (ternary.Matrix * count)(*matrix_list)

    def run_kernel(threads: int) -> float:
        start = time.perf_counter()
        if rows == 1:
            c.grokbit_row(matrices, count, x.data_ptr(), y.data_ptr(), threads)
        else:
            for matrix in matrix_list:
                c.grokbit_linear(ctypes.byref(matrix), x.data_ptr(), rows, y.data_ptr(), threads)
        return (time.perf_counter() - start) / count

    def read_weights(threads: int) -> float:
        start = time.perf_counter()
        c.grokbit_read(first.codes.data_ptr(), count * first.codes.numel() // 8, threads)
        return (time.perf_counter() - start) / count

    return run_kernel, read_weights


def make_ggml_arm(ggml: Ggml, layers: list[PackedLinear], x: Tensor) -> Arm:
    """Return an arm of ggml's product of the same codes, once it is checked to be the same."""
    compute, read_first = ggml.build_graph([unpack(layer.codes, layer.out_features, layer.in_features) for layer in layers], x)
    compute(1)
    product = read_first()
    error = (product - layers[0](x)).norm() / product.norm()
    assert error < 0.02, f"not the same product: {error}"  # ggml quantizes activations by 256, with scales in half precision

    def run(threads: int) -> float:
        start = time.perf_counter()
        compute(threads)
        return (time.perf_counter() - start) / len(layers)

    return run


def make_arms(out: int, width: int, rows: int, ggml: Ggml | None) -> dict[str, Arm]:
    """Return all sides of one comparison."""
    count = COLD * 4 // (out * width) if rows == 1 else 4
    layers = [make_packed(out, width) for _ in range(count)]
    modules = nn.ModuleList(layers)
    move_to_huge_pages(modules)  # as pack_model does
    num_wide = min(count, COLD // (2 * out * width) + 1)
    wide = nn.ModuleList(nn.Linear(width, out, bias=False, dtype=torch.bfloat16) for _ in range(num_wide))
    x = torch.randn(rows, width)
    kernel, read = make_kernel_arms(layers, x)
    arms: dict[str, Arm] = {"kernel": kernel, "ours": make_layer_arm(modules, x), "bf16": make_layer_arm(wide, x.bfloat16())}
    if rows == 1:
        arms["read"] = read
    if ggml:
        arms["TQ2_0"] = make_ggml_arm(ggml, layers, x)
    return arms


def bind_threads(arm: Arm, threads: int, warm: bool) -> Callable[[], float]:
    """Return an arm for one number of threads; a warm one runs once before, for prefill does not depend on memory."""

    def measure() -> float:
        if warm:
            arm(threads)
        return arm(threads)

    return measure


def compare(shape: tuple[int, int, int], threads: list[int], rounds: int, ggml: Ggml | None, table: harness.Table) -> Ratios:
    """Add a row for each number of threads; return the ratios of time over ours, and of bandwidth."""
    rows, out, width = shape
    sides, ratios = make_arms(out, width, rows, ggml), Ratios()
    for number in threads:
        arms = {name: bind_threads(arm, number, warm=rows > 1) for name, arm in sides.items()}
        times = harness.run_interleaved(arms, rounds)
        ratio_by_arm = {
            name: harness.compare(times[name], times["ours" if name == "bf16" else "kernel"]).median
            for name in ("TQ2_0", "bf16", "read")
            if name in times
        }
        kernel, layer = (statistics.median(times[name]) for name in ("kernel", "ours"))
        work = out * width / 4e9 if rows == 1 else 2e-9 * rows * out * width
        cells = [f"{ratio_by_arm[name]:.2f}" if name in ratio_by_arm else "-" for name in ("TQ2_0", "bf16", "read")]
        microseconds = [f"{1e6 * seconds:.0f}" for seconds in (kernel, layer)]
        table.add(f"{rows:>4} x {out}x{width}", f"{number}", *microseconds, f"{work / kernel:.1f}", *cells)
        phase = "decode" if rows == 1 else "prefill"
        for name, ratio in ratio_by_arm.items():
            ratios.setdefault("decode: bandwidth" if name == "read" else f"{phase}: over {name}", []).append(ratio)
    if ggml:
        ggml.free()
    return ratios


def main() -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("--rounds", type=harness.make_count_parser(1), default=9, help="rounds that count")
    parser.add_argument("--threads", type=harness.make_count_parser(1), nargs="+", default=[1, 2])
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    # glibc reuses freed blocks smaller than the largest it has seen. After this one outputs need no new pages.
    torch.empty(31 << 20, dtype=torch.uint8)
    ggml = Ggml() if importlib.util.find_spec("llama_cpp") else None
    if ggml is None:
        print("TQ2_0 is not compared: pip install llama-cpp-python")
    library = ternary.get_library()
    print(f"kernels: {next(iter(library.isas)) if library else 'none'}")
    titles = ("threads", "kernel, us", "layer, us", "GB/s, GOP/s", "over TQ2_0", "over bf16", "bandwidth")
    table = harness.Table("rows x layer", *titles, width=18)
    ratios = Ratios()
    for rows, rounds in ((1, args.rounds), (ROWS, min(args.rounds, 5))):
        for out, width in SHAPES:
            for name, values in compare((rows, out, width), args.threads, rounds, ggml, table).items():
                ratios.setdefault(name, []).extend(values)
    harness.finish({name: min(values) for name, values in ratios.items()}, {}, AT_LEAST)


if __name__ == "__main__":
    main()
