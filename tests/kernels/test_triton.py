"""The Triton kernel gives the same bits as torch: on a GPU, or in Triton's interpreter.

The interpreter accepts more than the compiler, so all kernels are compiled too, which needs no GPU.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from program import ROOT

PROGRAM = """
import torch
from research.nn.bitlinear import BitLinear
from research.nn.packed import PackedLinear
from research.nn.quantize import TERNARY
from research.nn.tiles import ternary_linear
from research.kernels import triton_ternary

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
for rows, width, out in ((1, 64, 64), (1, 200, 70), (3, 7, 5), (17, 130, 100), (70, 65, 33)):
    layer = PackedLinear.from_bitlinear(BitLinear(width, out, bias=False)).to(device)
    x = torch.randn(rows, width, device=device) * 10
    x[0, 0] = float("nan") if rows == 3 else 0.0
    expected = ternary_linear(x, layer.codes, layer.scale)
    y = triton_ternary.ternary_linear(*TERNARY.quantize_activation(x), layer.codes, layer.scale)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    assert y.isnan().any() == (rows == 3)
    if device == "cuda":
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(layer(x.half()), ternary_linear(x.half(), layer.codes, layer.scale), equal_nan=True)
print("compared")
"""

COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from research.kernels import triton_ternary
from research.kernels import triton_adamw

floats, longs = "*fp32", "*i64"
ternary = {"q": "*i8", "codes": "*u8", "x_scale": floats, "w_scale": floats, "y": floats}
ternary |= {"rows": "i32", "out": "i32", "width": "i32"}
adamw = {"table": longs, "numbers": floats, "pieces": longs}
sizes = {"chunk": triton_adamw.CHUNK, "block": triton_adamw.BLOCK}
for kernel, types, fixed in (
    (triton_ternary._kernel, ternary, {"tiles": 3, "many": 16, "outs": 64, "ins": 64}),
    (triton_ternary._kernel, ternary, {"tiles": 3, "many": 64, "outs": 64, "ins": 64}),
    (triton_adamw._kernel, adamw, {"found_inf": None} | sizes),
    (triton_adamw._kernel, adamw | {"found_inf": floats}, sizes),
):
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    compiled = triton.compile(ASTSource(kernel, signature, constexprs=fixed), target=GPUTarget("cuda", 80, 32))
    assert "ptx" in compiled.asm
print("compiled")
"""
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install triton"
)


def run_python(program: str, interpret: bool) -> str:
    """Return what a program prints in its own process: Triton reads the source of kernels, which beartype would hide."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
    environment["TRITON_INTERPRET"] = "1" if interpret else "0"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=200)
    return done.stdout.strip() or done.stderr


@needs_triton
def test_triton_gives_the_same_bits() -> None:
    assert run_python(PROGRAM, interpret=not torch.cuda.is_available()) == "compared"


@needs_triton
def test_the_kernels_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert run_python(COMPILED, interpret=False) == "compiled"
