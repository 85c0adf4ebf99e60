"""A packed ternary layer against ggml's TQ2_0 (llama.cpp) and a bf16 nn.Linear: one row (decode) and 512 (prefill).

    python -m benchmarks.ternary_matmul [--rounds 9] [--threads 1 2]

Decode reads every weight once, so memory bounds it. Each round goes through distinct matrices of 0.45 GB, more than any
cache holds. Prefill multiplies 512 rows with up to four of the matrices. For two threads both cores must be idle.

`kernel` is C and is compared with C: ggml's graph and the loop that only reads. One row goes through all matrices in one
call, as a token does through a model; ggml's graph starts its threads once too. `layer` is PackedLinear called from Python,
compared with nn.Linear. Our weights lie as pack_model lays them, in large pages where the system has them. The reading loop
reads these very bytes.
"""

import ctypes
import importlib.util
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import harness, models
from research.contracts import contract
from research.kernels import ternary
from research.nn.packed import PackedLinear, move_to_huge_pages
from research.nn.tiles import unpack

SHAPES = [(2048, 2048), (4096, 4096), (4096, 11008)]  # outputs, inputs
COLD, ROWS = 450_000_000, 512  # bytes of the matrices of a round; rows of a prefill
F32, TQ2_0 = 0, 35  # ggml's numbers of the types
Pointer = ctypes.c_void_p
AT_LEAST = {
    "decode: bandwidth": 0.8,
    "decode: over TQ2_0": 1.7,
    "decode: over bf16": 4.0,
    "prefill: over TQ2_0": 4.0,
    "prefill: over bf16": 2.0,
}
Arm = Callable[[int], object]  # threads -> one pass over all matrices


