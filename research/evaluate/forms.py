"""The forms of a model that can be judged: as it was trained, packed, exported, or a folder of transformers.

Each becomes a module from a batch of samples to logits. An export is run by the client of its format.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from research.data.spec import Images, Tokens, Vectors, restore_shape
from research.evaluate.subjects import Subject
from research.export import gguf, onnx, safetensors
from research.export import torch as pt2
from research.export.layout import silence_libraries
from research.export.verify import run_client
from research.load import load_run
from research.models.hub import load_as_saved
from research.nn.packed import pack_model
from research.run_dir import parse_step, read_summary
from research.training.manifest import hash_file, read_manifest

Run = Callable[[Tensor], Tensor]
MAX_LOGITS = 1 << 24  # of one call of a client
NEEDS = {"hf": "transformers", "onnx": "onnxruntime", "gguf": "llama_cpp"}  # format -> its client, where that is an extra


class Client(nn.Module):
    """A program that is not torch, as a module."""

    def __init__(self, run: Run, dtype: torch.dtype) -> None:
        super().__init__()
        self.run, self.dtype = run, dtype

    def forward(self, x: Num[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Return the logits of a batch."""
        return self.run(x.cpu().to(self.dtype)).to(x.device)


@dataclass
class Form:
    """A model that can be judged."""

    label: str  # run | packed | export FORMAT | pretrained
    model: nn.Module
    shape: Tokens | Vectors | Images | None  # of the data that it was trained on; None: not known
    checkpoint: str = ""
    classes: list[str] = field(default_factory=list)
    is_on_host: bool = False  # it runs on the CPU alone
    max_batch: int | None = None  # samples of one call; None: any number
    data_digest: str = ""  # the start of that of the data that it was trained on

    @property
    def step(self) -> int | None:
        """The step of its checkpoint."""
        return parse_step(self.checkpoint)


def load_form(subject: Subject, packed: bool, shape: object) -> Form:
    """Return the form of a model; `shape` is of the data that it is judged on.

    Raise ValueError where it cannot be loaded, or its client is not installed.
    """
    if subject.kind == "export":
        return load_export(subject)
    if subject.kind == "pretrained":
        if not isinstance(shape, Tokens):
            raise ValueError(f"RUN={subject.word}: a model of transformers reads tokens, these data have {shape}")
        return Form("pretrained", load_as_saved(shape, str(subject.path)).eval().requires_grad_(False), None)
    trained = load_run(str(subject.path))
    sizes = summary.shape if (summary := read_summary(trained.folder)) else {}
    known = restore_shape(sizes) if sizes else trained.data.shape
    form = Form("run", trained.model, known, trained.checkpoint.name, list(summary.classes) if summary else [])
    form.data_digest = read_manifest(trained.checkpoint).identity.get("data", "")
    if packed:
        try:
            form.model = pack_model(trained.model)
        except ValueError as error:
            raise ValueError(f"--packed: RUN={subject.word}: {error}; leave --packed out for this run") from error
        form.label, form.is_on_host = "packed", True
    return form


def load_export(subject: Subject) -> Form:
    """Return an export with its client. Raise ValueError where a file was changed, or the client is not installed."""
    kind, sizes, folder = subject.report["format"], subject.report["model"], subject.path
    if kind not in CLIENTS:
        raise ValueError(f"RUN={subject.word}: exports of the format {kind} are not known; known: {', '.join(CLIENTS)}")
    if (name := NEEDS.get(kind)) and find_spec(name) is None:
        raise ValueError(f"RUN={subject.word}: its format {kind} needs {name}: pip install -e '.[{kind}]'")
    for file, facts in subject.report.get("files", {}).items():
        if not (folder / file).is_file() or hash_file(folder / file) != facts:
            raise ValueError(f"RUN={subject.word}: {file} is not what was exported and checked; export the run again")
    names = {"vocab": "vocab_size", "length": "seq_len", "classes": "num_classes"}
    fields = Tokens._fields if "vocab" in sizes else (*Vectors._fields, *Images._fields)
    renamed = {names.get(key, key): value for key, value in sizes.items()}
    shape = restore_shape({key: value for key, value in renamed.items() if key in fields})
    dtype = {Tokens: torch.int64, Images: torch.uint8, Vectors: torch.float32}[type(shape)]
    outputs = shape.seq_len * (shape.num_classes or shape.vocab_size) if isinstance(shape, Tokens) else shape.num_classes
    outputs *= shape.height * shape.width if isinstance(shape, Images) and shape.per_pixel else 1
    with silence_libraries():
        run = CLIENTS[kind](folder, dtype)
    classes, checkpoint = subject.report.get("class_names", []), str(subject.report.get("checkpoint", ""))
    # Each call of llama.cpp is a process: as many samples as possible share one.
    max_batch = max(1, MAX_LOGITS // outputs) if kind == "gguf" else None
    known = None if "vocab" in sizes and "name" in sizes else shape  # transformers' vocabularies are often rounded up
    return Form(f"export {kind}", Client(run, dtype), known, checkpoint, classes, True, max_batch)


def run_hf(folder: Path, dtype: torch.dtype) -> Run:
    """Return transformers with the folder's model, not compiled."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()

    def run(tokens: Tensor) -> Tensor:
        with silence_libraries(), torch.compiler.set_stance("force_eager"), torch.no_grad():
            return model(tokens, use_cache=False).logits  # type: ignore[no-any-return]

    return run


def run_onnx(folder: Path, dtype: torch.dtype) -> Run:
    """Return onnxruntime with the folder's file."""
    from onnxruntime import InferenceSession, SessionOptions

    settings = SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = torch.get_num_threads(), 3
    session = InferenceSession(folder / onnx.FILE, settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(["logits"], {name: x.numpy()})[0])


def run_torch(folder: Path, dtype: torch.dtype) -> Run:
    """Return the program of torch.export in the folder."""
    program = torch.export.load(folder / pt2.FILE).module()
    return lambda x: program(x)


def run_safetensors(folder: Path, dtype: torch.dtype) -> Run:
    """Return the reader in numpy that the layout is documented by."""
    reader = safetensors.open_reader(folder)
    return lambda tokens: torch.from_numpy(reader.compute_logits(tokens.numpy()))


def run_gguf(folder: Path, dtype: torch.dtype) -> Run:
    """Return llama.cpp with the folder's file, in a process of its own."""
    return lambda tokens: run_client(gguf.CLIENT, folder / gguf.FILE, tokens)[0]


CLIENTS: dict[str, Callable[[Path, torch.dtype], Run]] = {
    "hf": run_hf,
    "onnx": run_onnx,
    "torch": run_torch,
    "safetensors": run_safetensors,
    "gguf": run_gguf,
}
