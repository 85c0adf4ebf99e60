"""How types are checked while tests run, by beartype.

A whole number is a float too, as for mypy. The streams of pytest's capsys lack some attributes of TextIO, so any text stream
is one here.
"""

from io import TextIOBase
from typing import TextIO

from beartype import BeartypeConf, FrozenDict, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=FrozenDict({TextIO: TextIOBase})))
