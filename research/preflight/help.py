"""The contents of conf/, read as text: groups, options, keys; and the screen that --help prints."""

import re
import textwrap
from functools import cache
from pathlib import Path

CONF = Path(__file__).resolve().parents[2] / "conf"
FOLDERS = [CONF]  # whose options there are: our own, then those of the folders that a command line adds
HELP_WIDTH = 100  # columns
HELP = """Grokbit trains, tracks and compares ternary networks: choose components, change keys, add -m to sweep.

usage: python train.py [GROUP=OPTION ...] [KEY=VALUE ...] [-m KEY=A,B ...]

groups (* is the default):
{groups}

keys (those of a component are in its yaml, as model.dim; all of them: python train.py --cfg job):
{keys}

examples:
  python train.py
  python train.py model=transformer optim=adamw
  python train.py data=digits model=bitmlp
  python train.py model=bitnet optim=grokfast -m lr=1e-3,3e-4
  python train.py experiment=text
  python train.py trainer=debug

Hydra's own flags work too: --cfg job, --info, --hydra-help. HYDRA_FULL_ERROR=1 shows tracebacks."""


@cache
def list_groups() -> dict[str, list[str]]:
    """Return the options of each group, the groups in the order of the defaults list."""
    groups = sorted((group for folder in FOLDERS for group in folder.iterdir() if group.is_dir()), key=lambda group: group.name)
    options: dict[str, set[str]] = {name: set() for name in (*read_defaults(), *(group.name for group in groups))}
    for group in groups:
        options[group.name] |= {file.stem for file in group.glob("*.yaml") if file.is_file()}
    return {name: sorted(names) for name, names in options.items() if (CONF / name).is_dir() or names}


def set_folders(folders: list[Path]) -> None:
    """Let the options of these folders count too, as those of --config-dir; ours come first, as for Hydra."""
    FOLDERS[1:] = folders
    list_groups.cache_clear()


def read_defaults() -> dict[str, str]:
    """Return the option that each group has unless another is chosen."""
    return dict(re.findall(r"^  - (?:optional )?(\w+): (\w+)", (CONF / "config.yaml").read_text(), re.MULTILINE))


def read_yaml(group: str, option: str) -> str:
    """Return the text of an option's yaml; empty for an option without one."""
    files = (folder / group / f"{option}.yaml" for folder in FOLDERS)
    return next((file.read_text(errors="replace") for file in files if file.is_file()), "")


def describe(group: str, option: str) -> str:
    """Return the first sentence of a yaml's comment, without the command that a preset's comment opens with."""
    text = read_yaml(group, option)
    lines = [line[1:].strip() for line in text.splitlines() if line.startswith("#") and "@package" not in line]
    # A line that begins in lower case continues the sentence before it.
    end = next((index for index, line in enumerate(lines) if index and not line[:1].islower()), len(lines))
    sentence = re.split(r"\.(?= [A-Z]|$)", " ".join(lines[:end]), maxsplit=1)[0]
    return re.sub(r"^python train\.py \S+(?: -m)?(?::|  ) *", "", sentence)


def format_columns(*columns: tuple[str, int], text: str) -> str:
    """Return one line of fixed columns with a text beside them, wrapped below itself."""
    left = "".join(f"{column:<{width}}" for column, width in columns)
    indent = " " * sum(width for _, width in columns)
    return textwrap.fill(text, HELP_WIDTH, initial_indent=left, subsequent_indent=indent, break_on_hyphens=False) or left


def build_help_text() -> str:
    """Return what --help prints."""
    groups, defaults = list_groups(), read_defaults()
    for group, option in list(defaults.items()):  # as model=bitnet names linear=bitnet
        defaults |= dict(re.findall(r"override /(\w+)(?:@\S+)?: (\w+)", read_yaml(group, option)))
    width = 3 + max(len(option) for options in groups.values() for option in options)
    rows = []
    for group, options in groups.items():
        for option in options:
            title, mark = group if option == options[0] else "", "*" if defaults.get(group) == option else " "
            rows.append(format_columns((f"  {title}", 13), (mark + option, width), text=describe(group, option)))
    config = (CONF / "config.yaml").read_text()
    keys = config.partition("\n\n")[2].partition("\n\n")[0].splitlines()  # between the defaults list and Hydra's own
    pairs = [key.partition(" # ")[::2] for key in keys]
    width = 4 + max(len(key) for key, _ in pairs)
    lines = [format_columns((f"  {key}", width), text=f"# {comment}" if comment else "") for key, comment in pairs]
    return HELP.format(groups="\n".join(rows), keys="\n".join(lines))


def find_target(group: str, option: str) -> str:
    """Return the `_target_` of an option, its own or that of the option it builds on; empty where it has none."""
    for _ in range(8):
        content = read_yaml(group, option)
        if target := re.search(rf"^(?:{group}:\n(?:  .*\n)*?  )?_target_: (\S+)", content, re.MULTILINE):
            return target[1]
        option = next(iter(re.findall(r"^  - (?!_self_)(\w+)$", content, re.MULTILINE)), "")
    return ""
