"""llama.cpp: one file of its architecture `bitnet`, ternary layers as TQ2_0 (2.06 bits a weight), TQ1_0 (1.69) or F16.

Each block of 256 inputs has a scale in half precision, which is 1 here. The layer's scale is a float32 tensor `.scale` beside
the weight, and llama.cpp multiplies by it. Whatever the file says, llama.cpp computes SiLU and a tied head.
"""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from research.export.layout import Codes, Options, Source, to_codes
from research.export.verify import PROBE, ClientResult, run_client

MODULES = ("gguf", "llama_cpp")
BLOCK_SIZE = 256  # inputs
CONTEXT_STEP = 256  # tokens: llama.cpp rounds the length of a context up to a multiple
FILE = "model.gguf"
CLIENT = """
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
    print(json.dumps([probed, model.detokenize(probed) == probe]))
"""


def write(source: Source, folder: Path, options: Options) -> list[str]:
    """Write model.gguf; return warnings. Raise ValueError for a model that llama.cpp would load but compute differently."""
    source.require_bitnet("gguf", "llama.cpp's bitnet")
    numbers = source.architecture
    fix = "use --format hf, or train with model=bitnet"
    if numbers["act"] != "silu":
        raise ValueError(f"model.activation={numbers['act']}: llama.cpp's bitnet loads such a file but computes SiLU; {fix}")
    if not numbers["tied"]:
        raise ValueError(f"model.tie_embeddings=false: llama.cpp's bitnet always uses the embedding as the head; {fix}")
    if options.embedding == "Q8_0" and numbers["dim"] % 32:
        raise ValueError(f"--embedding Q8_0: model.dim={numbers['dim']} is not a multiple of 32; give F16")
    if (tokenizer := source.run.tokenizer) and not tokenizer.is_byte_level:
        raise ValueError(f"llama.cpp's tokenizer has an alphabet of bytes, {tokenizer.name} has none; use --format hf")
    from gguf import GGUFWriter

    # The types with blocks need full ones: layers of another width are stored as F16.
    layers = source.linears.items()
    f16_layers = [name for name, layer in layers if options.type != "F16" and layer.in_features % BLOCK_SIZE]
    all_f16 = len(f16_layers) == len(layers)
    writer = GGUFWriter(folder / FILE, "bitnet")
    _add_settings(writer, source, "F16" if all_f16 else options.type)
    _add_tensors(writer, source, options, f16_layers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    warnings = [] if source.run.is_text else ["the data is not text: the file has no tokenizer; give the model tokens"]
    length = numbers["length"]
    if length % CONTEXT_STEP:
        what = f"llama.cpp rounds a context up to a multiple of {CONTEXT_STEP} tokens, and the model was trained on {length}"
        kept = f"n_ctx=0 gives {length - length % CONTEXT_STEP} of them" if length > CONTEXT_STEP else ""
        warnings.append(f"{what}; {kept or f'keep prompt and text within {length}'}")
    if f16_layers:
        which = "every layer is F16" if all_f16 else f"{len(f16_layers)} layers are F16, {f16_layers[0]} among them"
        fix = f"train with model.dim and model.ffn_dim multiples of {BLOCK_SIZE}"
        warnings.insert(0, f"{options.type} has blocks of {BLOCK_SIZE} inputs, so {which}; {fix}")
    return warnings


def _add_settings(writer: Any, source: Source, kind: str) -> None:
    """Add the sizes of the model and, for text, a tokenizer of bytes."""
    from gguf import LlamaFileType, TokenType

    numbers = source.architecture
    writer.add_name(str(source.run.config.get("name", "grokbit")))
    writer.add_file_type(LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_vocab_size(numbers["vocab"])
    # Rounded down, n_ctx=0 stays within what was trained; below one step nothing does.
    writer.add_context_length(numbers["length"] // CONTEXT_STEP * CONTEXT_STEP or numbers["length"])
    writer.add_embedding_length(numbers["dim"])
    writer.add_block_count(numbers["depth"])
    writer.add_feed_forward_length(numbers["hidden"])
    writer.add_head_count(numbers["heads"])
    writer.add_head_count_kv(numbers["kv_heads"])
    writer.add_layer_norm_rms_eps(numbers["eps"])
    writer.add_rope_dimension_count(numbers["dim"] // numbers["heads"])
    writer.add_rope_freq_base(numbers["rope_base"])
    if not (tokenizer := source.run.tokenizer):
        writer.add_tokenizer_model("none")
        return
    library = json.loads(tokenizer.to_library().to_str())
    special = {token["id"] for token in library["added_tokens"] if token["special"]}
    names = {index: token for token, index in tokenizer.to_library().get_vocab(with_added_tokens=True).items()}
    # The other tokenizer of bytes, "llama", does not do: there a space and the character U+2581 are the same.
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([names.get(index, f"<unused {index}>") for index in range(tokenizer.vocab_size)])
    kinds = (TokenType.CONTROL if index in special else TokenType.NORMAL for index in range(tokenizer.vocab_size))
    writer.add_token_types(list(kinds))
    # One merge is required. These characters stand for no byte, so it never applies.
    merges = [" ".join(pair) for pair in library["model"]["merges"]]
    writer.add_token_merges(merges or ["\u2581 \u2581"])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id, writer.add_unk_token_id):
        add(tokenizer.end)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


def _add_tensors(writer: Any, source: Source, options: Options, f16_layers: list[str]) -> None:
    """Add all tensors; the layers in `f16_layers`, whose inputs do not fill blocks, in half precision."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    def add(name: str, tensor: Tensor, kind: str) -> None:
        stored = GGMLQuantizationType[kind]
        writer.add_tensor(name, quantize(tensor.float().numpy(), stored), raw_dtype=stored)

    quantized = source.compute_codes()
    add("token_embd.weight", source.model.embed.weight, options.embedding)
    add("output_norm.weight", source.model.norm.weight, "F32")
    for name, target in source.map_modules("blk", 1).items():
        if name in quantized:
            codes, scale = quantized[name]
            add(f"{target}.weight", codes, "F16" if name in f16_layers else options.type)
            add(f"{target}.scale", scale.reshape(1), "F32")
        else:
            add(f"{target}.weight", source.model.get_submodule(name).get_parameter("weight"), "F32")


def read(source: Source, folder: Path, tokens: Int[Tensor, "n seq"], options: Options) -> ClientResult:
    """Run the file with llama.cpp's Python binding in a process of its own: it can crash on files that it half supports."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    logits, output = run_client(CLIENT, folder / FILE, tokens)
    tensors = {tensor.name: tensor for tensor in GGUFReader(folder / FILE).tensors}
    codes: Codes = {}
    targets = source.map_modules("blk", 1)
    for name in source.linears:
        weight, scale = (tensors[f"{targets[name]}.{part}"] for part in ("weight", "scale"))
        values = torch.from_numpy(dequantize(weight.data, weight.tensor_type).copy())
        codes[name] = to_codes(values), torch.from_numpy(scale.data.copy())
    expected = [tokenizer.encode([PROBE.encode()])[0].tolist(), True] if (tokenizer := source.run.tokenizer) else None
    checks = {"tokenizer": json.loads(output) == expected} if expected else {}
    return ClientResult("llama-cpp-python gguf", codes, logits, checks)
