"""Which files are read: paths and patterns, links and loops, and the count by kind of what was read and what was left out."""

import os
import re
import shlex
import sys
import sysconfig
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from inspect import signature
from pathlib import Path

from research.contracts import contract
from research.run_dir import expand_path

# Of the standard library: tests repeat its code, and packages of others differ between machines.
SKIPPED_FOLDERS = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages", "__pycache__"}
TEXT_KINDS = (".txt", ".md", ".markdown", ".rst", ".tex", ".html", ".xml", ".py")
TABLE_KINDS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
IMAGE_KINDS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
KINDS = TEXT_KINDS + TABLE_KINDS  # suffixes, in any case
NAMED = (*KINDS, ".json")  # of a folder no .json is read: most are settings
# A split's, then other words for it; what has no class is the fourth.
SPLIT_NAMES = (
    "train training",
    "val valid validation dev eval evaluation",
    "test testing",
    "unsup unsupervised unlabeled unlabelled",
)
SPLIT_WORDS = {name: names.split()[0] for names in SPLIT_NAMES for name in names.split()}
UNLABELLED = ("unsup", "unlabeled", "unlabelled")  # folders that are no class, whatever stands beside them
# What may stand before (files alone have it), the word, what follows it, and the number of a part, as -00000-of-00005.
SPLIT_NAME = re.compile(
    rf"(?i)(.*[._ -])?({'|'.join(SPLIT_WORDS)})([._ -]?(?:set|data|split))?(?:[._ -]?\d+(?:-of-\d+)?(?:-[0-9a-f]{{16}})?)?"
)
FIX = "mend them, name other files by data.pattern, or give data.defects=skip"
ENCODING_FIX = "state data.encoding where it is that of all files, else convert these first"
LONG_WORK = 1 << 26  # bytes: work on as many is shown
NUM_EXAMPLES = 5  # of each kind of defect that a message names


