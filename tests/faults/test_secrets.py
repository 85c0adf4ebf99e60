"""Row 18: passwords leave the process for nobody but the server that the user names."""

import json
import logging
import re
import shutil
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pytest
import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from hypothesis import assume, given
from hypothesis import strategies as st
from program import ROOT, TINY, make_environment, run

from research.cli import HIDDEN, RedactedRecord, first_line, print_message, redact, redact_output
from research.report.report import rebuild_report
from research.run import redact_hydra_files
from research.tracking.mlflow_store import choose_uri
from research.tracking.storage import DEFAULT_URI

PASSWORD = "s3cr3t-Pa55"
SCHEMES = ["http", "https", "postgresql", "postgresql+psycopg2", "redis", "mysql", "amqp"]
visible = st.text(st.characters(exclude_categories=("Cs", "Cc", "Z")), min_size=4, max_size=20)


@given(scheme=st.sampled_from(SCHEMES), password=visible, before=st.text(max_size=20), after=st.text(max_size=20))
def test_no_password_stays_in_a_text(scheme: str, password: str, before: str, after: str) -> None:
    """Also one that should have been quoted, as with / @ : in it."""
    assume(not password.isspace() and len(password.split()) == 1 and "@" not in after)
    text = f"{before} {scheme}://me:{password}@host:5432/name {after}"
    assume(password not in text.replace(f":{password}@", ":@"))
    assert redact(text) == redact(before) + f" {scheme}://me:{HIDDEN}@host:5432/name " + redact(after)


@given(password=st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).filter(str.isprintable))
def test_no_password_stays_in_a_setting(password: str) -> None:
    url = f"postgresql://me@corp:{password}@host/name"
    assert redact({"a": [url, {"b": f"tracker.uri={url}"}]}) == {
        "a": [f"postgresql://me@corp:{HIDDEN}@host/name", {"b": f"tracker.uri=postgresql://me@corp:{HIDDEN}@host/name"}]
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://ghp_token@github.com/x", "https://***@github.com/x"),
        ('see \'http://u:p@h\' and {"a":"redis://:p@h:6379/0"}', 'see \'http://u:***@h\' and {"a":"redis://:***@h:6379/0"}'),
        ("postgresql://h/x?user=me&password=p&sslmode=no", "postgresql://h/x?user=me&password=***&sslmode=no"),
        ("https://h/x?api_key=p;X-Amz-Signature=q", "https://h/x?api_key=***"),
        ("host=h password=p dbname=x", "host=h password=*** dbname=x"),
        ("hydra.job.env_set.MLFLOW_TRACKING_TOKEN=p", "hydra.job.env_set.MLFLOW_TRACKING_TOKEN=***"),
        ('export PGPASSWORD="p q', 'export PGPASSWORD="*** q'),
        (f"it is {PASSWORD}!", "it is ***!"),
        (r"tracker.uri=http\://me\:p\=q\,r\ s@h/x", r"tracker.uri=http\://me\:***@h/x"),  # as Hydra's basic sweeper
        (r"['a=http\://me\:p\=q@h/x', 'lr=0.1']", r"['a=http\://me\:***@h/x', 'lr=0.1']"),
        (str([r"a=http\://me\:p@h", PASSWORD.replace("-", r"\-")]), str([r"a=http\://me\:***@h", "***"])),
        (r"a=http\://tok@h, b=http\://h?password\=p", r"a=http\://***@h, b=http\://h?password\=***"),
        (PASSWORD.replace("-", r"\-"), "***"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("http://h:5000/#/experiments", "http://h:5000/#/experiments"),
        ("postgresql://me@host:5432/name", "postgresql://me@host:5432/name"),
        ("sqlite:////a/b@c.db", "sqlite:////a/b@c.db"),
        ("loss=last_token unit: token, mail a@b.c", "loss=last_token unit: token, mail a@b.c"),
        (3, 3),
        (None, None),
    ],
)
def test_a_secret_is_hidden_and_nothing_else(text: Any, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "last_token")
    assert redact(text) == expected
    assert redact(redact(text)) == expected


