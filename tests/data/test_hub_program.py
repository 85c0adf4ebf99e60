"""Data sets of the hub as a run has them: with a hub and without, from its cache, two runs at once, runs that are killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import COMMIT, serve
from hubs import write_fineweb_edu, write_texts, write_tinystories
from program import ROOT, read_summaries, train

from research.files import hub
from research.files.hub import Request, fetch
from research.files.network import is_set_offline

STORIES = "roneneldan/TinyStories"
SPLITS = {"train": "train", "val": "auto", "test": "auto"}
FETCH = """
import sys
from pathlib import Path
from research.files import hub

hub.CACHE = Path(sys.argv[2])
copy = hub.fetch(hub.Request("text", sys.argv[1], None, None, {"train": "train", "val": "auto", "test": "auto"}, ("text",)))
print(copy.digests)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, and no hub but a test's."""
    monkeypatch.setattr(hub, "CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nobody answers
    for name in ("HF_HOME", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


def request(dataset: str, **settings: Any) -> Request:
    return Request(
        **{"kind": "text", "dataset": dataset, "config_name": None, "revision": None, "splits": SPLITS, "columns": ("text",)}
        | settings
    )


def start(dataset: str, cache: Path) -> subprocess.Popen[str]:
    """A process that does what a run does before it begins."""
    words = [sys.executable, "-c", FETCH, dataset, str(cache)]
    return subprocess.Popen(
        words, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def list_fillers(cache: Path) -> list[int]:
    """The processes that fill a copy of this cache."""
    commands = {int(path.name): (path / "cmdline") for path in Path("/proc").iterdir() if path.name.isdigit()}
    found = []
    for number, file in commands.items():
        try:
            words = file.read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if b"research.files.hub_fill" in words and any(bytes(cache) in word for word in words):
            found.append(number)
    return found


def wait_until(holds: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_run_on_a_folder(tmp_path: Path) -> None:
    write_tinystories(tmp_path / "set")
    words = [
        "data=hub",
        f"data.dataset={tmp_path / 'set'}",
        "data.seq_len=64",
        "trainer=debug",
        "tracker=jsonl",
        "batch_size=4",
    ]
    done = train(tmp_path, *words, "model.dim=32", "model.heads=2")
    (summary,) = read_summaries(tmp_path)
    assert "40 + 6 documents" in summary["data"]
    assert f"{tmp_path / 'set'}: train as train, validation as val" in done.stdout


def test_without_a_network_the_answer_names_what_there_is(tmp_path: Path) -> None:
    started = time.monotonic()
    done = train(tmp_path, "data=tinystories", "trainer=debug", "tracker=jsonl", fails=True)
    assert time.monotonic() - started < 20  # two seconds on a quiet machine; the library alone would take thirty
    lines = [line for line in done.stderr.strip().splitlines() if not line.startswith("waiting for")]
    assert lines[0] == f"error: data.dataset={STORIES}: there is no such folder, and the hub cannot be reached"
    assert all(
        words in done.stderr for words in ("FOLDER/train-00000", "data=text data.path=FILES", "Python's own sources", "digits")
    )
    assert len(lines) <= 5
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("config.yaml"))


@pytest.mark.parametrize("home", ["cache/huggingface", "home/.cache/huggingface"])
def test_without_a_network_the_cache_of_the_hub_is_read(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / home / "hub/datasets--roneneldan--TinyStories"
    write_tinystories(folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text(COMMIT)
    copy = fetch(request(STORIES))
    assert (copy.splits, copy.revision) == ({"train": "train", "val": "validation"}, COMMIT)
    assert not is_set_offline()  # the next data set may find a network
    assert len((copy.folder / "train.jsonl").read_text().splitlines()) == 40


def test_two_runs_read_a_hub_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tinystories(tmp_path / "hub" / STORIES)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with serve(tmp_path / "hub") as (url, requests):
        monkeypatch.setenv("HF_ENDPOINT", url)
        both = [start(STORIES, cache) for _ in range(2)]
        outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0] != ""
    assert sum("README.md" in line and line.startswith("GET") for line in requests) == 1
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert fetch(request(STORIES)).revision == COMMIT  # the copy needs no hub
    assert not (tmp_path / "home").exists()


def test_a_limit_stops_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fineweb_edu(tmp_path / "hub/HuggingFaceFW/fineweb-edu")
    with serve(tmp_path / "hub") as (url, requests):
        monkeypatch.setenv("HF_ENDPOINT", url)
        copy = fetch(request("HuggingFaceFW/fineweb-edu", config_name="sample-10BT", max_samples=5))
    assert len((copy.folder / "train.jsonl").read_text().splitlines()) == 5
    assert any("000_00000.parquet" in line for line in requests)
    assert not any("001_00000.parquet" in line for line in requests)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dataset": "a/none"}, ("data.dataset=a/none: neither the hub nor this folder has it", "HF_TOKEN")),
        ({"dataset": "a/gated"}, ("data.dataset=a/gated: its owner gives access", "https://huggingface.co/datasets/a/gated")),
        ({"dataset": "a/script"}, ("data.dataset=a/script: it is a script", "not run")),
        ({"dataset": "a/stories", "revision": "v9"}, ("data.dataset=a/stories: it has no revision v9", "give one")),
    ],
)
def test_what_a_hub_refuses_is_told(
    settings: dict[str, str], words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("stories", "gated", "script"):
        write_texts(tmp_path / f"hub/a/{name}/train.parquet", ["a story"])
    (tmp_path / "hub/a/script/script.py").write_text("raise SystemExit")
    with serve(tmp_path / "hub", "a/gated") as (url, _):
        monkeypatch.setenv("HF_ENDPOINT", url)
        with pytest.raises(ValueError, match="data") as error:
            fetch(request(**settings))
    assert all(word in str(error.value) for word in words), error.value


@pytest.fixture
def silent_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A hub that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield server


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_ends_leaves_no_reader_behind(number: signal.Signals, cache: Path, silent_hub: socket.socket) -> None:
    process = start(STORIES, cache)
    wait_until(lambda: list_fillers(cache))
    process.send_signal(number)
    assert process.wait(timeout=30) != 0
    process.communicate()
    wait_until(lambda: not list_fillers(cache))


@pytest.mark.slow
def test_a_reader_that_is_killed_goes_on(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for shard in range(2):
        texts = [f"{shard} {number} " + "words and lines " * 60 for number in range(40_000)]
        write_texts(tmp_path / f"set/train-0000{shard}-of-00002.parquet", texts)
    process = start(str(tmp_path / "set"), cache)
    wait_until(lambda: list(cache.glob(".*/draft/train.progress")))
    for reader in list_fillers(cache):
        os.kill(reader, signal.SIGKILL)
    errors = process.communicate(timeout=60)[1]
    assert "its reader ended with code -9" in errors
    assert "start again: it goes on" in errors
    copy = fetch(request(str(tmp_path / "set")))
    monkeypatch.setattr(hub, "CACHE", tmp_path / "other")
    assert fetch(request(str(tmp_path / "set"))).digests == copy.digests