@dataclass
class Counts:
    """What was left out and why: how often each kind was seen, and where first."""

    numbers: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    @contract
    def add(self, kind: str, where: str, number: int = 1) -> None:
        """Count what is at `where`."""
        self.numbers[kind] = self.numbers.get(kind, 0) + number
        examples = self.examples.setdefault(kind, [])
        if len(examples) < NUM_EXAMPLES:
            examples.append(where)

    def describe(self) -> str:
        """Return "3 empty, 2 not UTF-8", the most frequent kind first; empty for none."""
        ranked = sorted(self.numbers.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{number:,} {kind}" for kind, number in ranked)

    def list_examples(self) -> str:
        """Return a line for each kind with the first places."""
        lines = []
        for kind, places in self.examples.items():
            more = self.numbers[kind] - len(places)
            lines.append(f"  {kind}: {', '.join(places)}{f' and {more:,} more' if more else ''}")
        return "\n".join(lines)


@contextmanager
@contract
def show_progress(work: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show on stderr how far some work on `total` bytes is; give the function to call with the bytes that are done.

    A terminal has a bar, anything else one line, and what takes a moment nothing.
    """
    if total < LONG_WORK:
        yield lambda size: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

        columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(work, total=total)
            yield lambda size: progress.advance(task, size)
    else:
        print(f"{work}: {total / 1e6:,.0f} MB", file=sys.stderr)
        yield lambda size: None


@contract
def check_defects(defects: Counts, skip: bool, counts: Counts, fix: str = FIX, key: str = "data.path") -> None:
    """Raise ValueError for what cannot be read, all in one list, with its fix; with `skip` count it as left out."""
    if defects.numbers and not skip:
        fix += f"; {ENCODING_FIX}" * bool(re.search("not [A-Z]|NUL", defects.describe()))
        raise ValueError(f"{key}: {defects.describe()}\n{defects.list_examples()}\n{fix}")
    for kind, number in defects.numbers.items():
        counts.add(kind, defects.examples[kind][0], number)


@contract
def check_needs(keys: str, build: Callable[..., object] | None = None, what: str = "of files", **settings: object) -> None:
    """Raise ValueError for a setting without an effect unless `keys` are given: not its default in `build`, else not null."""
    parameters = signature(build).parameters if build else {}
    for name, value in settings.items():
        default = parameters[name].default if build else None
        if value != default:
            fix = f"give {keys} too, or data.{name}={'null' if default is None else default}"
            raise ValueError(f"data.{name}={value} is {what}, and needs {keys}\n{fix}")


def find_files(
    paths: str | Sequence[str] | None, patterns: str | Sequence[str] | None, counts: Counts, kinds: Sequence[str] = KINDS
) -> list[Path]:
    """Return the files at and below `paths` that match one of the patterns, sorted, each once.

    None for paths: the standard library's sources. None for patterns: `kinds`, and what is of another kind is counted.
    Symbolic links are followed, once each; what a file is read as, the name of its link says where that has a suffix.
    Raise ValueError for a path that is not there, where no file matches, and for a folder that holds splits.
    """
    roots = [sysconfig.get_paths()["stdlib"]] if paths is None else [paths] if isinstance(paths, str) else list(paths)
    patterns = "*.py" if patterns is None and paths is None else patterns
    is_wanted = build_filter(patterns, kinds)
    files: dict[Path, Path] = {}  # by what links lead to
    for text in roots:
        root = expand_path(text).absolute()
        root = root if os.path.isfile(root) else root.resolve()
        if not os.path.isfile(root) and not os.path.isdir(root):
            problem = f"{root} is neither a file nor a folder" if os.path.exists(root) else f"there is no file or folder {root}"
            raise ValueError(f"data.path={text}: {problem}\ngive one that exists")
        skipped = SKIPPED_FOLDERS if paths is None else set[str]()
        matching = [root] if root.is_file() else list(iter_files(root, counts, is_wanted, skipped))
        if patterns is None and root.is_dir():
            count_others(root, matching, counts)
        if root.is_dir() and paths is not None:
            check_splits(text, root, matching)
        for target, is_nameless, file in sorted((file.resolve(), file.suffix.lower() not in NAMED, file) for file in matching):
            files.setdefault(target, target if is_nameless else file)
    if not files:
        where, others = ", ".join(roots), list_suffixes(roots)
        if patterns is None:
            fix = f"give files of {', '.join(kinds)}, or name others by data.pattern"
            raise ValueError(f"data.path: no file below {where} is of a kind that is read{others}\n{fix}")
        shown = patterns if isinstance(patterns, str) else ",".join(patterns)
        raise ValueError(f"data.pattern={shown}: no file below {where} matches{others}\ngive another data.pattern or data.path")
    return list(files.values())


@contract
def find_split(name: str) -> str:
    """Return which split a folder of this name is: train, val, test, or unsup without classes; empty for none."""
    match = SPLIT_NAME.fullmatch(name)
    return SPLIT_WORDS[match[2].lower()] if match and not match[1] else ""


def split_stem(stem: str) -> tuple[str, str]:
    """Return which split a file's stem tells, and what stands before it: a guide to testing is none."""
    match = SPLIT_NAME.fullmatch(stem)
    is_split = match and not (match[1] and not match[3] and match[2].lower().endswith("ing"))
    return (SPLIT_WORDS[match[2].lower()], match[1] or "") if match and is_split else ("", "")


@contract
def check_splits(text: str, root: Path, files: Sequence[Path]) -> None:
    """Raise ValueError where training files stand beside those of another split: read as one, both would be learnt.

    Splits are files whose names differ in train, val, test alone, or in numbers; and folders that have such names, all of
    one place that hold files. Programs and what only describes a folder are none.
    """
    groups: dict[tuple[str, ...], dict[str, dict[Path, None]]] = {}
    mixed = set[tuple[str, ...]]()  # folders with a folder that is no split
    candidates = list[tuple[tuple[str, ...], str, str, Path]]()
    for file in files:
        parts, is_program = file.relative_to(root).parts, file.suffix.lower() == ".py"
        for depth, name in enumerate(parts):
            path = root.joinpath(*parts[: depth + 1])
            is_folder = path != file or file.is_dir()
            split, before = (find_split(name), "") if is_folder else split_stem(Path(name).stem)
            if is_folder and (is_program or not split) and not name.startswith("."):
                mixed.add(parts[:depth])
            if split and not is_program and file.stem.lower() != "readme":
                candidates.append((parts[:depth], "/" if is_folder else before, split, path))
    for folder, before, split, path in candidates:
        if before != "/" or folder not in mixed:
            groups.setdefault((*folder, before.strip("/")), {}).setdefault(split, {})[path] = None
    for group in groups.values():
        if group.keys() > {"train"}:
            first = [min(group[split]) for split in dict.fromkeys(SPLIT_WORDS.values()) if split in group]
            names = ", ".join(str(path.relative_to(root)) for path in first)
            train = min(group["train"])
            pattern = re.sub(r"\d+", "*", train.name)
            fix = quote_path(train) if len(group["train"]) == 1 else f"'data.pattern=\"{pattern}\"'"
            message = f"data.path={text}: it holds splits ({names}), and all of them would be learnt"
            raise ValueError(f"{message}\ngive {fix}: the split is made here; or name each to mix them: 'data.path=[A,B]'")


@contract
def quote_path(path: str | Path) -> str:
    """Return data.path=PATH as one word that the shell, then Hydra, reads as this very path."""
    return quote_setting("data.path", str(path))


@contract
def quote_setting(key: str, text: str, form: str = "{}") -> str:
    """Return a setting as one word that the shell, then Hydra, reads as this very text; "[{}]" is the form of a list of it."""
    if re.fullmatch(r"[A-Za-z_./][\w./-]*", text, re.ASCII) and text.lower() not in ("null", "true", "false", "nan", "inf"):
        return f"{key}={form.format(text)}"
    quoted = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return shlex.quote(f"{key}={form.format(quoted)}")


@contract
def iter_files(
    root: Path, counts: Counts, is_wanted: Callable[[Path], bool] = lambda path: True, skipped: Collection[str] = ()
) -> Iterator[Path]:
    """Yield the regular files below a folder that are wanted; folders behind links once, so that a circle ends."""
    seen: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        counts.add("unreadable folders", str(error.filename))

    for folder, names, files in os.walk(root, followlinks=True, onerror=refuse):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            names.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        names[:] = [name for name in names if name not in skipped]
        for name in files:
            path = Path(folder, name)
            if is_wanted(path) and path.is_file():
                yield path
            elif is_wanted(path):
                counts.add("broken links or devices", str(path))


@contract
def build_filter(patterns: str | Sequence[str] | None, kinds: Sequence[str]) -> Callable[[Path], bool]:
    """Return what tells whether a file is read: its name matches a pattern; without any its suffix, in any case, is a kind.

    A pattern with a "/" is of the folders above, too.
    """
    if patterns is None:
        return lambda path: path.suffix.lower() in kinds
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    return lambda path: any(path.match(pattern) if "/" in pattern else fnmatch(path.name, pattern) for pattern in wanted)


@contract
def list_own_files(root: Path, patterns: str | Sequence[str] | None, counts: Counts) -> list[Path]:
    """Return the files of a folder itself that match; without patterns those of other kinds are counted."""
    is_wanted = build_filter(patterns, KINDS)
    files = sorted(path for path in root.iterdir() if path.is_file())
    for path in files if patterns is None else ():
        if not is_wanted(path):
            counts.add(describe_kind(path), str(path))
    return [path for path in files if is_wanted(path)]


def count_others(root: Path, matching: Sequence[Path], counts: Counts) -> None:
    """Count the files of a folder that are of no kind that is read."""
    known = set(matching)
    for path in iter_files(root, Counts()):
        if path not in known:
            counts.add(describe_kind(path), str(path))


@contract
def describe_kind(path: Path) -> str:
    """Return what files of a kind that is not read are called."""
    return f"{path.suffix} files" if path.suffix else "files without a suffix"


def list_suffixes(roots: Sequence[str]) -> str:
    """Return which kinds of files are there, for a message: "; it has 12 .txt, 3 .md"."""
    numbers: dict[str, int] = {}
    for root in roots:
        for path in iter_files(expand_path(root).resolve(), Counts()):
            numbers[path.suffix or "no suffix"] = numbers.get(path.suffix or "no suffix", 0) + 1
    ranked = sorted(numbers.items(), key=lambda item: -item[1])[:5]
    return f"; it has {', '.join(f'{number:,} {suffix}' for suffix, number in ranked)}" if ranked else "; it is empty"