P = "hunter22X"
SECRETS = f"""
postgresql://u:{P}@h/db  redis://:{P}@h:6379  ftp://{P}@h  grpc://{P}@h:1  databricks://{P}@h  s3://KEY:{P}@b  a.b://u:{P}@h
cannot reach http://u:pa {P}@h/x now  cannot reach http://u:pa/{P}@h:80/x now  //u:{P}@h/x  http:\\/\\/u:{P}@h  http://u%3A{P}@h
http%3A%2F%2Fu%3A{P}%40h  http://h/?sig={P}  http://h/?pwd={P}  http://h/?pass={P}  http://h/?auth={P}  http://h/?key={P}
http://h/?api-key={P}  http://h/?jwt={P}  https://s3/x?X-Amz-Credential={P}  https://s3/x?a=1&X-Amz-Signature={P}
http://h/#access_token={P}  DRIVER=x;UID=u;PWD={P}  mssql:///?odbc_connect=UID%3Du%3BPWD%3D{P}  Server=h;Password={P};
AccountKey={P};  passphrase={P}  host=h password='{P} x{P}'  jdbc:postgresql://h/db?user=u&password={P}
Authorization: Bearer {P}  Authorization: Basic {P}  {{'password': '{P}'}}  {{password:{P}}}  password: {P}  "token": "{P}"
--password {P}  --token={P}  +tracker.password={P}
tracker.token={P}  hydra.job.env_set.HF_TOKEN={P}  +hydra.job.env_set.DB_PASS={P}  client_secret={P}  hf_token={P}
{{url:x,engine_kwargs:{{connect_args:{{password:{P}}}}}}}  (psycopg2) connection to 'dbname=x password={P} host=h'
{{\\"password\\": \\"{P}\\"}}  PASSWORD={P}  secret_key={P}  connection_string={P}
""".replace("\n", "  ").strip()


@pytest.mark.parametrize("text", re.split(r"\s{2,}", SECRETS))
def test_each_form_of_a_secret_is_hidden(text: str) -> None:
    for around in (text, f"it is {text}", f"['{text}']", f"{text} there", f"a\n{text}\nb"):
        assert P not in redact(around)
        assert HIDDEN in redact(around)
        assert redact(redact(around)) == redact(around)


PLAIN = """
tokens=200  --tokens 200  token_bytes=3  data.tokenizer=bpe  key=value  val/loss=0.5  max_tokens: 5  bits per token: 1.23
eos_token: </s>  pad_token=x  token, then 3  {'tokens': 3}  token_id=5  http://127.0.0.1:5000  see http://h:5000 and mail a@b.c
postgresql://me@host:5432/name  ssh://git@github.com/x  git@github.com:a/b.git  run 0123456789abcdef0123456789abcdef
PWD=/home/u  passes=3  signature: (Tensor input)  author=me  keys=[a,b]  https://h/x?page=2&monkey=3  s3://bucket/key@v1
secretary=x  journal:///a/b  optim.lr=${lr}  a.py:12: error  12:30:01 INFO
""".replace("\n", "  ").strip()


