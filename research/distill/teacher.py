"""The teacher itself: whether it was made for these data, and its model."""

from hashlib import sha256
from typing import Any

from torch import nn

from research.composition.teacher import TeacherData, digest_teacher, find_teacher, is_pretrained, read_teacher_data
from research.contracts import contract
from research.data.spec import Dataset, Images, Tokens, Vectors
from research.data.tokenizers import Tokenizer, load_tokenizer
from research.load import load_run
from research.models.hub import load_as_saved

NO_MATTER = ("mean", "scale", "end")  # of a shape: of numbers alone, and what the tokenizer says


def check_data(teacher: str, data: Dataset[Any]) -> None:
    """Raise ValueError for a teacher of other data: of another shape, other classes or another tokenizer."""
    if not data.train.has_classes:
        message = "objective=distill compares distributions over classes, and the targets of these data are numbers"
        raise ValueError(f"{message}\nleave out objective=distill")
    known = read_teacher_data(find_teacher(teacher))
    if isinstance(data.shape, Tokens | Vectors | Images) and known.shape:
        check_shape(teacher, known, data.shape)
    if known.classes and data.classes and known.classes != data.classes:
        theirs, own = (", ".join(names[:4]) for names in (known.classes, data.classes))
        message = f"objective.teacher={teacher}: its classes are {theirs}, ... and those of the data {own}, ..."
        raise ValueError(f"{message}\ngive a teacher of these classes in this order")
    if data.tokenizer:
        check_tokenizer(teacher, known, data.tokenizer)


@contract
def check_shape(teacher: str, known: TeacherData, shape: Tokens | Vectors | Images) -> None:
    """Raise ValueError where a teacher takes or gives other numbers than the data have. Its sequences may be longer."""
    for name, own in shape._asdict().items():
        theirs = known.shape.get(name, 0 if known.is_pretrained else None)
        if known.is_pretrained and name not in known.shape and name not in ("num_classes", "num_features", "channels"):
            continue
        may_exceed = name == "seq_len" or (name == "vocab_size" and known.is_pretrained)  # often rounded up
        fits = theirs is not None and (theirs >= own if may_exceed else theirs == own)
        if name not in NO_MATTER and not fits:
            what = f"has {name}={theirs}" if theirs is not None else f"was trained on other data, without {name}"
            message = f"objective.teacher={teacher}: it {what}, the data have {name}={own}"
            raise ValueError(f"{message}\ngive a teacher of such data, or the data of the teacher")


def check_tokenizer(teacher: str, known: TeacherData, own: Tokenizer) -> None:
    """Raise ValueError where a teacher's tokens stand for other texts than those of the data."""
    if known.tokenizer is None:
        if known.is_pretrained:
            return  # it has none: the sizes of the vocabularies are all that is known
        raise ValueError(f"objective.teacher={teacher}: it is of no text, and the data are\ngive a teacher of text")
    theirs = load_tokenizer(known.tokenizer)
    if (digest := digest_tokens(theirs)) != (needed := digest_tokens(own)):
        message = f"objective.teacher={teacher}: its tokens are those of {theirs.name} ({digest[:8]})"
        fix = f"give tokenizer=folder data.tokenizer.path={known.tokenizer}, or a teacher with the tokenizer of the data"
        if theirs.name == "bytes":
            fix = "give tokenizer=bytes, or a teacher with the tokenizer of the data"
        raise ValueError(f"{message}, the data have {own.name} ({needed[:8]})\n{fix}")


def digest_tokens(tokenizer: Tokenizer) -> str:
    """Return a digest of the text that each token stands for, and of the token that ends a document."""
    digest = sha256(f"{tokenizer.end} {tokenizer.vocab_size}".encode())
    for token, spelling in enumerate(tokenizer.spellings):
        digest.update(f"\n{token} ".encode() + (b"" if token == tokenizer.end else spelling))
    return digest.hexdigest()


def load_teacher(teacher: str, digest: str, shape: Any) -> nn.Module:
    """Return a teacher's model: in evaluation mode, without gradients. Raise ValueError where its weights are other ones."""
    path = find_teacher(teacher)
    if digest and (actual := digest_teacher(path)) != digest:
        message = f"objective.teacher={teacher}: its weights have the digest {actual[:12]}, {digest[:12]} is needed"
        raise ValueError(f"{message}\ngive the teacher with that digest")
    try:
        model: nn.Module = load_as_saved(shape, str(path)) if is_pretrained(path) else load_run(str(path)).model
    except ValueError as error:
        raise ValueError(f"objective.teacher={teacher}: {str(error).removeprefix(f'RUN={path}: ')}") from error
    return model.eval().requires_grad_(False)