class Ggml:
    """TQ2_0 products through ggml's own C interface, as llama-cpp-python ships it."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("llama_cpp")
        assert spec is not None
        assert spec.origin is not None
        library, suffix = Path(spec.origin).parent / "lib", "dylib" if sys.platform == "darwin" else "so"
        self.base = ctypes.CDLL(str(library / f"libggml-base.{suffix}"))
        self.cpu = ctypes.CDLL(str(library / f"libggml-cpu.{suffix}"))
        for name in ("ggml_init", "ggml_new_tensor_2d", "ggml_mul_mat", "ggml_new_graph_custom", "ggml_get_data"):
            getattr(self.base, name).restype = Pointer
        self.cpu.ggml_backend_cpu_init.restype = Pointer
        self.free: Callable[[], object] = lambda: None  # of the last graph
        self.backend = Pointer(self.cpu.ggml_backend_cpu_init())

    @contract
    def make_arm(self, layers: list[PackedLinear], x: Tensor) -> Arm:
        """Return an arm of as many products as there are layers, once the first is checked to equal ours."""
        from gguf import GGMLQuantizationType
        from gguf.quants import quantize

        first, rows, count = layers[0], x.shape[0], len(layers)
        out, width = first.out_features, first.in_features
        codes = unpack(first.codes, out, width)
        blocks = torch.from_numpy(quantize(codes.float().numpy(), GGMLQuantizationType.TQ2_0))

        class Parameters(ctypes.Structure):
            _fields_ = (("size", ctypes.c_size_t), ("memory", Pointer), ("no_alloc", ctypes.c_bool))

        size = count * (out * width // 256 * 66 + 4 * rows * out + 4096) + 4 * rows * width + (1 << 22)
        context = Pointer(self.base.ggml_init(Parameters(size, None, False)))

        def make_tensor(kind: int, outer: int, values: Tensor) -> ctypes.c_void_p:
            tensor = Pointer(self.base.ggml_new_tensor_2d(context, kind, ctypes.c_int64(width), ctypes.c_int64(outer)))
            flat = values.contiguous()
            ctypes.memmove(self.base.ggml_get_data(tensor), flat.data_ptr(), flat.nbytes)
            return tensor

        inputs = make_tensor(F32, rows, x)
        graph = Pointer(self.base.ggml_new_graph_custom(context, ctypes.c_size_t(count + 8), False))
        products = [Pointer(self.base.ggml_mul_mat(context, make_tensor(TQ2_0, out, blocks), inputs)) for _ in layers]
        for product in products:
            self.base.ggml_build_forward_expand(graph, product)

        def compute(threads: int) -> None:
            self.cpu.ggml_backend_cpu_set_n_threads(self.backend, threads)
            assert self.base.ggml_backend_graph_compute(self.backend, graph) == 0

        self.free = lambda: self.base.ggml_free(context)
        compute(1)
        y = torch.empty(rows, out)
        ctypes.memmove(y.data_ptr(), self.base.ggml_get_data(products[0]), y.nbytes)
        error = (y - first(x)).norm() / y.norm()
        # ggml quantizes activations by 256, with scales in half precision.
        assert error < 0.02, f"not the same product: {error}"
        return compute


def call_layers(modules: nn.ModuleList, x: Tensor, threads: int) -> None:
    """Call modules from Python, one after the other."""
    torch.set_num_threads(threads)
    for module in modules:
        module(x)


def make_arms(out: int, width: int, rows: int, ggml: Ggml | None) -> dict[str, tuple[Arm, int]]:
    """Return all sides of one comparison, each with the number of its matrices."""
    library = ternary.get_library()
    assert library is not None, "there is no C compiler"
    c: Any = library.c
    count = COLD * 4 // (out * width) if rows == 1 else 4
    layers = [models.make_packed(out, width) for _ in range(count)]
    modules = nn.ModuleList(layers)
    move_to_huge_pages(modules)  # as pack_model does: the weights lie side by side
    num_wide = min(count, COLD // (2 * out * width) + 1)
    wide = nn.ModuleList(nn.Linear(width, out, bias=False, dtype=torch.bfloat16) for _ in range(num_wide))
    x, y, codes = torch.randn(rows, width), torch.empty(rows, out), layers[0].codes
    matrix_list = [ternary.Matrix(layer.codes.data_ptr(), layer.scale.data_ptr(), out, width, 2) for layer in layers]
    matrices = (ternary.Matrix * count)(*matrix_list)

    def run_kernel(threads: int) -> None:
        if rows == 1:
            c.grokbit_row(matrices, count, x.data_ptr(), y.data_ptr(), threads)
        else:
            for matrix in matrix_list:
                c.grokbit_linear(ctypes.byref(matrix), x.data_ptr(), rows, y.data_ptr(), threads)

    arms: dict[str, tuple[Arm, int]] = {
        "kernel": (run_kernel, count),
        "ours": (partial(call_layers, modules, x), count),
        "bf16": (partial(call_layers, wide, x.bfloat16()), num_wide),
    }
    if rows == 1:
        arms["read"] = partial(c.grokbit_read, codes.data_ptr(), count * codes.numel() // 8), count
    if ggml:
        arms["TQ2_0"] = ggml.make_arm(layers, x), count
    return arms


@contract
def measure(arm: Arm, count: int, threads: int, warm: bool) -> float:
    """Return the seconds a matrix. A warm arm runs once before, for prefill does not depend on memory."""
    if warm:
        arm(threads)
    return harness.make_arm(partial(arm, threads))() / count


@contract
def compare(
    shape: tuple[int, int], rows: int, threads: list[int], rounds: int, ggml: Ggml | None, table: harness.Table
) -> Iterator[tuple[str, float]]:
    """Add a row for each number of threads; yield the ratios of time over ours, and of bandwidth, each with its title."""
    out, width = shape
    sides = make_arms(out, width, rows, ggml)
    phase, work = ("decode", out * width / 4e9) if rows == 1 else ("prefill", 2e-9 * rows * out * width)
    bases = {"TQ2_0": "kernel", "bf16": "ours", "read": "kernel"}
    titles = {"TQ2_0": f"{phase}: over TQ2_0", "bf16": f"{phase}: over bf16", "read": "decode: bandwidth"}
    for number in threads:
        arms = {name: partial(measure, *side, number, rows > 1) for name, side in sides.items()}
        times = harness.run_interleaved(arms, rounds)
        kernel, layer = (statistics.median(times[name]) for name in ("kernel", "ours"))
        ratios = {name: harness.compare(times[name], times[base]).median for name, base in bases.items() if name in times}
        cells = [f"{1e6 * kernel:.0f}", f"{1e6 * layer:.0f}", f"{work / kernel:.1f}"]
        cells += [f"{ratios[name]:.2f}" if name in ratios else "-" for name in titles]
        table.add(f"{rows:>4} x {out}x{width}", number, *cells)
        yield from ((titles[name], ratio) for name, ratio in ratios.items())
    if ggml:
        ggml.free()


@contract
def main(rounds: int, threads: list[int]) -> harness.Results:
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    # glibc reuses freed blocks smaller than the largest it has seen. After this one outputs need no new pages.
    torch.empty(31 << 20, dtype=torch.uint8)
    ggml = Ggml() if harness.has_peer("TQ2_0", "llama-cpp-python gguf", "llama_cpp", "gguf") else None
    library = ternary.get_library()
    print(f"kernels: {next(iter(library.isas)) if library else 'none'}")
    titles = ("threads", "kernel, us", "layer, us", "GB/s, GOP/s", "over TQ2_0", "over bf16", "bandwidth")
    table, lowest = harness.Table("rows x layer", *titles, width=18), dict[str, float]()
    for rows, rounds_of_rows in ((1, rounds), (ROWS, min(rounds, 5))):
        for shape in SHAPES:
            for title, ratio in compare(shape, rows, threads, rounds_of_rows, ggml, table):
                lowest[title] = min(ratio, lowest.get(title, ratio))
    return lowest


if __name__ == "__main__":
    harness.run(main, __doc__, {}, AT_LEAST, rounds=9, threads=harness.take_count([1, 2], nargs="+"))
