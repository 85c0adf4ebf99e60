"""Which files are read: paths and patterns, links and loops, and the count by kind of what was read and what was left out."""

import os
import sys
import sysconfig
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from research.run_dir import expand_path

# Of the standard library: tests repeat its code, and packages of others differ between machines.
SKIPPED_FOLDERS = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages", "__pycache__"}
SUFFIXES = "txt md markdown rst tex html xml py jsonl ndjson csv tsv parquet"
KINDS = tuple(f"*.{suffix}" for suffix in SUFFIXES.split())
LONG_WORK = 1 << 26  # bytes: work on as many is shown
NUM_EXAMPLES = 5  # of each kind of defect that a message names


@dataclass
class Counts:
    """What was left out and why: how often each kind was seen, and where first."""

    numbers: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

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

    def add_all(self, others: "Counts") -> None:
        """Count what another has counted."""
        for kind, places in others.examples.items():
            for where in places:
                self.add(kind, where, 0)
            self.numbers[kind] += others.numbers[kind]

    def refuse(self, fix: str, key: str = "data.path") -> None:
        """Raise ValueError with all that is counted, and how it is mended; nothing where nothing is counted."""
        if self.numbers:
            raise ValueError(f"{key}: {self.describe()}\n{self.list_examples()}\n{fix}")


@contextmanager
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


def check_defects(defects: Counts, skip: bool, counts: Counts) -> None:
    """Raise ValueError for what cannot be read, all in one list; with `skip` count it as left out."""
    if defects.numbers and not skip:
        fix = "mend them, name other files by data.pattern, state data.encoding, or give data.defects=skip"
        raise ValueError(f"data.path: {defects.describe()}\n{defects.list_examples()}\n{fix}")
    for kind, number in defects.numbers.items():
        counts.add(kind, defects.examples[kind][0], number)


def find_files(paths: str | Sequence[str] | None, patterns: str | Sequence[str] | None, counts: Counts) -> list[Path]:
    """Return the files at and below `paths` that match one of the patterns, sorted, each once.

    None for paths: the standard library's sources. None for patterns: KINDS, and what is of another kind is counted.
    Symbolic links are followed, once each.
    Raise ValueError for a path that is not there, and where no file matches.
    """
    roots = [sysconfig.get_paths()["stdlib"]] if paths is None else [paths] if isinstance(paths, str) else list(paths)
    is_open = patterns is None and paths is not None
    patterns = ["*.py"] if patterns is None and paths is None else KINDS if patterns is None else patterns
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    files: dict[Path, None] = {}
    for text in roots:
        root = expand_path(text).resolve()
        if not root.is_file() and not root.is_dir():
            problem = f"{root} is neither a file nor a folder" if root.exists() else f"there is no file or folder {root}"
            raise ValueError(f"data.path={text}: {problem}\ngive one that exists")
        skipped = SKIPPED_FOLDERS if paths is None else set[str]()
        matching = [root] if root.is_file() else list(iter_files(root, counts, patterns, skipped))
        if is_open and root.is_dir():
            count_others(root, matching, counts)
        files |= dict.fromkeys(sorted(file.resolve() for file in matching))
    if not files:
        raise ValueError(f"data.pattern={','.join(patterns)}: no file below {', '.join(roots)} matches{list_suffixes(roots)}")
    return list(files)


def iter_files(root: Path, counts: Counts, patterns: Sequence[str] = ("*",), skipped: Collection[str] = ()) -> Iterator[Path]:
    """Yield the regular files below a folder that match a pattern; folders behind links once, so that a circle ends."""
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
            if matches(path, patterns) and path.is_file():
                yield path
            elif matches(path, patterns):
                counts.add("broken links or devices", str(path))


def matches(path: Path, patterns: Sequence[str]) -> bool:
    """Return whether a file's name matches one of the patterns; one with a "/" is of the folders above, too."""
    return any(path.match(pattern) if "/" in pattern else fnmatch(path.name, pattern) for pattern in patterns)


def list_own_files(root: Path, patterns: str | Sequence[str] | None, counts: Counts) -> list[Path]:
    """Return the files of a folder itself that match; without patterns those of other kinds are counted."""
    wanted = KINDS if patterns is None else [patterns] if isinstance(patterns, str) else patterns
    files = sorted(path for path in root.iterdir() if path.is_file())
    for path in files if patterns is None else ():
        if not matches(path, wanted):
            counts.add(f"{path.suffix or 'without a suffix'} files", str(path))
    return [path for path in files if matches(path, wanted)]


def count_others(root: Path, matching: Sequence[Path], counts: Counts) -> None:
    """Count the files of a folder that are of no kind that is read."""
    known = set(matching)
    for path in iter_files(root, Counts()):
        if path not in known:
            counts.add(f"{path.suffix or 'without a suffix'} files", str(path))


def list_suffixes(roots: Sequence[str]) -> str:
    """Return which kinds of files are there, for a message: "; it has 12 .txt, 3 .md"."""
    numbers: dict[str, int] = {}
    for root in roots:
        for path in iter_files(expand_path(root).resolve(), Counts()):
            numbers[path.suffix or "no suffix"] = numbers.get(path.suffix or "no suffix", 0) + 1
    ranked = sorted(numbers.items(), key=lambda item: -item[1])[:5]
    return f"; it has {', '.join(f'{number:,} {suffix}' for suffix, number in ranked)}" if ranked else "; it is empty"
