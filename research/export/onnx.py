"""ONNX: one file for onnxruntime with two bits a weight; a session unpacks the weights once, when it loads."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Num
from torch import Tensor

from research.contracts import contract
from research.export.layout import Options, Source
from research.export.plain import read_codes, trace_model
from research.export.verify import Client, ClientResult
from research.files.silence import silence_libraries

MODULES = ("onnx", "onnxscript", "onnxruntime")
FILE, OPSET = "model.onnx", 20
MAX_PROTO_BYTES = 1_800_000_000  # a protocol buffer ends at 2 GB: tensors of larger models go into a second file


@contract
def write(source: Source, folder: Path, options: Options) -> list[str]:
    """Write model.onnx: int64 `tokens` [batch, seq] to float32 `logits` [batch, seq, vocab].

    Of images the input is uint8 `images` [batch, channels, height, width], of vectors float32 `vectors` [batch, features].
    """
    with silence_libraries():
        program = torch.onnx.export(
            trace_model(source),
            dynamo=True,
            optimize=False,  # the optimizer would unpack small weights
            opset_version=OPSET,
            input_names=[source.inputs[0]],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    model: Any = program.model_proto
    graph = model.graph
    # They hold paths and names of the machine that exported.
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    name_axes(graph)
    save(model, folder)
    return []


def name_axes(graph: Any) -> None:
    """Name the free axes of inputs and logits batch and seq; the exporter calls them s77 and the like."""
    axes = graph.input[0].type.tensor_type.shape.dim
    names = {axis.dim_param: name for axis, name in zip(axes, ("batch", "seq"), strict=False) if axis.dim_param}
    for part in (*graph.input, *graph.output, *graph.value_info):
        for axis in part.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = names.get(axis.dim_param, axis.dim_param)


@contract
def save(model: Any, folder: Path) -> None:
    """Save the model in one file or, above MAX_PROTO_BYTES, in two."""
    import onnx

    onnx.save(model, folder / FILE, save_as_external_data=model.ByteSize() > MAX_PROTO_BYTES, location=f"{FILE}.data")


@contract
def open_client(folder: Path) -> Client:
    """Return onnxruntime with the folder's file, on the CPU."""
    from onnxruntime import InferenceSession, SessionOptions

    settings = SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = torch.get_num_threads(), 3
    session = InferenceSession(folder / FILE, settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda inputs: torch.from_numpy(session.run(["logits"], {name: inputs.numpy()})[0])


@contract
def read(source: Source, folder: Path, tokens: Num[Tensor, "n ..."], options: Options) -> ClientResult:
    """Run the file with onnxruntime on the CPU, after onnx's own check of it."""
    import onnx
    from onnx import numpy_helper

    onnx.checker.check_model(folder / FILE, full_check=True)
    initializers = onnx.load(folder / FILE).graph.initializer
    tensors = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in initializers}
    client = open_client(folder)
    logits, single = client(tokens), client(tokens[:1, :1] if source.reads_tokens else tokens[:1])
    name, axes = ("one token alone", (1, 1)) if source.reads_tokens else ("one sample alone", (1,))
    checks = {name: single.shape[: len(axes)] == axes}
    return ClientResult("onnxruntime onnx", read_codes(tensors, source), logits, checks)
