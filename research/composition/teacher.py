"""The teacher of a distillation: where it is, and what its weights and its data are. Imports no heavy library.

A run records the digest of its teacher's weights. So a resumed run goes on with the same teacher, wherever that is by then.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from research.composition.pretrained import is_path
from research.contracts import contract
from research.files.locks import is_locked
from research.files.weights import list_weight_files
from research.models.hub_folder import read_length
from research.options.paths import describe_id
from research.ranges import repr_value
from research.rules import Conflict
from research.run_dir import TOKENIZER_FOLDER, expand_path, list_checkpoints, read_json, read_summary, to_run_folder
from research.tracking.find import find_run
from research.training.digests import hash_folder, hash_run
from research.training.manifest import is_checkpoint

DISTILL = "research.distill.objective.Distill"
STORE_FILE = "store.json"  # in a store: whose answers it keeps
HINT = "a run folder, one of its checkpoints/step-*, an MLflow run id, or a folder that save_pretrained wrote"
WRONG_LOSSES = {  # losses that are no cross entropy of a softmax, and what to do
    "research.losses.regression": (
        "is of numbers, and a teacher's term compares distributions over classes",
        "give data with classes, or no objective",
    ),
    "research.losses.stablemax": (
        "makes probabilities by another function than softmax, which the teacher's term is of",
        "leave out loss=stablemax",
    ),
}


@dataclass(frozen=True)
class TeacherData:
    """What a teacher was made for, as far as its folder says."""

    shape: dict[str, Any] = field(default_factory=dict)  # the fields of Tokens, Vectors or Images
    classes: tuple[str, ...] = ()  # their names
    tokenizer: Path | None = None  # the folder with its tokenizer.json
    is_pretrained: bool = False  # a folder that save_pretrained wrote


def find_teacher(teacher: str, uri: str | None = None) -> Path:
    """Return the folder of a teacher, by an id that of the MLflow at `uri`.

    Raise ValueError for none, one without weights, or one in training.
    """
    path = expand_path(teacher)
    try:
        if is_pretrained(path):
            if not list_weight_files(path):
                raise ValueError(f"{path} has no *.safetensors and no pytorch_model*.bin\ngive {HINT}")
            return path.resolve()
        path = find_run(teacher, "objective.teacher", uri)
        if is_locked(to_run_folder(path)):
            raise ValueError("it is in training, so its newest weights change\nwait for its end, or give another teacher")
        if not is_checkpoint(path) and not list_checkpoints(path):
            raise ValueError(f"{path} holds no checkpoint, so no weights\ngive {HINT}")
    except ValueError as error:
        message, _, fix = str(error).removeprefix(f"objective.teacher={teacher}: ").partition("\n")
        if not fix:
            message, _, fix = message.partition("; give ")
            fix = f"give {fix}" if fix.startswith("a run, as") else describe_id(teacher) or f"give {HINT}"
        raise ValueError(f"objective.teacher={teacher}: {message}\n{fix}") from None
    return path


@contract
def is_pretrained(path: Path) -> bool:
    """Return whether a folder is one of save_pretrained, and no run."""
    return (path / "config.json").is_file() and not (path / "config.yaml").exists() and not is_checkpoint(path)


@contract
def digest_teacher(path: Path) -> str:
    """Return a digest of a teacher's weights. Raise ValueError where no checkpoint is intact."""
    if is_pretrained(path):
        return hash_folder(str(path), "objective.teacher")
    try:
        return hash_run(path)
    except ValueError as error:
        raise ValueError(f"objective.teacher={path}: {error}\ngive another teacher") from error


@contract
def read_teacher_data(path: Path) -> TeacherData:
    """Return what a teacher was made for."""
    if is_pretrained(path):
        config = read_json(path / "config.json")
        sizes = {"vocab_size": config.get("vocab_size"), "seq_len": read_length(config)}
        tokenizer = path if (path / "tokenizer.json").is_file() else None
        return TeacherData({key: size for key, size in sizes.items() if isinstance(size, int)}, (), tokenizer, True)
    run = to_run_folder(path)
    summary = read_summary(run)
    tokenizer = run / TOKENIZER_FOLDER if (run / TOKENIZER_FOLDER).is_dir() else None
    return TeacherData(dict(summary.shape), tuple(summary.classes), tokenizer) if summary else TeacherData({}, (), tokenizer)


