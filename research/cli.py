"""What the command lines share: streams that never end a run, text without passwords, waits with a name, errors, exit codes."""

import argparse
import codecs
import io
import json
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar

from research import ranges, signals
from research.contracts import contract

T = TypeVar("T")
HIDDEN = "***"
# Control characters but the tab, marks that turn the direction of text, and bytes that are no text.
UNPRINTABLE = re.compile(r"[\x00-\x08\n-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
# A key that ends so has a secret as its value; of a model's tokens none is one, nor is a count of them.
NO_TOKEN = "".join(f"(?<!{name}_)" for name in ("bos", "eos", "pad", "unk", "sep", "cls", "mask", "last", "first", "next"))
SECRET = (
    rf"(?:pass(?:word|wd|phrase)|secret|{NO_TOKEN}token(?!: *[-+.\d]+\b)|(?:api|access|account|secret|private)[-_]?key"
    r"|credentials?|connection[-_]?string|authorization)"
)
BRIEF = "pass|pwd|auth|key|sig|signature|sas|jwt|code|pat"  # so in the query of a URL, and at the end of a variable's name
SECRET_KEY = rf"(?i)(?:{SECRET}|(?:^|[_.-])(?:pass|pwd|jwt))$"
SECRET_VARIABLE = rf"(?i)(?:{SECRET}|_pass|_pwd|(?P<brief>tokens|_(?:{BRIEF})))(?:_\d+)?$"
COLON = r"\\*(?::|%3A)\\*(?:/|%2F)\\*(?:/|%2F)"  # Hydra writes \ before : and = of a value, and prints \\; JSON may write \/
SCHEME = rf"(?<![\w+.-])\w[\w+.-]*{COLON}"
USERS = r"(?:postgres|mysql|mariadb|mssql|oracle|ssh|sftp|git:)"  # before @ they have a user's name, others a token
IN_QUERY = r"(?:[?&;#]|%3[BF]|%26)(?:[\w.-]*[-_.])?"
VALUE = r"(?:(?<=\")(?:\\.|[^\"\\])+(?=\")|(?<=')(?:\\.|[^'\\])+(?=')|(?:\\.|[^\s\"'%s])+)"
# Compiled when the first text is looked at: --help needs none.
USER_PATTERNS = (  # of a text with an @: each looks for one from every URL on
    rf"^((?:[\w.+~/-]*=)?[\"']*\w[\w+.-]*{COLON}[^\s/:]*:)(?!.*://).*(?=@)",  # one URL: a password may hold anything
    rf"({SCHEME}[^\s/:]*:)\S*(?=@)",  # a URL within a text: up to the last @ of a word
    rf"({SCHEME}[^\s/:@]*:)(?!\d{{1,5}}\b)[^\s@]+ (?:(?!://)[^@\n])*(?=@\S)",  # a space in its password
    rf"({SCHEME}[^\s/:@%]*%3A)[^\s&]+?(?=%40|@)",
    r"((?:^|(?<=[\s\"'=(\[{,]))//[^\s/:@]*:)\S+(?=@)",
    rf"((?<![\w+.-])(?!{USERS}){SCHEME})[^\s/:@]+(?=@)",
)
KEY_PATTERNS = (
    rf"(?i)({IN_QUERY}(?:{BRIEF}|{SECRET})(?:\\*=|%3D))(?:(?!%3B|%26)[^\s&\"'])+",
    rf"(?i)({SECRET}\\*[\"']?(?:\\*=|%3D)\\*+[\"']?+)(?!\*\*\*){VALUE % ''}",
    rf"(?i)({SECRET}\\*[\"']?\s?(?:\\*:|%3A)\s*+\\*+[\"']?+(?:(?:bearer|basic|digest)\s++)?+)(?!\*\*\*){VALUE % ',}'}",
    rf"(\b[A-Z0-9_]+_(?:{BRIEF.upper()})\\*=\\*+[\"']?+)(?!\*\*\*){VALUE % ''}",
    rf"(?i)(--[\w-]*{SECRET}\s+)[^\s\"'-]\S*",
)


def redact(value: T, depth: int = ranges.MAX_NESTING) -> T:
    """Return a text without the passwords of its URLs and the secrets of the environment; so each text in dicts and lists.

    Whatever leaves the process goes through here: files of a run, logs, messages, MLflow. What lies deeper becomes text.
    """
    if isinstance(value, dict) and depth:
        return {
            redact(k) if ":" in str(k) else k: HIDDEN if is_secret(k, v) else redact(v, depth - 1) for k, v in value.items()
        }  # type: ignore[return-value]
    if type(value) in (list, tuple) and depth:
        return type(value)(redact(item, depth - 1) for item in value)  # type: ignore[call-arg, attr-defined]
    if isinstance(value, bytes):
        return redact_text(value.decode(errors="surrogateescape")).encode(errors="surrogateescape")  # type: ignore[return-value]
    return redact_text(str(value)) if isinstance(value, str if depth else str | dict | list | tuple) else value  # type: ignore[return-value]


def redact_text(text: str) -> str:
    """Return a text without passwords and secrets."""
    patterns = KEY_PATTERNS if re.search("[=:%@]|--", text) else ()
    for pattern in (*USER_PATTERNS, *patterns) if re.search("@|%40", text) else patterns:
        text = re.sub(pattern, rf"\1{HIDDEN}", text)
    for secret in find_secrets():
        text = compile_secret(secret).sub(HIDDEN, text)
    return text


def is_secret(key: object, value: object) -> bool:
    """Return whether a key names a secret, and its value may be one."""
    is_plain = isinstance(value, str | bytes | int | float) and not isinstance(value, bool)
    return is_plain and bool(value) and re.search(SECRET_KEY, str(key)) is not None


def find_secrets() -> Iterator[str]:
    """Yield the secrets of the environment, which have a length by which a text can be told to hold them."""
    for name, value in os.environ.items():
        match, is_word = match_variable(name), value.lower() in ("true", "false", "none", "null")
        if match and not is_word and len(value) >= (8 if match["brief"] or value.isdecimal() else 4):
            yield value


match_variable = lru_cache(partial(re.search, SECRET_VARIABLE))


@lru_cache
def compile_secret(secret: str) -> re.Pattern[str]:
    """Return the pattern of a secret as it is, quoted by Hydra, Python, JSON or a URL. A short one is no part of a word."""
    from urllib.parse import quote

    forms = dict.fromkeys((secret, quote(secret, safe=""), quote(secret), json.dumps(secret)[1:-1]))
    texts = "|".join(r"\\*".join(["", *map(re.escape, form)]) for form in forms)
    return re.compile(texts if len(secret) >= 8 else rf"(?<!\w)(?:{texts})(?!\w)")


def escape_controls(text: str) -> str:
    """Return a text whose control characters are shown, as \\x1b or \\u2028: a terminal would obey them. Lines stay."""
    return UNPRINTABLE.sub(lambda match: "\n" if match[0] == "\n" else ascii(match[0])[1:-1].replace("\\r", "\\x0d"), text)


class RedactedRecord(logging.LogRecord):
    """What is logged, its traceback included, without passwords."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.exc_info and self.exc_info[0]:
            self.exc_text = escape_controls(redact(logging.Formatter().formatException(self.exc_info)))

    def getMessage(self) -> str:  # noqa: N802
        return escape_controls(redact(super().getMessage()))


def redact_output() -> None:
    """Keep passwords out of every log and every traceback of this process."""
    logging.setLogRecordFactory(RedactedRecord)
    sys.excepthook = lambda _, error, __: print_message("".join(traceback.format_exception(error)).rstrip())


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, escape_controls(f"error: {redact(message)}\n"))


class WordStream(io.TextIOWrapper):
    """A standard stream for words to people, without passwords: after the first failure it drops them, and raises nothing."""

    def write(self, text: str) -> int:
        try:
            super().write(redact(text))
            return len(text)
        except OSError as error:
            return self._drop(error, len(text))

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError, length: int = 0) -> int:
        """Return `length`. From now on write to /dev/null, unless only a pipe was full for a moment."""
        if not isinstance(error, BlockingIOError):
            redirect_to_null(self.fileno())
        return length


def redirect_to_null(fd: int) -> None:
    """Let a descriptor write to /dev/null from now on."""
    with open(os.devnull, "wb") as null:
        os.dup2(null.fileno(), fd)


def escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encode what an encoding lacks: bytes of a path that are no text as themselves, other characters as \\xe9 or \\u2026."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


def protect_streams(prints_result: bool = False) -> None:
    """Replace stdout and stderr, so that nothing printed can end what this process does: call it before anything else.

    A stream that is closed becomes /dev/null: else the next file that is opened would receive the words. With `prints_result`
    stdout is what the program is for: there a full disk or a closed pipe remains an OSError. A width or height of the terminal
    that cannot be (COLUMNS=0) is unset.
    """
    codecs.register_error("grokbit.escape", escape)
    logging.raiseExceptions = False  # no tracebacks of a train.log that a full disk does not take: the run's own error says so
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest descriptor that is free: this one
    sys.stdin = sys.stdin or os.fdopen(0)
    for fd, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name) or os.fdopen(fd, "w", encoding="utf-8", closefd=False)
        if type(stream) is not io.TextIOWrapper:
            continue  # a notebook's or a test's
        kind = io.TextIOWrapper if prints_result and fd == 1 else WordStream
        encoding, buffered = stream.encoding, (stream.line_buffering, stream.write_through)
        stream = kind(stream.detach(), encoding, "grokbit.escape", None, *buffered)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    for name in ("COLUMNS", "LINES"):
        value = os.environ.get(name, "80")
        if not (value.isascii() and value.isdecimal() and 8 <= int(value[:5]) <= 1000):
            del os.environ[name]


def print_message(text: str, stream: TextIO | None = None) -> None:
    """Print to `stream`, by default stderr, at once, without passwords and control characters."""
    print(escape_controls(redact(text)), file=stream or sys.stderr, flush=True)


@contextmanager
@contract
def announce_wait(reason: str, seconds: float = 2.0) -> Iterator[None]:
    """Say what is waited for, once the block has taken `seconds`."""
    timer = threading.Timer(seconds, print_message, [f"waiting for {reason}"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def wait_for(reason: str) -> Iterator[None]:
    """Wait in the block: after two seconds say for what. A signal ends it at once, by Stopped."""
    with announce_wait(reason), signals.watch() as watch, watch.raise_immediately():
        yield


def run_process(reason: str, words: Sequence[str], cwd: Path | None = None, timeout: float | None = None) -> Any:
    """Run another program as `wait_for` waits; return its CompletedProcess. An early end ends all that it has started.

    Raise OSError where it cannot be started, subprocess.TimeoutExpired where it takes longer than `timeout` seconds.
    """
    import subprocess

    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with wait_for(reason), subprocess.Popen(words, cwd=cwd, text=True, process_group=0, **pipes) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(words, process.returncode, output, errors)


def run_command(work: Callable[[signals.Watch], None]) -> int:
    """Run `work` and return the exit code: 0, 2 after a ValueError, 1 after an OSError, 129, 130 or 143 after a signal.

    An error is printed as one message; HYDRA_FULL_ERROR=1 raises it instead.
    """
    try:
        with signals.watch() as watch:
            work(watch)
    except (ValueError, OSError) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print_message(f"error: {error}")
        return 2 if isinstance(error, ValueError) else 1
    except signals.Stopped as stopped:
        print_message(str(stopped))
        return signals.get_exit_code(stopped.signum)
    return 0


def first_line(error: BaseException, limit: int = 200) -> str:
    """Return the first line of an error's message, at most `limit` characters; without a message the name of its type."""
    return redact((get_message(error).strip().splitlines() or [type(error).__name__])[0])[:limit]


def describe_error(error: BaseException) -> str:
    """Return the type of an error and its message, without passwords."""
    return redact(f"{type(error).__name__}: {get_message(error)}")


def get_message(error: BaseException) -> str:
    """Return an error's message; an empty text where its own code raises one in place of it."""
    try:
        return str(error)
    except Exception:
        return ""


def format_duration(seconds: float) -> str:
    """Return a time for people in its two largest units: 3.2 s, 45 s, 3 min 20 s, 2 h 05 min or 1 d 04 h."""
    if (rounded := round(seconds)) < 60:
        return f"{round(seconds, 1):g} s" if rounded < 10 else f"{rounded} s"
    units = {86400: ("d", 3600, "h"), 3600: ("h", 60, "min"), 60: ("min", 1, "s")}
    size, (large, part, small) = next((size, names) for size, names in units.items() if rounded >= size)
    return f"{rounded // size} {large}" + (f" {rest:02} {small}" if (rest := rounded % size // part) else "")


def format_count(count: int, noun: str) -> str:
    """Return a number of things for people: "1 step", "2,000 steps"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