@pytest.mark.parametrize("text", re.split(r"\s{2,}", PLAIN))
def test_what_is_no_secret_stays(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISABLE_AUTH", "true")
    monkeypatch.setenv("MAX_TOKENS", "200")
    monkeypatch.setenv("PASSWORD", "en")  # too short to be told from a part of a word
    monkeypatch.setenv("DB_PASS", "erro")
    assert redact(text) == text


VARIABLES = [
    "DB_PASS",
    "LDAP_PWD",
    "GITHUB_PAT",
    "REDIS_AUTH",
    "WANDB_KEY",
    "SSH_PASSPHRASE",
    "MY_CREDENTIALS",
    "TOKENS",
    "X_TOKEN_2",
]


@pytest.mark.parametrize("name", [*VARIABLES, "AZURE_CONNECTION_STRING", "PGPASSWORD"])
def test_each_secret_of_the_environment_is_hidden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = 'Sup3r Secret"x'
    monkeypatch.setenv(name, secret)
    for form in (secret, repr(secret), json.dumps(secret), quote(secret), quote(secret, safe="")):
        assert "Sup3r" not in redact(f"x {form} y")
    monkeypatch.setenv("PGPASSWORD", "ab1!")
    assert redact("it is ab1! or cab1!x") == "it is *** or cab1!x"


def test_each_part_of_a_record_is_redacted() -> None:
    url = f"http://u:{P}@h"
    record = {url: 1, "t": (url, [url]), "b": url.encode(), "a": {"password": P, "hf_token": 7, "secret": ""}, "db.passwd": P}
    record |= {"key": "value", "tokens": 200, "eos_token": "x", "token": None, "password": True}
    hidden = f"http://u:{HIDDEN}@h"
    assert redact(record) == {
        **{hidden: 1, "t": (hidden, [hidden]), "b": hidden.encode()},
        **{"a": {"password": HIDDEN, "hf_token": HIDDEN, "secret": ""}, "db.passwd": HIDDEN},
        **{"key": "value", "tokens": 200, "eos_token": "x", "token": None, "password": True},
    }


STORAGE = f"{{_target_:optuna.storages.RDBStorage,url:foo://h/x,engine_kwargs:{{connect_args:{{password:{PASSWORD}}}}}}}"
FULL_ERRORS = {
    "a sweep": ["-m", "seed=0,1", f"hydra.sweeper.storage={STORAGE}", "tracker=none"],
    "a job": [f"tracker.uri=foo://me:{PASSWORD}@host/x"],
}


@pytest.mark.parametrize("name", ["a sweep", pytest.param("a job", marks=pytest.mark.slow)])
def test_a_full_error_hides_the_password(tmp_path: Path, name: str) -> None:
    """Also of a storage's settings, and where Hydra repeats the command."""
    argv = [str(ROOT / "train.py"), *TINY, *FULL_ERRORS[name], f"out={tmp_path / 'out'}"]
    done = run(argv, tmp_path, make_environment(tmp_path) | {"HYDRA_FULL_ERROR": "1"})
    assert done.returncode == 1
    assert PASSWORD not in done.stdout + done.stderr
    assert HIDDEN in done.stderr
    assert find_password(tmp_path) == []


def test_what_is_logged_or_printed_is_redacted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://me:{PASSWORD}@host"
    handler = logging.FileHandler(tmp_path / "train.log")
    logger, before, hook = logging.getLogger("secrets"), logging.getLogRecordFactory(), sys.excepthook
    logger.addHandler(handler)
    redact_output()
    try:
        try:
            raise ValueError(f"{url} does not answer")
        except ValueError as error:
            logger.warning("at %s", url, exc_info=True)
            sys.excepthook(type(error), error, error.__traceback__)
            print_message(first_line(error))
    finally:
        logging.setLogRecordFactory(before)
        sys.excepthook = hook
        logger.removeHandler(handler)
        handler.close()
    for text in ((tmp_path / "train.log").read_text(), capsys.readouterr().err):
        assert text.count(f"http://me:{HIDDEN}@host") >= 2
        assert "Traceback" in text
        assert PASSWORD not in text


def test_what_is_logged_or_printed_moves_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of another's names what a message repeats: colours, titles of windows, text from right to left."""
    text, shown = "a\x1b[31m\x1b]0;T\x07\u202e\tb\nc\r", "a\\x1b[31m\\x1b]0;T\\x07\\u202e\tb\nc\\x0d"
    print_message(text)
    assert capsys.readouterr().err == f"{shown}\n"
    assert RedactedRecord("x", logging.INFO, "x", 1, "%s", (text,), None).getMessage() == shown


def find_password(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]


def test_a_run_that_fails_at_its_store_keeps_the_password_to_itself(tmp_path: Path) -> None:
    """In config.yaml, overrides.txt, env.json, train.log with its traceback, and on the screen."""
    argv = [str(ROOT / "train.py"), *TINY, f"tracker.uri=foo://me:{PASSWORD}@host/x", f"out={tmp_path / 'out'}"]
    done = run(argv, tmp_path, make_environment(tmp_path))
    assert done.returncode == 1
    assert f"tracker.uri=foo://me:{HIDDEN}@host/x is not a store" in done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    assert find_password(tmp_path) == []
    (folder,) = (tmp_path / "out" / "modular").iterdir()
    assert yaml.safe_load((folder / "config.yaml").read_text())["tracker"]["uri"] == f"foo://me:{HIDDEN}@host/x"
    for name in ("overrides.txt", "env.json", "train.log"):
        assert f"foo://me:{HIDDEN}@host/x" in (folder / name).read_text(), name


def test_a_run_that_is_uploaded_holds_no_secret_of_the_environment(tmp_path: Path) -> None:
    """What the command line looked up there stands in the configuration, in MLflow's params and in each artifact."""
    own = {"MLFLOW_TRACKING_PASSWORD": PASSWORD}
    words = ["optim.no_decay=[norm,'${oc.env:MLFLOW_TRACKING_PASSWORD}']", f"+hydra.job.env_set.PGPASSWORD={PASSWORD}"]
    argv = [str(ROOT / "train.py"), *TINY, *words, f"out={tmp_path / 'out'}"]
    done = run(argv, tmp_path, make_environment(tmp_path) | own)
    assert done.returncode == 0, done.stderr
    assert find_password(tmp_path) == []
    assert [*tmp_path.glob("mlartifacts/**/config.yaml")], "it was uploaded"


def test_what_hydra_itself_writes_holds_no_password(tmp_path: Path) -> None:
    """multirun.yaml of its basic sweeper, and .hydra/, which a run of ours does not need."""
    uri = f"foo://me:{PASSWORD}@host/x"
    words = ["hydra/sweeper=basic", "hydra.output_subdir=.hydra", f"tracker.uri={uri}", f"+hydra.job.env_set.STORE={uri}"]
    argv = [str(ROOT / "train.py"), "-m", *TINY, *words, "lr=1e-3,2e-3", f"out={tmp_path / 'out'}"]
    done = run(argv, tmp_path, make_environment(tmp_path))
    assert done.returncode == 1
    assert f"tracker.uri=foo://me:{HIDDEN}@host/x is not a store" in done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    assert find_password(tmp_path) == []
    (sweep,) = (tmp_path / "out" / "modular").iterdir()
    assert yaml.safe_load((sweep / "multirun.yaml").read_text())["tracker"]["uri"] == f"foo://me:{HIDDEN}@host/x"
    assert yaml.safe_load((sweep / "0" / ".hydra" / "config.yaml").read_text())["tracker"]["uri"] == f"foo://me:{HIDDEN}@host/x"
    for name in (".hydra/hydra.yaml", ".hydra/overrides.yaml", "overrides.txt"):
        assert rf"foo\://me\:{HIDDEN}@host/x" in (sweep / "0" / name).read_text(), name


def test_what_a_launcher_s_process_has_written_is_redacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not begin in train.py: the run itself is the first of ours that it calls."""
    config = {"uri": f"http://me:{PASSWORD} with a space@host", "here": "${uri}", "steps": 3, "none": None}
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config, width=20))
    hydra = SimpleNamespace(runtime=SimpleNamespace(output_dir=str(tmp_path)), output_subdir=".hydra")
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    redact_hydra_files()
    expected = config | {"uri": f"http://me:{HIDDEN}@host"}
    assert yaml.safe_load((tmp_path / ".hydra" / "config.yaml").read_text()) == expected


@pytest.mark.parametrize("words", [["--cfg", "all"], ["--cfg", "hydra"], ["--info", "all"], ["--cfg", "job", "--unknown"]])
def test_what_hydra_itself_prints_holds_no_password(tmp_path: Path, words: list[str]) -> None:
    """Its last case is an error of the parser, which repeats what it does not know."""
    word = f"+hydra.job.env_set.STORE=foo://me:{PASSWORD}@host/x"
    words = [*words[:-1], f"--unknown=foo://me:{PASSWORD}@host/x"] if words[-1] == "--unknown" else [word, *words]
    done = run([str(ROOT / "train.py"), *TINY, *words], tmp_path, make_environment(tmp_path))
    assert PASSWORD not in done.stdout + done.stderr
    assert HIDDEN in done.stdout + done.stderr or words[1] == "--info"


class Server(BaseHTTPRequestHandler):
    """Answers nothing, and keeps who has asked."""

    seen: list[str | None]

    def answer(self) -> None:
        self.seen.append(self.headers.get("Authorization"))
        self.send_error(403)

    do_GET = do_POST = do_PUT = do_PATCH = answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def server() -> Iterator[tuple[str, list[str | None]]]:
    seen: list[str | None] = []
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Server,), {"seen": seen}))
    Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}", seen
    http.shutdown()
    http.server_close()


@pytest.mark.parametrize("is_own", [False, True])
def test_a_report_goes_to_the_user_s_own_server_alone(
    tmp_path: Path,
    server: tuple[str, list[str | None]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_own: bool,
) -> None:
    uri, seen = server
    sweep = Path(shutil.copytree(ROOT / "tests" / "fixtures" / "v1" / "sweep", tmp_path / "sweep"))
    (sweep / "mlflow_run_id").write_text("0" * 32)
    for file in sweep.glob("*/config.yaml"):
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"tracker": {"uri": uri}}))
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", PASSWORD)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri if is_own else f"sqlite:///{tmp_path}/none.db")
    rebuild_report(str(sweep), plots=False)
    assert seen[:1] == ([f"Bearer {PASSWORD}"] if is_own else [])
    message = capsys.readouterr().err
    assert ("names the store" in message) is not is_own
    assert (sweep / "results.md").exists()


OWN = f"http://me:{PASSWORD}@host:5000"


@pytest.mark.parametrize(
    ("recorded", "requested", "expected"),
    [
        (None, None, OWN),
        (None, "http://typed", "http://typed"),
        (redact(OWN), None, OWN),  # the password is that of the environment
        (redact(OWN).replace("host", "evil"), None, ""),
        (f"http://other:{HIDDEN}@host:5000", None, ""),
        (f"http://me:{HIDDEN}@evil/@host:5000", None, OWN),  # it is hidden, so it is not even looked at
        ("http://evil", None, ""),
        ("http://typed", "http://typed", "http://typed"),
        (f"postgresql://u:{HIDDEN}@h/x", f"postgresql://u:{PASSWORD}@h/x", f"postgresql://u:{PASSWORD}@h/x"),
        ("postgresql://evil/x", None, ""),
        ("databricks://profile", None, ""),
        ("file:///tmp/x", None, ""),
        ("sqlite:////tmp/x.db", None, ""),  # its runs may name a server for their artifacts
        ("sqlite:///x.db", None, ""),
        ("sqlite:////tmp/x.db", "sqlite:////tmp/x.db", "sqlite:////tmp/x.db"),
        (DEFAULT_URI, "http://typed", DEFAULT_URI),
    ],
)
def test_a_folder_chooses_among_the_user_s_own_servers(
    recorded: str | None, requested: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", OWN)
    if expected:
        assert choose_uri(recorded, requested) == expected
        return
    with pytest.raises(ValueError, match="set MLFLOW_TRACKING_URI"):
        choose_uri(recorded, requested)


def test_the_program_hides_what_python_itself_would_print(tmp_path: Path) -> None:
    """A traceback that nobody expects."""
    code = f"from research.cli import redact_output; redact_output(); raise RuntimeError('http://me:{PASSWORD}@host')"
    (tmp_path / "fails.py").write_text(code)
    done = run([str(tmp_path / "fails.py")], tmp_path, make_environment(tmp_path))
    assert done.returncode == 1
    assert f"RuntimeError: http://me:{HIDDEN}@host" in done.stderr
    assert PASSWORD not in done.stderr


def test_subclasses_are_redacted_and_other_containers_stay() -> None:
    """A text of numpy is a text, and a named tuple or a torch.Size is no list to be rebuilt."""

    class Pair(NamedTuple):
        a: str
        b: int

    assert redact({"password": np.str_(PASSWORD), "api_key": 12345678, "done_token": True}) == {
        "password": HIDDEN,
        "api_key": HIDDEN,
        "done_token": True,
    }
    pair = Pair("a", 1)
    assert redact({"pair": pair, "sizes": [torch.Size([2, 3])]}) == {"pair": pair, "sizes": [torch.Size([2, 3])]}
    assert type(redact(pair)) is Pair
