"""The screen that --help prints: the groups, options and keys of conf/."""

import re
import textwrap

from research.contracts import contract
from research.options.conf import CONF, list_groups, read_defaults, read_yaml

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


@contract
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
    config = (CONF / "config.yaml").read_text(encoding="utf-8")
    keys = config.partition("\n\n")[2].partition("\n\n")[0].splitlines()  # between the defaults list and Hydra's own
    pairs = [key.partition(" # ")[::2] for key in keys]
    width = 4 + max(len(key) for key, _ in pairs)
    lines = [format_columns((f"  {key}", width), text=f"# {comment}" if comment else "") for key, comment in pairs]
    return HELP.format(groups="\n".join(rows), keys="\n".join(lines))
