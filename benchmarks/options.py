"""What the measurements' command lines take: names out of those that there are, and counts that are large enough."""

import argparse
from collections.abc import Callable, Collection


def make_choices_parser(what: str, names: Collection[str]) -> Callable[[str], list[str]]:
    """The type of an option that takes names, with commas between; one that there is not is told, with what there is."""

    def parse_choices(text: str) -> list[str]:
        for name in (given := text.split(",")):
            if name not in names:
                there = ", ".join(names)
                raise argparse.ArgumentTypeError(f"there is no {what} '{name}'; give some of {there}, with commas between")
        return given

    return parse_choices


def make_count_parser(least: int) -> Callable[[str], int]:
    """The type of an option that takes a count."""

    def number(text: str) -> int:
        if (given := int(text)) < least:
            raise argparse.ArgumentTypeError(f"{given} is too few: give {least} or more")
        return given

    return number
