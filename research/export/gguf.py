"""llama.cpp: one file of an architecture that it has.

Ternary layers are written as TQ2_0 (2.06 bits a weight), TQ1_0 (1.69) or F16.

Each block of 256 inputs has a scale in half precision. Where the architecture multiplies by a tensor `.scale` beside the
weight, that is 1, and the layer's scale stays exact in float32; elsewhere the block's scale is the layer's.
"""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from research.contracts import contract
from research.export.architectures import Architecture, choose_architecture, compute_rope_factors
from research.export.layout import Codes, Options, Source, quantize_layer, split_weight, spread_scale, to_codes
from research.export.nets import Net, describe_net
from research.export.verify import PROBE, SCALE_TOLERANCE, Client, ClientResult, run_client
from research.export.vocabulary import add_tokenizer, compute_expected
from research.models.hub import Hub

MODULES = ("gguf", "llama_cpp")
BLOCK_SIZE = 256  # inputs
CONTEXT_STEP = 256  # tokens: llama.cpp rounds the length of a context up to a multiple
HALF_TOLERANCE = 2**-11  # relative, of a number that is rounded to half precision
MAX_PROBE = 4096  # tokens
FILE = "model.gguf"
CLIENT = """
import ctypes
import llama_cpp
from llama_cpp import Llama

model = Llama(file, n_ctx=tokens.shape[1], logits_all=True, n_threads=threads, n_threads_batch=threads, verbose=False)
logits = np.empty((*tokens.shape, model.n_vocab()), np.float32)
for row, output in zip(tokens, logits):
    model.reset()
    model.eval(row.tolist())
    output[:] = model.scores[: len(row)]
np.save(logits_path, logits)
if model.metadata["tokenizer.ggml.model"] != "none":
    probed = model.tokenize(probe, add_bos=True)
    has_first = model.metadata["tokenizer.ggml.add_bos_token"] == "true"
    # The binding's own detokenize cuts a space after the first token, and drops tokens of more than 32 bytes.
    vocab, buffer = llama_cpp.llama_model_get_vocab(model.model), ctypes.create_string_buffer(len(probe) + 1)
    pieces = (llama_cpp.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, False) for token in probed[has_first:])
    print(json.dumps([probed, b"".join(buffer.raw[:size] for size in pieces) == probe]))
"""


def write(source: Source, folder: Path, options: Options) -> list[str]:
    """Write model.gguf; return warnings. Raise ValueError for a model that llama.cpp would load but compute differently."""
    source.require_format("gguf")
    net = describe_net(source)
    architecture = choose_architecture(source, net)
    kinds = choose_types(source, options)
    if options.embedding == "Q8_0" and net.get("hidden_size", "n_embd") % 32:
        raise ValueError(f"--embedding Q8_0: a width of {net.get('hidden_size', 'n_embd')} is no multiple of 32; give F16")
    from gguf import GGUFWriter

    writer = GGUFWriter(folder / FILE, architecture.name)
    add_settings(writer, source, net, architecture, next((kind for kind in kinds.values() if kind != "F16"), "F16"))
    add_tokenizer(writer, source)
    add_tensors(writer, source, net, architecture, kinds, options)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return list_warnings(source, architecture, kinds, options)


def choose_types(source: Source, options: Options) -> dict[str, str]:
    """Return the type of each ternary layer. Those whose blocks would not be full, or have several scales, are stored as F16.

    Raise ValueError for a setting that llama.cpp does not hold.
    """
    if not source.linears and options.type not in (None, "F16"):
        raise ValueError(f"--type {options.type} is for ternary weights, and RUN is in full precision; leave it out")
    wanted, kinds = options.type or "TQ2_0", {}
    for name, layer in source.linears.items():
        for setting, known in {"activation_bits": 8, "activation_granularity": "token"}.items():
            if (value := getattr(layer.quantizer, setting)) != known:
                fix = "use --format torch or onnx, which hold every ternary layer"
                raise ValueError(f"model.linear.{setting}={value}: --format gguf holds {known} only ({name}); {fix}")
        groups = layer.quantizer.granularity
        full = layer.in_features % BLOCK_SIZE == 0 and not (isinstance(groups, int) and groups % BLOCK_SIZE)
        kinds[name] = wanted if full else "F16"
    return kinds


def list_warnings(source: Source, architecture: Architecture, kinds: dict[str, str], options: Options) -> list[str]:
    """Return what a user of the file should know."""
    warnings = [] if source.run.tokenizer else ["the data is not text: the file has no tokenizer; give the model tokens"]
    length = source.max_seq_len
    if length % CONTEXT_STEP:
        what = f"llama.cpp rounds a context up to a multiple of {CONTEXT_STEP} tokens, and the model has {length} positions"
        kept = length > CONTEXT_STEP and not architecture.has_positions
        fix = f"n_ctx=0 gives {length - length % CONTEXT_STEP} of them" if kept else f"keep prompt and text within {length}"
        warnings.append(f"{what}; {fix}")
    f16_layers = [name for name, kind in kinds.items() if kind == "F16" and options.type != "F16"]
    if f16_layers:
        all_f16 = len(f16_layers) == len(kinds)
        which = "every layer is F16" if all_f16 else f"{len(f16_layers)} layers are F16, {f16_layers[0]} among them"
        dims = "model.dim and model.ffn_dim as"
        if isinstance(source.model, Hub) and source.model.folder:  # whose widths nobody can change
            dims = "a pretrained model whose widths are"
        fix = f"train with {dims} multiples of {BLOCK_SIZE}"
        warnings.insert(0, f"{options.type or 'TQ2_0'} has blocks of {BLOCK_SIZE} inputs, so {which}; {fix}")
    return warnings


