"""Train a run and a sweep, and take pictures of their pages in MLflow in headless Chromium: make pictures."""

import argparse
import importlib.util
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from PIL import Image

from research.contracts import contract

ROOT = Path(__file__).resolve().parents[1]
RUN = ["data=digits", "model=bitmlp"]
SWEEP = [*RUN, "-m", "lr=1e-3,3e-3,1e-2", "optim=adamw,muon"]
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1280,1000")
# MLflow opens a pane of its assistant on the first visit: here it stays shut, as after a click.
SCRIPT = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
CURVES = ".js-plotly-plot .scatterlayer .trace, .js-plotly-plot .barlayer .trace, .js-plotly-plot .parcoords"
TIMEOUT = 120  # seconds for a page; two on a quiet machine


def find_missing() -> list[str]:
    """Return what has to be installed before pages can be looked at."""
    missing = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    return missing + [name for name in ("selenium",) if importlib.util.find_spec(name) is None]


@contextmanager
def open_browser() -> Iterator[Any]:
    """Yield a headless Chromium."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for option in OPTIONS:
        options.add_argument(option)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(shutil.which("chromedriver"))))
    try:
        browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": SCRIPT})
        yield browser
    finally:
        browser.quit()


@contextmanager
@contract
def serve(environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """Start what `make ui` starts, on a free port. Yield the links that it prints, once MLflow answers."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "research.tracking.ui", "--port", str(port)]
    environment = environment | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        links = dict[str, str]()
        assert process.stdout
        for line in process.stdout:
            name, _, link = line.rstrip("\n").partition("  ")
            links[name.strip()] = link.strip()
            if name.startswith("MLflow answers"):
                break
        wait_for_answer(f"http://127.0.0.1:{port}/health", process)
        yield links
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=30)


def wait_for_answer(url: str, process: subprocess.Popen[str]) -> None:
    """Return once a server answers. Raise RuntimeError where it ends, or does not within TIMEOUT."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urlopen(url).close()
            return
        except (URLError, ConnectionError):
            time.sleep(0.2)
    raise RuntimeError(f"{url} does not answer")


def open_page(browser: Any, link: str, words: list[str], curves: int = 0) -> str:
    """Open a link and return the page's text, once it has the words and so many curves. Raise RuntimeError after TIMEOUT."""
    browser.get("about:blank")  # what is after # alone would load nothing anew
    browser.get(link)
    deadline, text, missing, drawn = time.monotonic() + TIMEOUT, "", words, 0
    while time.monotonic() < deadline:
        text = browser.execute_script("return document.body.innerText")
        missing = [word for word in words if word not in text]
        drawn = browser.execute_script(f"return document.querySelectorAll({CURVES!r}).length")
        if not missing and drawn >= curves:
            return str(text)
        time.sleep(0.2)
    raise RuntimeError(f"{link} lacks {missing}, has {drawn} of {curves} curves:\n{text}")


def take_picture(browser: Any, path: Path) -> None:
    """Write what the browser shows to a PNG of few colours."""
    time.sleep(1)  # what is drawn still moves
    with Image.open(io.BytesIO(browser.get_screenshot_as_png())) as picture:
        picture.convert("RGB").quantize(48, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    """Write the three pictures of docs/pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "pictures")
    args = parser.parse_args()
    if missing := find_missing():
        parser.error(f"not installed: {', '.join(missing)} (apt-get install chromium chromium-driver; pip install selenium)")
    with tempfile.TemporaryDirectory() as folder, open_browser() as browser:
        environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "LOGNAME": "you"}
        for name, arguments in (("run", RUN), ("sweep", SWEEP)):
            subprocess.run([sys.executable, ROOT / "train.py", *arguments], cwd=folder, env=environment, check=True)
            with serve(environment) as links:
                open_page(browser, links[f"newest {name}"], [], 3)
                take_picture(browser, args.output / f"mlflow_{name}.png")
                if name == "sweep":
                    open_page(browser, links["MLflow"], ["sweep lr, optim"])
                    take_picture(browser, args.output / "mlflow_runs.png")


if __name__ == "__main__":
    main()
