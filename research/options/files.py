"""What is wrong with a yaml of options, as file:line and what to do. Only files that a command line chooses are looked at."""

import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from research.options.conf import FOLDERS, list_groups
from research.rules import PRESET_GROUPS

HEADER = re.compile(r"#\s*@package\s+(_global_|_group_|[A-Za-z][\w.]*)\s*", re.ASCII)
COMPONENTS = ("model", "optim", "schedule", "loss", "data", "trainer", "tracker")  # each option builds one object
GROUP_KEYS = {"data": ("name", "monitor", "steps", "batch_size", "eval_every"), "optim": ("lr",)}  # which its options set
FIXES = {  # part of a parser's message -> what to do
    "tab": "indent with spaces, not with tabs",
    "cannot start any token": "indent with spaces, not with tabs; quote a value that begins with @, ` or %",
    "mapping values": "quote a value that holds ': '",
    "expected ',' or": "close the bracket, or quote the value",
    "expected <document start>": "write each line as key: value",
    "could not find expected ':'": "write each line as key: value, with a space after the colon",
    "duplicate key": "leave one of them out",
    "but found another document": "leave out the second ---",
    "expected <block end>": "indent the keys of one mapping alike",
}


def find_file(group: str, option: str) -> Path | None:
    """Return the yaml of an option; None where it has none."""
    files = (folder / group / f"{option}.yaml" for folder in FOLDERS)
    return next((file for file in files if file.is_file()), None)


def format_file(path: Path) -> str:
    """Return a yaml as people know it: from conf/ on, or whole."""
    return str(path.relative_to(FOLDERS[0].parent)) if path.is_relative_to(FOLDERS[0]) else str(path)


def describe_yaml_error(error: yaml.YAMLError) -> str:
    """Return file:line of an error of the parser, what it says, and what to do."""
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    if mark is None:
        return str(error)
    problem = str(error.problem)
    fix = next((fix for part, fix in FIXES.items() if part in problem), "")
    return "\n".join(filter(None, (f"{format_file(Path(mark.name))}:{mark.line + 1}: {problem}", fix)))


def check_option(group: str, option: str) -> list[str]:
    """Return what is wrong with the yaml of an option, in lines; none where it can be composed."""
    if (path := find_file(group, option)) is None:
        return []
    name, content = format_file(path), path.read_bytes()
    if content.startswith(b"\xef\xbb\xbf"):
        return [f"{name}:1: it begins with a byte order mark, so Hydra misses the first line", "save it as UTF-8 without one"]
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        return [f"{name}:{line}: byte 0x{content[error.start]:02x} is not UTF-8", "save it as UTF-8"]
    try:
        loaded = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        return []  # composing it names file and line
    if loaded is not None and not isinstance(loaded, dict):
        return [
            f"{name}:1: it holds {'a list' if isinstance(loaded, list) else 'a text'}",
            "write keys and values, as dim: 128",
        ]
    return next(find_faults(group, option, name, text.splitlines(), loaded or {}), [])


def find_faults(group: str, option: str, name: str, lines: list[str], loaded: dict[object, object]) -> Iterator[list[str]]:
    """Yield what is wrong with the first line, and with the defaults of a preset, which replace those of conf/config.yaml."""
    comments = [(number, line) for number, line in enumerate(lines, 1) if line.lstrip().startswith("#") and "@package" in line]
    for number, line in comments:
        if not HEADER.fullmatch(line.strip()):
            yield [f"{name}:{number}: {line.strip()} is no package", "write # @package _global_, or leave it out"]
    if group not in PRESET_GROUPS:
        return
    if not any(match[1] == "_global_" for _, line in comments if (match := HEADER.fullmatch(line.strip()))):
        yield [f"{name}:1: the first line of a preset must be # @package _global_", "else its keys go below " + group]
    defaults = loaded.get("defaults")
    for entry in defaults if isinstance(defaults, list) else []:
        for key, value in entry.items() if isinstance(entry, dict) else ():
            if (base := str(key).lstrip("/")) in list_groups() and base not in PRESET_GROUPS:
                number = next((n for n, line in enumerate(lines, 1) if re.match(rf"\s*-\s*/?{base}\s*:", line)), 1)
                yield [f"{name}:{number}: conf/config.yaml chooses {base} already", f"write - override /{base}: {value}"]


def describe_missing_node(group: str, option: str) -> list[str]:
    """Return why an option gives nothing that can be built."""
    name = format_file(path) if (path := find_file(group, option)) else f"{group}={option}"
    return [f"{name} names no _target_ below '{group}'", "the class or function, as _target_: mine.Net; and no # @package line"]


def describe_missing_keys(group: str, option: str, keys: list[str]) -> list[str]:
    """Return which keys at the top an option of a group has to set, and how."""
    name = format_file(path) if (path := find_file(group, option)) else f"{group}={option}"
    example = {"data": "digits", "optim": "adamw"}[group]
    return [
        f"{name} gives no {', '.join(keys)}",
        f"begin it as conf/{group}/{example}.yaml, with # @package _global_ and these keys",
    ]


def describe_other_file(group: str, name: str) -> str:
    """Return why a file with an option's name is none; empty where there is no such file."""
    for path in (folder / group / f"{name}{suffix}" for folder in FOLDERS for suffix in (".yml", ".yaml", "")):
        if path.is_dir() and path.suffix:
            return f"{format_file(path)} is a folder"
        if path.is_symlink() and not path.exists():
            return f"{format_file(path)} is a link to nothing"
        if path.suffix == ".yml" and path.is_file():
            return f"Hydra reads .yaml alone: rename {format_file(path)}"
    return ""