def complete_teacher(objective: Any, uri: str | None = None) -> dict[str, Any]:
    """Return the settings to record of an objective's teacher: its digest, and where it lies; nothing where there is none.

    Raise ValueError for a teacher that is not there, or has another digest than the node.
    """
    if not isinstance(objective, dict) or objective.get("_target_") != DISTILL:
        return {}
    teacher, known = objective.get("teacher"), objective.get("digest")
    if not is_path(teacher):
        return {}
    store, settings = objective.get("store"), dict[str, Any]()
    if objective.get("stored") and isinstance(store, str):  # the teacher itself may be gone
        digest = str(read_json(expand_path(store) / STORE_FILE).get("teacher") or "")
        if not digest:
            raise ValueError(f"objective.store={store}: there is no {STORE_FILE}\ngive objective.stored=false, which fills it")
    else:
        path = find_teacher(teacher, uri)
        digest, settings = digest_teacher(path), {"objective.teacher": str(path)}
    if known and known != digest:
        message = f"objective.teacher={teacher}: its weights have the digest {digest[:12]}, objective.digest is {known[:12]}"
        raise ValueError(f"{message}\ngive the teacher with that digest, or objective.digest=null")
    return settings | {"objective.digest": digest}


@contract
def check_settings_of_teacher(settings: dict[str, Any]) -> Conflict | None:
    """Return the conflict of settings of a distillation that do not go together."""
    top_k, hidden, store, stored = (settings.get(key) for key in ("top_k", "hidden", "store", "stored"))
    if store and not top_k:
        message = "objective.store keeps a teacher's likeliest classes: it needs to know how many"
        return Conflict(("objective.store", "objective.top_k"), message, "say it with objective.top_k")
    if stored and not store:
        return Conflict(
            ("objective.stored",), "objective.stored=true reads a store, and there is none", "give objective.store=FOLDER"
        )
    if store and hidden:
        message = "objective.hidden needs the teacher itself in each step, a store has its answers alone"
        return Conflict(("objective.hidden", "objective.store"), message, "leave out objective.store, or objective.hidden")
    layers = settings.get("layers")
    if layers and not all(type(number) is int and number >= 0 for number in layers):
        message = f"objective.layers={repr_value(layers)} names blocks of the teacher, which are numbered from 0"
        return Conflict(("objective.layers",), message, "give one number a block of the student, as [1,3]")
    if layers and not hidden:
        message = "objective.layers says whose outputs are compared, and objective.hidden=null compares none"
        return Conflict(
            ("objective.layers", "objective.hidden"), message, "give objective.hidden=1, or leave out objective.layers"
        )
    return None


@contract
def check_loss(target: str) -> Conflict | None:
    """Return the conflict of a loss beside which a teacher's term has no meaning."""
    if target not in WRONG_LOSSES:
        return None
    why, fix = WRONG_LOSSES[target]
    return Conflict(("objective", "loss"), f"loss={target.rpartition('.')[2]} {why}", fix)


@contract
def find_teacher_conflicts(objective: Any, get: Callable[[str], Any]) -> Iterator[Conflict | None]:
    """Yield the conflict of a teacher that is the run itself, or cannot teach so or by such a loss.

    `objective` is the node of a composed configuration; `get` returns the value at any of its dotted keys.
    """
    if not isinstance(objective, dict) or objective.get("_target_") != DISTILL:
        return
    settings = {key: get(f"objective.{key}") for key in objective}
    if not isinstance(teacher := settings.get("teacher"), str) or teacher in ("", "???"):
        return
    yield check_settings_of_teacher(settings)
    yield check_loss(str(get("loss._target_")))
    if "${" in teacher:  # as for a teacher of each seed
        return
    if settings.get("stored"):
        return
    try:
        path = find_teacher(teacher)
    except ValueError:  # as what completes the configuration has said
        return
    own = [get("hydra.run.dir"), *([] if get("resume.weights_only") is True else [get("resume.path")])]
    if any(to_run_folder(expand_path(folder)).resolve() == to_run_folder(path) for folder in own if isinstance(folder, str)):
        message = f"the teacher {to_run_folder(path)} is this very run: it would learn from itself"
        yield Conflict(("objective.teacher", "resume.path"), message, "give another teacher, or a run folder of its own")
    shape, top_k = read_teacher_data(path).shape, settings.get("top_k")
    size = shape.get("num_classes") or shape.get("vocab_size")
    if isinstance(top_k, int) and size and top_k > size:
        message = f"objective.top_k={top_k}, and the teacher has {size} classes"
        yield Conflict(("objective.top_k",), message, f"give objective.top_k=null, or at most {size}")


@contract
def name_teacher(objective: Any) -> str:
    """Return a teacher's path and the start of its digest, for people; "none" for an objective without one."""
    if not isinstance(objective, dict) or not objective.get("teacher"):
        return "none"
    return f"{objective['teacher']} ({str(objective.get('digest'))[:8]})"
