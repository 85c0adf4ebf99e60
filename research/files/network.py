"""Whether there is a network: what the environment says of the hub, and whether a server takes connections."""

import os
from urllib.parse import urlsplit

OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
CONNECT_SECONDS = 2.0  # for a server to answer at all


def is_hub_reachable() -> bool:
    """Return whether the hub is to be asked, and takes connections: its library itself would try for half a minute."""
    return not is_set_offline() and can_connect(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")


def is_set_offline() -> bool:
    """Return whether the environment says that the hub is not to be asked."""
    return any(os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in OFFLINE_VARIABLES)


def can_connect(address: str, seconds: float = CONNECT_SECONDS) -> bool:
    """Return whether the server of an address, or the proxy before it, takes connections."""
    import socket
    from queue import Empty, Queue
    from threading import Thread
    from urllib.request import getproxies, proxy_bypass

    url = urlsplit(address)
    if (proxy := getproxies().get(url.scheme)) and not proxy_bypass(url.hostname or ""):
        url = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    answers: Queue[bool] = Queue()

    def connect() -> None:
        try:
            socket.create_connection((url.hostname or "", url.port or (80 if url.scheme == "http" else 443)), seconds).close()
            answers.put(True)
        except OSError:
            answers.put(False)

    Thread(target=connect, daemon=True).start()  # the look-up of a name takes no timeout
    try:
        return answers.get(timeout=seconds)
    except Empty:
        return False
