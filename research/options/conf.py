"""The contents of conf/, read as text: groups and their options, and what these build."""

import os
import re
from functools import cache
from pathlib import Path

from research.contracts import contract

CONF = Path(__file__).resolve().parents[2] / "conf"
FOLDERS = [CONF]  # whose options there are: our own, then those of the folders that a command line adds


@cache
def list_groups() -> dict[str, list[str]]:
    """Return the options of each group, the groups in the order of the defaults list."""
    groups = sorted((group for folder in FOLDERS for group in folder.iterdir() if group.is_dir()), key=lambda group: group.name)
    options: dict[str, set[str]] = {name: set() for name in (*read_defaults(), *(group.name for group in groups))}
    for group in groups:
        options[group.name] |= {file.stem for file in group.glob("*.yaml") if file.is_file()}
    return {name: sorted(names) for name, names in options.items() if (CONF / name).is_dir() or names}


@contract
def set_folders(folders: list[Path]) -> None:
    """Let the options of these folders count too, as those of --config-dir; ours come first, as for Hydra."""
    FOLDERS[1:] = folders
    list_groups.cache_clear()


def read_defaults() -> dict[str, str]:
    """Return the option that each group has unless another is chosen."""
    return dict(
        re.findall(r"^  - (?:optional )?(\w+): (\w+)", (CONF / "config.yaml").read_text(encoding="utf-8"), re.MULTILINE)
    )


@contract
def read_yaml(group: str, option: str) -> str:
    """Return the text of an option's yaml; empty for an option without one."""
    files = (folder / group / f"{option}.yaml" for folder in FOLDERS)
    return next((file.read_text(encoding="utf-8", errors="replace") for file in files if os.path.isfile(file)), "")


@contract
def read_whole(group: str, option: str) -> str:
    """Return the text of an option's yaml, then that of the option it builds on, and so on."""
    texts = list[str]()
    for _ in range(8):
        texts.append(read_yaml(group, option))
        option = next(iter(re.findall(r"^  - (?!_self_)(\w+)$", texts[-1], re.MULTILINE)), "")
    return "\n".join(texts)


@contract
def chooses_node(preset: str, option: str, group: str, key: str) -> bool:
    """Return whether an option of a preset's group chooses one of another group, or sets its node, as model.linear, itself."""
    root, name = key.partition(".")[0], key.rpartition(".")[2]
    chooses, sets = rf"^ +- override /{group}(@\S+)?:", rf"^{root}:\n(?:  .*\n)*?  {name}:"
    return bool(re.search(f"{chooses}|{sets}", read_yaml(preset, option), re.MULTILINE))


@contract
def list_offers(group: str) -> list[str]:
    """Return the options of a group that advice offers: those that need no extra."""
    return [option for option in list_groups().get(group, ()) if "pip install" not in read_whole(group, option)]


@contract
def find_target(group: str, option: str) -> str:
    """Return the `_target_` of an option, its own or that of the option it builds on; empty where it has none."""
    target = re.search(rf"^(?:{group}:\n(?:  .*\n)*?  )?_target_: (\S+)", read_whole(group, option), re.MULTILINE)
    return target[1] if target else ""
