"""What is wrong with a yaml of options, as file:line and what to do. Only files that a command line chooses are looked at."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import yaml

from research.contracts import contract
from research.options.conf import FOLDERS, list_groups, read_yaml
from research.options.habits import suggest
from research.rules import PRESET_GROUPS

HEADER = re.compile(r"#\s*@package\s+(_global_|_group_|[A-Za-z][\w.]*)\s*", re.ASCII)
COMPONENTS = ("model", "optim", "schedule", "loss", "data", "trainer", "tracker")  # each option builds one object
GROUP_KEYS = {"data": ("name", "monitor", "steps", "batch_size", "eval_every"), "optim": ("lr",)}  # which its options set
Above = tuple[tuple[str, str], ...]  # options, each in the defaults of the next
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
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
    return next((file for file in files if os.path.isfile(file)), None)


def format_file(path: Path) -> str:
    """Return a yaml as people know it: from conf/ on, or whole."""
    return str(path.relative_to(FOLDERS[0].parent)) if path.is_relative_to(FOLDERS[0]) else str(path)


@contract
def describe_yaml_error(error: yaml.YAMLError) -> str:
    """Return file:line of an error of the parser, what it says, and what to do."""
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    if mark is None:
        return str(error)
    problem = str(error.problem)
    fix = next((fix for part, fix in FIXES.items() if part in problem), "")
    return "\n".join(filter(None, (f"{format_file(Path(mark.name))}:{mark.line + 1}: {problem}", fix)))


@contract
def check_option(group: str, option: str, above: Above = ()) -> list[str]:
    """Return what is wrong with the yaml of an option, or of one in its defaults, in lines; none where it can be composed.

    `above` are the options in whose defaults it stands.
    """
    if (path := find_file(group, option)) is None:
        return []
    name, content = format_file(path), path.read_bytes()
    if lines := check_bytes(name, content):
        return lines
    text = content.decode()
    try:
        loaded = yaml.load(text, LOADER)
    except yaml.YAMLError:
        return []  # composing it names file and line
    if loaded is not None and not isinstance(loaded, dict):
        what = "a list" if isinstance(loaded, list) else "a text"
        return [f"{name}:1: it holds {what}", "write keys and values, as dim: 128"]
    for key, value in (loaded or {}).items():
        if not isinstance(key, str):
            return [f"{name}:{find_line(text, key) or 1}: the key {key} is no text", "give it a name"]
        if holds_itself(value):
            return [f"{name}:{find_line(text, key)}: {key} holds itself", "write the value out"]
    faults = (*find_package_faults(group, name, text), *find_default_faults(group, name, text, ((group, option), *above)))
    return next(iter(faults), [])


def check_bytes(name: str, content: bytes) -> list[str]:
    """Return where a file is no text in UTF-8, or begins with a byte order mark; none where it is."""
    if content.startswith(b"\xef\xbb\xbf"):
        return [f"{name}:1: it begins with a byte order mark, so Hydra misses the first line", "save it as UTF-8 without one"]
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        return [f"{name}:{line}: byte 0x{content[error.start]:02x} is not UTF-8", "save it as UTF-8"]
    return []


def holds_itself(value: object) -> bool:
    """Return whether a list or mapping is a part of itself, as by an alias."""
    left: list[tuple[object, tuple[int, ...]]] = [(value, ())]
    while left:
        item, above = left.pop()
        if id(item) in above:
            return True
        inner = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        left += [(part, (*above, id(item))) for part in inner if isinstance(part, list | dict)]
    return False


@contract
def find_line(text: str, key: object) -> int:
    """Return the line of a dotted key in the text of a yaml; 0 where it has none."""
    node, line = yaml.compose(text, LOADER), 0
    for part in str(key).split("."):
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        pair = next(((name, value) for name, value in pairs if name.value == part), None)
        if pair is None:
            return 0
        line, node = pair[0].start_mark.line + 1, pair[1]
    return line


@contract
def locate_key(group: str, option: str, key: str) -> str:
    """Return file:line of a dotted key in the yaml of a preset; empty where it does not have it."""
    with suppress(yaml.YAMLError, UnicodeDecodeError):
        if (path := find_file(group, option)) and (line := find_line(path.read_text(encoding="utf-8"), key)):
            return f"{format_file(path)}:{line}"
    return ""


def find_package_faults(group: str, name: str, text: str) -> Iterator[list[str]]:
    """Yield what is wrong with the comments that say below which key an option's values go. Hydra reads them first alone."""
    lines = text.splitlines()
    comments = [(number, line) for number, line in enumerate(lines, 1) if re.match(r"\s*#.*@package", line)]
    for number, line in comments:
        if not HEADER.fullmatch(line.strip()):
            yield [f"{name}:{number}: {line.strip()} is no package", "write # @package _global_, or leave it out"]
        elif not all(re.match(r"\s*(#\s*@|$)", before) for before in lines[: number - 1]):
            yield [f"{name}:{number}: Hydra reads {line.strip()} as the first line alone", "move it to line 1"]
    packages = [match[1] for _, line in comments if (match := HEADER.fullmatch(line.strip()))]
    if group in PRESET_GROUPS and "_global_" not in packages:
        yield [f"{name}:1: the first line of a preset must be # @package _global_", "else its keys go below " + group]


