"""Whether there is a network: what the environment says of the hub, and whether a server takes connections."""

import os
from urllib.parse import urlsplit

from research.contracts import contract

OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
CONNECT_SECONDS = 2.0  # for a server to answer at all


def is_hub_reachable() -> bool:
    """Return whether the hub is to be asked, and takes connections: its library itself would try for half a minute."""
    return not is_set_offline() and can_connect(os.environ.get("HF_ENDPOINT") or "https://huggingface.co", "HF_ENDPOINT")


def is_set_offline() -> bool:
    """Return whether the environment says that the hub is not to be asked."""
    return any(os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in OFFLINE_VARIABLES)


@contract
def find_server(address: str, variable: str) -> tuple[str, int]:
    """Return host and port of the server of an address, or of the proxy before it. `variable`: where the address is set.

    Raise ValueError for an address that is none.
    """
    from urllib.request import getproxies, proxy_bypass

    scheme, host, port = parse_address(address, variable)
    if (proxy := getproxies().get(scheme)) and not proxy_bypass(host):
        _, host, port = parse_address(proxy if "//" in proxy else f"//{proxy}", f"{scheme}_proxy")
    return host, port


def parse_address(address: str, variable: str) -> tuple[str, str, int]:
    """Return scheme, host and port. Raise ValueError, without a password, for an address that has none of these."""
    try:
        url = urlsplit(address)
        host, port = url.hostname or "", url.port or (80 if url.scheme == "http" else 443)
        if not host.encode("idna"):
            raise ValueError("it has no host")
    except ValueError as error:
        message = f"{variable}={address.rpartition('@')[2]}: it is no address of a server: {error}"
        raise ValueError(f"{message}\ngive http://HOST:PORT, or unset it") from None
    return url.scheme, host, port


@contract
def can_connect(address: str, variable: str, seconds: float = CONNECT_SECONDS) -> bool:
    """Return whether the server of an address, or the proxy before it, takes connections.

    Raise ValueError for an address that is none; `variable` is where it is set.
    """
    import socket
    from queue import Empty, Queue
    from threading import Thread

    server = find_server(address, variable)
    answers: Queue[bool] = Queue()

    def connect() -> None:
        try:
            socket.create_connection(server, seconds).close()
            answers.put(True)
        except OSError:
            answers.put(False)

    Thread(target=connect, daemon=True).start()  # the look-up of a name takes no timeout
    try:
        return answers.get(timeout=seconds)
    except Empty:
        return False
