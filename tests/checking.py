"""How types are checked while tests run: beartype, where a whole number is a float too, as for mypy."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