def find_default_faults(group: str, name: str, text: str, above: Above) -> Iterator[list[str]]:
    """Yield what is wrong with the defaults of an option: groups and options that are not there, or are broken themselves."""
    root = yaml.compose(text, LOADER)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    lists = [node for key, node in pairs if key.value == "defaults" and isinstance(node, yaml.SequenceNode)]
    for node in lists[0].value if lists else ():
        where = f"{name}:{node.start_mark.line + 1}"
        if isinstance(node, yaml.ScalarNode):
            yield from check_choice(group, node.value.partition("@")[0], where, above)
            continue
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            words = key.value.partition("@")[0].split()
            base = words[-1].lstrip("/") if words else ""
            if base.startswith("hydra/") or not isinstance(value, yaml.ScalarNode) or value.value in ("null", "~", ""):
                continue
            is_override, is_known = words[0] == "override", base in list_groups() and base not in PRESET_GROUPS
            if is_override and words[-1].startswith("/") and base not in list_groups():
                near = [f"write - override /{other}: {value.value}" for other in suggest(base, [*list_groups()])[:1]]
                yield [f"{where}: there is no group '{base}'; groups: {', '.join(list_groups())}", *near]
            elif group in PRESET_GROUPS and is_known and words != ["override", f"/{base}"]:
                why = "is of a group below this one" if is_override else f"conf/config.yaml chooses {base} already"
                yield [f"{where}: {f'override {base} ' * is_override}{why}", f"write - override /{base}: {value.value}"]
            elif words[-1].startswith("/"):
                yield from check_choice(base, value.value, where, above, f"- {' '.join(words)}: ")


def check_choice(group: str, option: str, where: str, above: Above, entry: str = "- ") -> Iterator[list[str]]:
    """Yield what is wrong with an option that stands in the defaults of another."""
    options = list_groups().get(group, [])
    if option == "_self_" or not re.fullmatch(r"[\w-]+", option):
        return
    if option not in options:
        near = [f"write {entry}{other}" for other in suggest(option, options)[:1]]
        yield [f"{where}: group '{group}' has no option '{option}'; options: {', '.join(options)}", *near]
    elif (group, option) in above:
        yield [f"{where}: its defaults lead back to {group}={option}", "leave this entry out"]
    elif lines := check_option(group, option, above):
        yield lines


@contract
def describe_missing_node(group: str, option: str) -> list[str]:
    """Return why an option gives nothing that can be built."""
    name = format_file(path) if (path := find_file(group, option)) else f"{group}={option}"
    return [f"{name} names no _target_ below '{group}'", "the class or function, as _target_: mine.Net; and no # @package line"]


@contract
def describe_needs(target: str, key: str, option: str, missing: list[str]) -> list[str]:
    """Return which arguments the target of an option lacks, and where they are given."""
    name = format_file(path) if (path := find_file(key.partition(".")[0], option)) else f"the yaml of '{key}'"
    fix = f"write {missing[0]}: VALUE below _target_ in {name}, or give the parameter a default"
    if (key, missing) == ("model", ["linear"]):
        fix = f"write below defaults in {name}: - override /linear@_global_.linear: full"
    return [f"{target} needs {', '.join(missing)}", fix]


@contract
def describe_missing_value(key: str, option: str) -> list[str]:
    """Return that a setting of an option needs a value, with what the comment in its yaml says of it."""
    *_, group, name = "", *key.split(".")
    comment = re.search(rf"^ *{name}: \?\?\? +# (.+)$", read_yaml(group, option), re.MULTILINE)
    return [f"{key} needs a value", f"give {key}=VALUE, {comment[1]}" if comment else ""]


@contract
def describe_missing_keys(group: str, option: str, keys: list[str]) -> list[str]:
    """Return which keys at the top an option of a group has to set, and how."""
    name = format_file(path) if (path := find_file(group, option)) else f"{group}={option}"
    example = {"data": "digits", "optim": "adamw"}[group]
    return [
        f"{name} gives no {', '.join(keys)}",
        f"begin it as conf/{group}/{example}.yaml, with # @package _global_ and these keys",
    ]


@contract
def describe_other_file(group: str, name: str) -> str:
    """Return why a file with an option's name is none; empty where there is no such file."""
    for path in (folder / group / f"{name}{suffix}" for folder in FOLDERS for suffix in (".yml", ".yaml", "")):
        if os.path.isdir(path) and path.suffix:
            return f"{format_file(path)} is a folder"
        if os.path.islink(path) and not path.exists():
            return f"{format_file(path)} is a link to nothing"
        if path.suffix == ".yml" and os.path.isfile(path):
            return f"Hydra reads .yaml alone: rename {format_file(path)}"
    return ""
