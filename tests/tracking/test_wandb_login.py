"""Whether a run goes on line in W&B: the setting, WANDB_MODE, and a login where W&B's library finds one."""

from pathlib import Path

import pytest

from research.tracking.wandb_login import check_login, choose_mode, has_login

NO_LOGIN = "there is no login for https://api.wandb.ai"


@pytest.fixture(autouse=True)
def no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))


@pytest.mark.parametrize(
    ("setting", "variable", "mode", "conflict"),
    [
        ("auto", "", "auto", ""),
        ("auto", "online", "online", f"WANDB_MODE=online: {NO_LOGIN}"),
        ("auto", "run", "online", f"WANDB_MODE=online: {NO_LOGIN}"),
        ("auto", "offline", "offline", ""),
        ("auto", "dryrun", "offline", ""),
        ("auto", "disabled", "disabled", ""),
        ("online", "offline", "online", f"tracker.sinks.wandb.mode=online: {NO_LOGIN}"),
        ("online", "disabled", "online", f"tracker.sinks.wandb.mode=online: {NO_LOGIN}"),
        ("offline", "online", "offline", ""),
        ("offline", "nonsense", "offline", ""),
    ],
)
def test_the_setting_counts_before_the_variable(
    setting: str, variable: str, mode: str, conflict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in W&B itself. Without a login to be on line is a mistake; with one it is none."""
    monkeypatch.setenv("WANDB_MODE", variable)
    assert choose_mode(setting) == mode
    answer = check_login(setting)
    assert (answer.message if answer else "") == conflict
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert check_login(setting) is None


def test_a_mode_that_there_is_not_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "cloud")
    answer = check_login("auto")
    assert answer
    assert answer.message.startswith("WANDB_MODE=cloud: it takes online,")
    assert "unset it" in answer.fix


@pytest.mark.parametrize(
    ("machine", "server", "expected"),
    [
        ("api.wandb.ai", None, True),
        ("api.forge.coreweave.com", None, True),  # what newer versions call it
        ("api.wandb.ai", "https://api.forge.coreweave.com", True),
        ("wandb.mine.org", None, False),
        ("wandb.mine.org", "https://wandb.mine.org", True),
        ("localhost:8080", "http://localhost:8080", True),
        ("api.wandb.ai", "https://wandb.mine.org", False),
    ],
)
def test_a_login_is_of_a_server(
    machine: str, server: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text(f"machine {machine}\n  login user\n  password {'0' * 40}\n")
    if server:
        (tmp_path / "settings").write_text(f"[default]\nbase_url = {server}\n")  # as `wandb login --host` writes it
        assert has_login() == expected
        (tmp_path / "settings").write_text("[default]\nbase_url = https://other.test\n")
        monkeypatch.setenv("WANDB_BASE_URL", server)  # counts before the file
    assert has_login() == expected
    monkeypatch.setenv("WANDB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    assert has_login()


@pytest.mark.parametrize("setting", ["auto", "online", "offline", "disabled"])
@pytest.mark.parametrize("address", ["http://[::1", "http://a..b", "https://wandb.test:99999"])
def test_an_address_that_is_none_is_named(setting: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the server is asked, before a run has a folder."""
    monkeypatch.setenv("WANDB_BASE_URL", address)
    answer = check_login(setting)
    assert (answer is None) == (setting in ("offline", "disabled"))
    assert answer is None or answer.message.startswith(f"WANDB_BASE_URL={address}: it is no address of a server: ")
