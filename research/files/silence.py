"""Silence what other libraries print."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def silence_libraries() -> Iterator[None]:
    """Silence warnings and logs of other libraries, such as that an optional part is not installed, and transformers' bars."""
    hub: Any = sys.modules.get("transformers.utils.logging")  # import it first: its bars are silenced where it is there
    before, has_bars = logging.root.manager.disable, hub is not None and hub.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    if has_bars:
        hub.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
        if has_bars:
            hub.enable_progress_bar()
