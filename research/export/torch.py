"""torch.export: one .pt2 that `torch.export.load` runs without this package; two bits a weight in the file."""

import io
import json
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from research.export.layout import Options, Source, quiet
from research.export.plain import codes_of, traced
from research.export.verify import Seen, apart

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
    torch.export.save(traced(source), whole)
    (folder / FILE).write_bytes(whole.getbuffer())
    return []


def read(source: Source, folder: Path, tokens: Int[Tensor, "n seq"], options: Options) -> Seen:
    """By torch alone, in a process of its own."""
    logits, told = apart(CLIENT, folder / FILE, tokens)
    with quiet():
        held = torch.export.load(folder / FILE).state_dict
    return Seen("torch", codes_of(held, source), logits, json.loads(told))
