"""Whether a server can be reached: by its own address, or by the proxy before it."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from research.evaluate import tasks
from research.files import hub
from research.files.network import can_connect, is_hub_reachable

NOBODY = "http://127.0.0.1:9"
VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT", "HF_HOME", "HF_TOKEN_PATH")
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in (*VARIABLES, *PROXIES, *map(str.upper, PROXIES)):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def address() -> Iterator[str]:
    """A server that takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HF_ENDPOINT": "SERVER"}, True),
        ({"HF_ENDPOINT": NOBODY}, False),
        ({"HF_ENDPOINT": "http://hub.test", "http_proxy": "SERVER"}, True),
        ({"HF_ENDPOINT": "http://hub.test", "http_proxy": NOBODY}, False),
        ({"https_proxy": "SERVER"}, True),  # huggingface.co itself
        ({"HF_ENDPOINT": "SERVER", "http_proxy": NOBODY, "no_proxy": "127.0.0.1"}, True),
        ({"HF_ENDPOINT": "SERVER", "HF_HUB_OFFLINE": "1"}, False),
        ({"HF_ENDPOINT": "SERVER", "TRANSFORMERS_OFFLINE": "true"}, False),
        ({"HF_ENDPOINT": "SERVER", "HF_DATASETS_OFFLINE": "0"}, True),
    ],
)
def test_the_hub_is_where_the_environment_says(
    variables: dict[str, str], expected: bool, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("SERVER", address))
    assert is_hub_reachable() == expected


def test_an_address_that_does_not_answer_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(*words: Any) -> Any:
        time.sleep(1)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", wait)  # as the look-up of a name may
    started = time.monotonic()
    assert not can_connect("https://hub.test", "HF_ENDPOINT", 0.2)
    assert time.monotonic() - started < 0.9


@pytest.mark.parametrize(
    ("variable", "address", "reason"),
    [
        ("HF_ENDPOINT", "http://localhost:99x", "Port could not be cast"),
        ("HF_ENDPOINT", "http://localhost:99999", "Port out of range"),
        ("HF_ENDPOINT", "http://a..b", "label empty or too long"),
        ("HF_ENDPOINT", "http://[::1", "Invalid IPv6 URL"),
        ("HF_ENDPOINT", "localhost:8080", "it has no host"),
        ("https_proxy", "http://me:secret@localhost:99999", "Port out of range"),
        ("https_proxy", "localhost:99x", "Port could not be cast"),
    ],
)
def test_an_address_that_is_none_is_named(variable: str, address: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, address)
    with pytest.raises(ValueError, match=f"^{variable}=.*: it is no address of a server: .*{reason}") as error:
        is_hub_reachable()
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(("is_there", "has_files"), [(True, False), (False, False), (False, True)])
def test_tasks_of_lm_eval_keep_their_files_below_outputs(
    is_there: bool, has_files: bool, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of data=hub. Without a network what is in the home folder is read, if there is nothing else."""
    monkeypatch.setattr(hub, "CACHE", tmp_path)
    if has_files:
        (tmp_path / "huggingface").mkdir()
    monkeypatch.setenv("HF_ENDPOINT", address if is_there else NOBODY)
    tasks.prepare_hub()
    assert os.environ.get("HF_HOME") == (str(tmp_path / "huggingface") if is_there or has_files else None)
    assert ("HF_HUB_OFFLINE" in os.environ, "HF_DATASETS_OFFLINE" in os.environ) == (not is_there, not is_there)
