"""The GPU's kernel gives the bits of the torch path: on a GPU, or without one in Triton's interpreter."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import torch
from research.nn.bitlinear import BitLinear
from research.nn.packed import PackedLinear
from research.nn.tiles import ternary_linear
from research.nn import triton_ternary

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
for rows, width, out in ((1, 64, 64), (1, 200, 70), (3, 7, 5), (17, 130, 100), (70, 65, 33)):
    layer = PackedLinear.of(BitLinear(width, out, bias=False)).to(device)
    x = torch.randn(rows, width, device=device) * 10
    x[0, 0] = float("nan") if rows == 3 else 0.0
    y, expected = triton_ternary.ternary_linear(x, layer.codes, layer.step), ternary_linear(x, layer.codes, layer.step)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    assert y.isnan().any() == (rows == 3)
    if device == "cuda":
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(layer(x.half()), ternary_linear(x.half(), layer.codes, layer.step), equal_nan=True)
print("compared")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install triton")
def test_triton_gives_the_same_bits() -> None:
    """In a process of its own: Triton reads the source of its kernels, which the checks of types would hide."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=200)
    assert done.stdout.strip() == "compared", done.stderr
