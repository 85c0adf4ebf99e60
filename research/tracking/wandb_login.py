"""W&B's server, this user's login there, and whether a run goes on line. W&B itself is not imported."""

import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from research.contracts import contract
from research.files.network import find_server
from research.rules import Conflict, to_conflict

MODE_KEY, MODE_VARIABLE, SERVER_VARIABLE = "tracker.sinks.wandb.mode", "WANDB_MODE", "WANDB_BASE_URL"
MODES = {  # what WANDB_MODE may be, older names among them -> what it means
    **{"": "auto", "online": "online", "run": "online", "shared": "online"},
    **{"offline": "offline", "dryrun": "offline", "disabled": "disabled"},
}


HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # two names of W&B's own server; which one, its versions differ in


def get_server() -> str:
    """Return the address of W&B's server: of its variable, else of the settings that `wandb login --host` writes."""
    if address := os.environ.get(SERVER_VARIABLE):
        return address
    from configparser import ConfigParser, Error  # for W&B alone

    parser = ConfigParser(interpolation=None)
    folder = os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb"
    with suppress(OSError, Error, UnicodeError):
        parser.read(Path(folder) / "settings", encoding="utf-8")
    return parser.get("default", "base_url", fallback="") or f"https://{HOSTS[0]}"


@contract
def choose_mode(setting: object) -> str:
    """Return online, offline, disabled or auto: what is set, and where that is auto what WANDB_MODE says.

    Raise ValueError where the variable says anything else.
    """
    if setting != "auto":
        return str(setting)
    if (text := os.environ.get(MODE_VARIABLE, "")) not in MODES:
        names = ", ".join(name for name in MODES if name)
        raise ValueError(f"{MODE_VARIABLE}={text}: it takes {names}\nunset it, or give {MODE_KEY}=offline")
    return MODES[text]


def has_login() -> bool:
    """Return whether this user has a key for the server, where W&B looks for it."""
    if any(map(os.environ.get, ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"))):
        return True
    import netrc  # for W&B alone

    file = os.environ.get("NETRC") or next((str(p) for p in (Path.home() / ".netrc", Path.home() / "_netrc") if p.exists()), "")
    host = urlsplit(get_server()).netloc
    with suppress(OSError, netrc.NetrcParseError):
        return bool(file) and any(map(netrc.netrc(file).authenticators, HOSTS if host in HOSTS else (host,)))
    return False


@contract
def check_login(setting: object) -> Conflict | None:
    """Return the conflict of a run on line in W&B where there is no login, for which W&B would ask, or no server's address."""
    try:
        mode = choose_mode(setting)
        if mode in ("auto", "online"):
            find_server(get_server(), SERVER_VARIABLE)
    except ValueError as error:
        return to_conflict(MODE_KEY, error)
    if mode != "online" or has_login():
        return None
    message = f"{MODE_KEY if setting == mode else MODE_VARIABLE}=online: there is no login for {get_server()}"
    return Conflict((MODE_KEY,), message, f"run `wandb login`, set WANDB_API_KEY, or give {MODE_KEY}=offline")
