"""The options that are typed: each must be one of its group; else what it may mean, as a path that some data set reads."""

import os
import re
from pathlib import Path

from hydra.core.override_parser.types import Override

from research.composition.overrides import expand_sweep, format_mistake, parse, quote_word, to_literal, to_override
from research.contracts import contract
from research.files.sources import IMAGE_KINDS, TABLE_KINDS, TEXT_KINDS
from research.options.conf import list_groups, read_defaults
from research.options.files import describe_other_file
from research.options.habits import explain_options, explain_value, respell, suggest
from research.options.paths import describe_id, find_near_paths, list_kinds
from research.run_dir import expand_path

ID_SETTINGS = ("model.folder", "data.tokenizer.path")  # which others give the id of a model of the hub
NO_CLASSES = "images need a folder for each class: data=images data.path=FOLDER; or masks, for data=segmentation"


@contract
def check_values(override: Override) -> str:
    """Return the mistake of a sweep over no value, or of an option that its group does not have; empty for any other."""
    group, line = override.key_or_group, str(override.input_line)
    try:
        values = [choice.value() for choice in parse(expand_sweep(override))[0]]
    except ValueError as error:
        return format_mistake(line, str(error).removeprefix(f"{line}: "))
    options = list_groups().get(group)
    if not values:
        known = f"no option of group '{group}' matches; options: {', '.join(options)}" if options else ""
        return format_mistake(line, known or "nothing is between start and stop")
    if options is None or override.is_delete():
        return ""
    for value in values:
        if isinstance(value, list) and (lines := check_list(group, [str(name) for name in value])):
            return format_mistake(line, *lines)
    if (override.is_add() or override.is_force_add()) and group in read_defaults():
        return format_mistake(line, f"'{group}' is chosen already", f"leave out the +: {quote_word(line.lstrip('+'))}")
    for name in [name for value in values for name in (value if isinstance(value, list) else [value])]:
        if name is None:
            ours = respell(group, "null")
            near = [*([ours] if ours in options else []), f"~{group}"]
            words = [word if word.startswith("~") else f"{group}={word}" for word in near]
            message = f"a group takes one of its options: {', '.join(options)}"
            return format_mistake(line, message, f"did you mean: {' or '.join(words)} ?")
        if name not in options:
            return format_mistake(line, *describe_other_option(group, str(name), line.partition("=")[2]))
    return ""


def check_list(group: str, names: list[str]) -> list[str]:
    """Return what is wrong with several options of a group, and the fix: there is none, one twice, or `none` beside others."""
    options, unique = list_groups()[group], [name for name in dict.fromkeys(names) if name != "none"]
    fix = f"give {group}={unique[0]}" if len(unique) == 1 else f"give '{group}=[{','.join(unique)}]'"
    if not names:
        return [f"an empty list; options: {', '.join(options)}", f"give {group}={options[0]}, or another"]
    if "none" in names and "none" in options and unique:
        return ["none stands alone", f"{fix}, or {group}=none"]
    if len({*names}) < len(names):
        return ["it names an option twice", fix if unique else f"give {group}=none"]
    return []


def describe_other_option(group: str, name: str, typed: str) -> list[str]:
    """Return the lines of what is no option of a group: what it may mean, or what is known of it."""
    options, whole = list_groups()[group], respell(group, typed)
    if other := describe_other_file(group, name):
        return [other]
    if name in options:
        return [f"Hydra reads {name} as a number", f"did you mean: {quote_word(f'{group}={to_override(name)}')} ?"]
    if os.path.isfile(file := Path("conf", group, f"{name}.yaml")):  # else its folder is one of those that are read
        return [f"{file} is there, and is not read: say where options of your own are", "give --config-dir conf"]
    near = [f"{group}={o}" for o in ([whole] if set(whole.split(",")) <= set(options) else suggest(name, options))]
    known = f"group '{group}' has no option '{name}'; options: {', '.join(options)}"
    if group == "data" and whole == typed and (os.path.exists(expand_path(name)) or re.match(r"[./~]", name)):
        return describe_data(name, known)
    near = [f"{group}={typed.replace(name, word.partition('=')[2])}" for word in near] if typed.startswith("[") else near
    near = [f"{group}=glob(*)"] if name in ("*", "all") else near
    words = f"did you mean: {' or '.join(map(quote_word, near))} ?" if near else ""
    return [known, explain_value(group, name) or words or explain_options(group)]


@contract
def describe_data(typed: str, known: str) -> list[str]:
    """Return the lines of a path in place of a data set: which ones read what is there, or that nothing is."""
    path = expand_path(typed).absolute()
    if not os.path.exists(path):
        lines, others = find_near_paths(typed, path)
        readers = [words for other in others for words in list_readers(str(other))]
        return [*lines, f"did you mean: {' or '.join(readers)} ?" if readers else ""]
    readers = list_readers(typed)
    return [known, f"did you mean: {' or '.join(readers)} ?" if readers else NO_CLASSES]


@contract
def list_readers(typed: str) -> list[str]:
    """Return the data sets that read a file or a folder, by the suffixes that are there, as words for the shell."""
    path, reads = expand_path(typed), f"data.path={to_literal(typed)}"
    files, inner = list_kinds(path)
    if path.is_dir() and {"images", "masks"} <= {item.name for item in path.iterdir()}:
        parts = [f"data.{name}={to_literal(os.path.join(typed, name))}" for name in ("images", "masks")]
        return [" ".join(map(quote_word, ("data=segmentation", *parts)))]
    options = ["text"]
    if kinds := (files | inner) & {*TABLE_KINDS}:
        options = ["table", "regression", "text"] if kinds & {".jsonl", ".ndjson"} else ["table", "regression"]
    elif (files | inner) & {*IMAGE_KINDS}:
        options = ["images"] if inner & {*IMAGE_KINDS} else []
    elif inner & {*TEXT_KINDS} and not files & {*TEXT_KINDS}:
        options = ["labelled_text", "text"]
    return [" ".join(map(quote_word, (f"data={option}", reads))) for option in options]


@contract
def describe_missing_path(source: str, typed: str) -> list[str]:
    """Return the lines of a path that is not there: what is there of it, and what is called nearly so; else none."""
    if os.path.exists(path := expand_path(typed).resolve()):
        return []
    if typed.isalpha() and typed.isupper():  # as in the docs and in presets
        return [f"{typed} stands for a path of yours: give {source}=PATH"]
    lines, shown = find_near_paths(typed, path)
    words = " or ".join(quote_word(f"{source}={to_override(str(other))}") for other in shown)
    if source in ID_SETTINGS and (way := describe_id(typed)) and not words:
        return [lines[0], way]
    return [*lines, f"did you mean: {words} ?"] if words else lines
