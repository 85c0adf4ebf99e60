"""The forms of a model that can be judged: as it was trained, packed, exported, or a folder of transformers.

Each becomes a module from a batch of samples to logits. An export is run by the client of its format.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from research.data.spec import Images, Tokens, Vectors, restore_shape
from research.evaluate.refs import ModelRef
from research.export.layout import FORMATS
from research.export.verify import Client, import_format
from research.load import load_run
from research.models.hub import load_as_saved
from research.models.transformer import Transformer
from research.nn.packed import pack_model
from research.run_dir import parse_step, read_summary
from research.training.manifest import hash_file, read_manifest

MAX_LOGITS = 1 << 24  # of one call of a client


class ClientModel(nn.Module):
    """A client as a module."""

    def __init__(self, client: Client, dtype: torch.dtype) -> None:
        super().__init__()
        self.client, self.dtype = client, dtype

    def forward(self, x: Num[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Return the logits of a batch."""
        return self.client(x.cpu().to(self.dtype)).to(x.device)


@dataclass
class LoadedModel:
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


def load_model(ref: ModelRef, packed: bool, shape: object) -> LoadedModel:
    """Return the form of a model; `shape` is of the data that it is judged on.

    Raise ValueError where it cannot be loaded, or its client is not installed.
    """
    if ref.kind == "export":
        return load_export(ref)
    if ref.kind == "pretrained":
        if not isinstance(shape, Tokens):
            raise ValueError(f"RUN={ref.word}: a model of transformers reads tokens, these data have {shape}")
        return LoadedModel("pretrained", load_as_saved(shape, str(ref.path)).eval().requires_grad_(False), None)
    trained = load_run(str(ref.path))
    sizes = summary.shape if (summary := read_summary(trained.folder)) else {}
    known = restore_shape(sizes) if sizes else trained.data.shape
    loaded = LoadedModel("run", trained.model, known, trained.checkpoint.name, list(summary.classes) if summary else [])
    loaded.data_digest = read_manifest(trained.checkpoint).identity.get("data", "")
    if packed:
        try:
            loaded.model = pack_model(trained.model)
        except ValueError as error:
            raise ValueError(f"--packed: RUN={ref.word}: {error}; leave --packed out for this run") from error
        loaded.label, loaded.is_on_host = "packed", True
    return loaded


def load_export(ref: ModelRef) -> LoadedModel:
    """Return an export with its client. Raise ValueError where a file was changed, or the client is not installed."""
    kind, sizes, folder = ref.report["format"], ref.report["model"], ref.path
    if kind not in FORMATS[Transformer]:
        raise ValueError(
            f"RUN={ref.word}: exports of the format {kind} are not known; known: {', '.join(FORMATS[Transformer])}"
        )
    module = import_format(kind, f"RUN={ref.word}: its format {kind}")
    for file, facts in ref.report.get("files", {}).items():
        if not (folder / file).is_file() or hash_file(folder / file) != facts:
            raise ValueError(f"RUN={ref.word}: {file} is not what was exported and checked; export the run again")
    names = {"vocab": "vocab_size", "length": "seq_len", "classes": "num_classes"}
    fields = Tokens._fields if "vocab" in sizes else (*Vectors._fields, *Images._fields)
    renamed = {names.get(key, key): value for key, value in sizes.items()}
    shape = restore_shape({key: value for key, value in renamed.items() if key in fields})
    dtype = {Tokens: torch.int64, Images: torch.uint8, Vectors: torch.float32}[type(shape)]
    outputs = shape.seq_len * (shape.num_classes or shape.vocab_size) if isinstance(shape, Tokens) else shape.num_classes
    outputs *= shape.height * shape.width if isinstance(shape, Images) and shape.per_pixel else 1
    classes, checkpoint = ref.report.get("class_names", []), str(ref.report.get("checkpoint", ""))
    # Each call of llama.cpp is a process: as many samples as possible share one.
    max_batch = max(1, MAX_LOGITS // outputs) if kind == "gguf" else None
    known = None if "vocab" in sizes and "name" in sizes else shape  # transformers' vocabularies are often rounded up
    client = ClientModel(module.open_client(folder), dtype)
    return LoadedModel(f"export {kind}", client, known, checkpoint, classes, True, max_batch, ref.report.get("data", ""))
