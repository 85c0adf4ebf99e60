"""ONNX: one file for onnxruntime, two bits a weight in it; a session unpacks them once, when it loads."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from research.export.layout import Options, Source, silence_libraries
from research.export.plain import read_codes, trace_model
from research.export.verify import ClientResult

EXTRA, MODULES = "onnx", ("onnx", "onnxscript", "onnxruntime")
FILE, OPSET = "model.onnx", 20
MAX_PROTO_BYTES = 1_800_000_000  # bytes; a protocol buffer ends at 2 GB: above, tensors go into a file beside it


def write(source: Source, folder: Path, options: Options) -> list[str]:
    """model.onnx: int64 `tokens` [batch, seq] to float32 `logits` [batch, seq, vocab]."""
    with silence_libraries():
        program = torch.onnx.export(
            trace_model(source),
            dynamo=True,
            optimize=False,  # it would unpack what is small
            opset_version=OPSET,
            input_names=["tokens"],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    model: Any = program.model_proto
    graph = model.graph
    for each in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del each.metadata_props[:]
    save(model, folder)
    return []


def save(model: Any, folder: Path) -> None:
    """In one file or, where that would be too large, in two."""
    import onnx

    onnx.save(model, folder / FILE, save_as_external_data=model.ByteSize() > MAX_PROTO_BYTES, location=f"{FILE}.data")


def read(source: Source, folder: Path, tokens: Int[Tensor, "n seq"], options: Options) -> ClientResult:
    """By onnxruntime on the CPU; the file itself by the checker of onnx."""
    import onnx
    from onnx import numpy_helper
    from onnxruntime import InferenceSession, SessionOptions

    onnx.checker.check_model(folder / FILE, full_check=True)
    held = {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in onnx.load(folder / FILE).graph.initializer}
    settings = SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = torch.get_num_threads(), 3
    session = InferenceSession(folder / FILE, settings, providers=["CPUExecutionProvider"])
    logits = torch.from_numpy(session.run(["logits"], {"tokens": tokens.numpy()})[0])
    one = session.run(["logits"], {"tokens": tokens[:1, :1].numpy()})[0]
    return ClientResult("onnxruntime onnx", read_codes(held, source), logits, {"one token alone": one.shape[:2] == (1, 1)})