def add_settings(writer: Any, source: Source, net: Net, architecture: Architecture, kind: str) -> None:
    """Add the sizes of the model."""
    from gguf import LlamaFileType

    dim, heads = net.get("hidden_size", "n_embd"), net.get("num_attention_heads", "n_head")
    head_dim = net.get("head_dim", default=dim // heads)
    writer.add_name(str(source.run.config.get("name", "grokbit")))
    writer.add_file_type(LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_vocab_size(net.config["vocab_size"])
    # Rounded down, n_ctx=0 stays within what was trained; below one step nothing does. Learnt positions are a tensor's rows.
    length = source.max_seq_len
    writer.add_context_length(length if architecture.has_positions else length // CONTEXT_STEP * CONTEXT_STEP or length)
    writer.add_embedding_length(dim)
    writer.add_block_count(net.get("num_hidden_layers", "n_layer"))
    writer.add_feed_forward_length(net.get("intermediate_size", "n_inner", default=4 * dim))
    writer.add_head_count(heads)
    writer.add_head_count_kv(net.get("num_key_value_heads", default=heads))
    eps = net.get("rms_norm_eps", "layer_norm_epsilon")
    (writer.add_layer_norm_eps if architecture.has_positions else writer.add_layer_norm_rms_eps)(eps)
    if not architecture.has_positions:
        writer.add_rope_dimension_count(head_dim)
        writer.add_rope_freq_base(net.get("rope_parameters", default=net.config)["rope_theta"])
    if head_dim * heads != dim:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)


def add_tensors(
    writer: Any, source: Source, net: Net, architecture: Architecture, kinds: dict[str, str], options: Options
) -> None:
    """Add all tensors: norms, biases and positions in float32, other matrices in full precision as F16."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    def add(name: str, tensor: Tensor, kind: str) -> None:
        stored = GGMLQuantizationType[kind]
        writer.add_tensor(name, quantize(tensor.float().contiguous().numpy(), stored), raw_dtype=stored)

    ternary = {net.names[name]: name for name in source.linears}
    for key, tensor in net.tensors.items():
        target = architecture.map_name(key, net)
        if owner := ternary.get(key.removesuffix(".weight")):
            codes, scale = quantize_layer(source.linears[owner])
            split = architecture.has_scales and scale.numel() == 1
            weight = codes.float() if split else codes * spread_scale(scale, tensor)
            add(target, architecture.adapt(key, weight, net), kinds[owner])
            if split:
                add(f"{target.removesuffix('.weight')}.scale", scale.reshape(1), "F32")
            continue
        is_table = target in ("token_embd.weight", "output.weight")
        kind = options.embedding if is_table else "F32" if tensor.ndim == 1 or target == "position_embd.weight" else "F16"
        add(target, architecture.adapt(key, tensor, net), kind)
    if (factors := compute_rope_factors(source)) is not None:
        add("rope_freqs.weight", factors, "F32")


def build_probe(source: Source, tokens: Int[Tensor, "n seq"]) -> str:
    """Return a text on which tokenizers part: characters of all kinds, then held-out text."""
    if not source.run.tokenizer:
        return PROBE
    return PROBE + source.run.tokenizer.decode(tokens.flatten()[:MAX_PROBE].tolist()).decode(errors="ignore").replace("\0", "")


@contract
def open_client(folder: Path) -> Client:
    """Return llama.cpp with the folder's file, in a process of its own for each call."""
    return lambda tokens: run_client(CLIENT, folder / FILE, tokens)[0]


@contract
def read(source: Source, folder: Path, tokens: Int[Tensor, "n seq"], options: Options) -> ClientResult:
    """Run the file with llama.cpp's Python binding in a process of its own: it can crash on files that it half supports."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    probe = build_probe(source, tokens)
    logits, output = run_client(CLIENT, folder / FILE, tokens, probe)
    tensors = {tensor.name: tensor for tensor in GGUFReader(folder / FILE).tensors}
    net = describe_net(source)
    architecture, codes, is_exact = choose_architecture(source, net), Codes(), True
    for name, layer in source.linears.items():
        key = f"{net.names[name]}.weight"
        target = architecture.map_name(key, net)
        stored = tensors[target]
        values = torch.from_numpy(dequantize(stored.data, stored.tensor_type).copy())
        values = architecture.restore(key, values, net)
        if own := tensors.get(f"{target.removesuffix('.weight')}.scale"):
            codes[name] = to_codes(values), torch.from_numpy(own.data.copy())
        else:
            codes[name], is_exact = split_weight(values, quantize_layer(layer)[1]), False
    expected = compute_expected(source, probe)
    checks = {"tokenizer": json.loads(output) == expected} if expected else {}
    tolerance = SCALE_TOLERANCE if is_exact else HALF_TOLERANCE
    return ClientResult("llama-cpp-python gguf", codes, logits, checks, tolerance)
