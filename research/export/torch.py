"""torch.export: one .pt2 that `torch.export.load` runs without this package; two bits a weight in the file."""

import io
import json
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from research.export.layout import Options, Source, silence_libraries
from research.export.plain import read_codes, trace_model
from research.export.verify import ClientResult, run_client

EXTRA, MODULES = "", ()
FILE = "model.pt2"
CLIENT = """
import json, sys, warnings
import numpy as np
import torch

warnings.simplefilter("ignore")
file, given, asked, threads, probe = sys.argv[1:]
torch.set_num_threads(int(threads))
tokens = torch.from_numpy(np.load(given))
model = torch.export.load(file).module()
with torch.no_grad():
    np.save(asked, model(tokens).numpy())
    one = model(tokens[:1, :1])
print(json.dumps({"one token alone": list(one.shape[:2]) == [1, 1], "without this package": "research" not in sys.modules}))
"""


def write(source: Source, folder: Path, options: Options) -> list[str]:
    """model.pt2: int64 tokens [batch, seq] to float32 logits [batch, seq, vocab]."""
    whole = io.BytesIO()  # on a full disk torch would end the process
    torch.export.save(trace_model(source), whole)
    (folder / FILE).write_bytes(whole.getbuffer())
    return []


def read(source: Source, folder: Path, tokens: Int[Tensor, "n seq"], options: Options) -> ClientResult:
    """By torch alone, in a process of its own."""
    logits, told = run_client(CLIENT, folder / FILE, tokens)
    with silence_libraries():
        held = torch.export.load(folder / FILE).state_dict
    return ClientResult("torch", read_codes(held, source), logits, json.loads(told))
