"""torch.export: one .pt2 file with two bits a weight that `torch.export.load` runs without this package."""

import io
import json
from pathlib import Path

import torch
from jaxtyping import Num
from torch import Tensor

from research.contracts import contract
from research.export.layout import Options, Source
from research.export.plain import read_codes, trace_model
from research.export.verify import Client, ClientResult, run_client
from research.files.silence import silence_libraries

MODULES, FILE = (), "model.pt2"
CLIENT = """
import torch

torch.set_num_threads(threads)
tokens = torch.from_numpy(tokens)
is_text = tokens.dtype == torch.int64
model = torch.export.load(file).module()
with torch.no_grad():
    np.save(logits_path, model(tokens).numpy())
    single = model(tokens[:1, :1] if is_text else tokens[:1])
checks = {"one token alone" if is_text else "one sample alone": single.shape[: 1 + is_text].numel() == 1}
print(json.dumps(checks | {"without this package": "research" not in sys.modules}))
"""


@contract
def write(source: Source, folder: Path, options: Options) -> list[str]:
    """Write model.pt2: int64 tokens [batch, seq] to float32 logits [batch, seq, vocab]; other inputs as in ONNX."""
    buffer = io.BytesIO()  # on a full disk torch would end the process
    torch.export.save(trace_model(source), buffer)
    (folder / FILE).write_bytes(buffer.getbuffer())
    return []


@contract
def open_client(folder: Path) -> Client:
    """Return the folder's program, in this process."""
    with silence_libraries():
        program = torch.export.load(folder / FILE).module()
    return lambda inputs: program(inputs)


@contract
def read(source: Source, folder: Path, tokens: Num[Tensor, "n ..."], options: Options) -> ClientResult:
    """Run the file with torch alone, in a process of its own."""
    logits, output = run_client(CLIENT, folder / FILE, tokens)
    with silence_libraries():
        tensors = torch.export.load(folder / FILE).state_dict
    return ClientResult("torch", read_codes(tensors, source), logits, json.loads(output))
