"""What conf/ offers, read as text: the groups, their options, the keys, and the screen that --help prints."""

import re
from functools import cache
from pathlib import Path

CONF = Path(__file__).resolve().parents[2] / "conf"
HELP = """Grokbit trains, tracks and compares ternary networks: choose components, change keys, add -m to sweep.

usage: python train.py [GROUP=OPTION ...] [KEY=VALUE ...] [-m KEY=A,B ...]

groups (* is the default):
{groups}

keys (a component's own stand in its yaml, as model.dim, and all of them in: python train.py --cfg job):
{keys}

copy one of these:
  python train.py
  python train.py model=transformer optim=adamw
  python train.py data=digits model=bitmlp
  python train.py model=bitnet optim=grokfast -m lr=1e-3,3e-4
  python train.py experiment=text
  python train.py trainer=debug

Hydra's own flags still work: --cfg job, --info, --hydra-help; HYDRA_FULL_ERROR=1 shows tracebacks."""


@cache
def list_groups() -> dict[str, list[str]]:
    """The options of each group, the groups in the order of the defaults list."""
    names = [*read_defaults(), *sorted(folder.name for folder in CONF.iterdir())]
    return {name: sorted(file.stem for file in (CONF / name).glob("*.yaml")) for name in names if (CONF / name).is_dir()}


def read_defaults() -> dict[str, str]:
    """The option that each group has unless another is chosen."""
    return dict(re.findall(r"^  - (?:optional )?(\w+): (\w+)", (CONF / "config.yaml").read_text(), re.MULTILINE))


def describe(file: Path) -> str:
    """The first comment of a yaml file that is not its package."""
    comments = (line[1:].strip() for line in file.read_text().splitlines() if line.startswith("#"))
    return next((comment for comment in comments if not comment.startswith("@package")), "")


def build_help_text() -> str:
    """What --help prints."""
    rows, default, config = [], read_defaults(), (CONF / "config.yaml").read_text()
    for group, options in list_groups().items():
        for option in options:
            title, mark = group if option == options[0] else "", "*" if default.get(group) == option else " "
            rows.append(f"  {title:<11}{mark}{option:<15}{describe(CONF / group / f'{option}.yaml')}")
    keys = config.partition("\n\n")[2].partition("\n\n")[0].splitlines()  # between the defaults list and Hydra's own
    return HELP.format(groups="\n".join(rows), keys="\n".join(f"  {line}" for line in keys))


def find_target(group: str, option: str) -> str:
    """The `_target_` of an option, its own or that of the option it builds on; empty where it has none."""
    for _ in range(8):
        file = CONF / group / f"{option}.yaml"
        content = file.read_text() if file.exists() else ""
        if target := re.search(rf"^(?:{group}:\n(?:  .*\n)*?  )?_target_: (\S+)", content, re.MULTILINE):
            return target[1]
        option = next(iter(re.findall(r"^  - (?!_self_)(\w+)$", content, re.MULTILINE)), "")
    return ""
