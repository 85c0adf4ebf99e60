"""The page of a run and of a sweep: one file, whole, safe to open, readable on a phone."""

import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from reporting import fill_study, store_study

from research.files.locks import lock
from research.report import __main__ as command
from research.report.blocks import Block, Code, Heading, Items, Listing, Picture, Table, write
from research.report.page import escape, render_block, render_page, render_table
from research.report.run_page import MAX_POINTS, build_run_page, group_curves, list_facts, list_settings, thin_out
from research.run_dir import Summary, write_json

EVIL = "<script>alert(1)</script> & \"quotes\" 'a' ü 漢字 \x1b[31m \u202e \udcff\nline {braces}"
VOID = {"meta", "link", "img", "br"}
OVERRIDES = "model=mlp\ndata=digits\nlr=3e-3\nsteps=400\nname='a b'"


class Page(HTMLParser):
    """The elements of a page; raises where they are not closed in their order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in self.open[-1:]:
            self.texts.setdefault(tag, []).append(data)


def check(text: str) -> Page:
    """Return a page that is one file below a megabyte, runs nothing, asks for nothing, and has each id once."""
    page = Page(text)
    assert len(text.encode()) < 1_000_000
    assert not page.tags.keys() & {"script", "iframe", "object", "embed", "form", "a", "base"}
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "xlink:href", "action", "poster", "srcset"):
            assert value.startswith(("data:", "#")), (tag, name, value[:80])
    assert not re.search(r"url\((?!#)|@import", text)
    ids = Counter(value for _, name, value in page.attributes if name == "id")
    assert [value for value, count in ids.items() if count > 1] == []
    policy = next(value for _, name, value in page.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'")
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    return page


def make_run(folder: Path, name: str = "val/acc", steps: int = 400, **changes: Any) -> Path:
    """A run folder as a run leaves it."""
    (folder / "plots").mkdir(parents=True)
    lines = [
        {"step": step, name: 1 - 1 / step, "val/loss": 9 / step, "train/loss": 8 / step, "lr": 1e-3, "seconds": 1.0}
        | {"grad/huge": 1e308 * (-1) ** (step // 10)}  # too large to be drawn
        for step in range(10, steps + 1, 10)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    best = {"step": 300, name: 0.99, "val/loss": 0.03}
    summary = {"status": "FINISHED", "monitor": name, "value": 0.99, "best": best, "metrics": lines[-1], "steps": steps}
    summary |= {
        "params": 1234,
        "train_s": 200.0,
        "baseline": {f"{name} majority": 0.1},
        "version": 2,
        "data": "digits: 9 training and 5 validation samples",
        "notes": ["2 documents are in both splits", "left out: 104 repeated"],
        "shape": {"num_features": 64},
    }
    write_json(folder / "summary.json", summary | changes)
    (folder / "config.yaml").write_text("lr: 0.003\nsteps: 400\nnew: {key: 'x <b>'}\n")
    (folder / "overrides.txt").write_text(OVERRIDES + "\n")
    environment = {"python": "3.12.1", "git": {"sha": "a" * 40, "dirty": True}, "command": ["train.py", "lr=3e-3"]}
    write_json(folder / "env.json", environment | {"packages": {"torch": "2.13.0"}})
    (folder / "git.diff").write_text("diff")
    return folder


def test_the_page_of_a_run_has_all_that_one_asks_for(tmp_path: Path) -> None:
    text = build_run_page(make_run(tmp_path / "it's a run"))
    page = check(text)
    assert page.tags["svg"] == 3, "acc, loss, lr"
    assert page.texts["p"][0] == "Finished after 400 steps; best val/acc 0.99 at step 300."
    cells = page.texts["td"]
    assert "3 min 20 s" in cells
    row = cells.index("val/acc")
    assert cells[row : row + 5] == ["val/acc", "0.99", "0.9975", "0.9975", "400"]
    settings = cells.index("lr", cells.index("folder"))
    assert "0.003" in cells[settings:]
    assert "nothing" in cells, "a key that the defaults have not"
    listings = [line for listing in page.texts["pre"] for line in listing.splitlines()]
    command = "python train.py model=mlp data=digits lr=3e-3 steps=400 'name='\"'\"'a b'\"'\"''"
    assert listings[0] == f"git checkout {'a' * 40}"
    assert listings[1].startswith("git apply")
    assert listings[2] == command
    assert listings[3].startswith(f"{command} ")
    assert "it" in listings[3].partition("resume=")[2]
    assert {"python", "git sha", "packages torch"} <= set(cells)
    data = cells.index("data")
    assert cells[data + 1].startswith("digits: 9 training")
    assert cells[data + 2 : data + 4] == ["2 documents are in both splits", "left out: 104 repeated"]
    code = "commit aaaaaaaaaaaa, and changes (git.diff) that were not committed"
    assert cells.index(code) < cells.index("val/acc")
    assert "baseline val/acc majority: 0.1" in page.texts["li"]


def test_the_settings_of_a_preset_are_shown(tmp_path: Path) -> None:
    """What a preset sets differs from the defaults of the options that it chooses; of one that is not here all is shown."""
    (tmp_path / "config.yaml").write_text("data: {train_fraction: 0.3}\n")
    for preset, default in (("grokking", "0.5"), ("of_mine", "nothing")):
        blocks = list(list_settings(tmp_path, [f"experiment={preset}", "optim=adamw"]))
        (table,) = (block for block in blocks if isinstance(block, Table))
        assert ("data.train_fraction", "0.3", default) in table.rows
        assert ("These are all settings:" in str(blocks)) == (preset == "of_mine")


def test_the_own_best_of_a_metric_is_what_it_says(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", name="val/iou")
    (folder / "config.yaml").write_text("metrics: {iou: {higher_is_better: true}}")
    cells = check(build_run_page(folder)).texts["td"]
    row = cells.index("val/iou")
    assert cells[row : row + 5] == ["val/iou", "0.99", "0.9975", "0.9975", "400"]


def test_nothing_of_a_run_can_change_its_page(tmp_path: Path) -> None:
    """Names and values with tags, quotes, control characters and marks of direction are shown, and no more."""
    name = f"val/{EVIL}"
    folder = make_run(tmp_path / "<script>x<", name=name, stop=EVIL, error=EVIL, shape={EVIL: 1})
    (folder / "overrides.txt").write_text(f"name='{EVIL[:50]}'\n")
    write_json(folder / "env.json", {"host": EVIL, "git": EVIL, "packages": {EVIL: EVIL}, "command": EVIL})
    text = build_run_page(folder)
    page = check(text)
    assert "<script" not in text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", text)
    assert any("<script>alert(1)</script> & \"quotes\" 'a' ü 漢字" in cell for cell in page.texts["td"])


FILES = ("summary.json", "env.json", "overrides.txt", "metrics.jsonl", "config.yaml")


@pytest.mark.parametrize("lost", [*FILES, "broken"])
def test_a_run_that_lacks_a_file_has_a_page(lost: str, tmp_path: Path) -> None:
    """Or whose files are all damaged."""
    folder = make_run(tmp_path / "run")
    for file in FILES if lost == "broken" else []:
        (folder / file).write_text('{"version": [')
    if lost != "broken":
        (folder / lost).unlink()
    page = check(build_run_page(folder))
    assert page.tags["h1"] == 1
    assert ("It has logged no metrics." in page.texts["p"]) == (lost in ("metrics.jsonl", "broken"))


def test_a_run_without_a_summary_is_under_way_or_was_interrupted(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "summary.json").unlink()
    assert check(build_run_page(folder)).texts["p"][0] == "Interrupted after 400 steps."
    with lock(folder):
        assert check(build_run_page(folder)).texts["p"][0] == "Running after 400 steps."


def test_a_page_stays_below_a_megabyte(tmp_path: Path) -> None:
    """Of a run with a hundred metrics and large pictures; what is left out is named."""
    folder = make_run(tmp_path / "run", steps=300)
    lines = [{"step": step} | {f"val/m{index}": step * index for index in range(100)} for step in range(1, 600)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for index in range(4):
        (folder / "plots" / f"large{index}.png").write_bytes(b"\x89PNG" + bytes(250_000))
    text = build_run_page(folder)
    check(text)
    assert "plots/large3.png is left out: the page would be too large" in text
    assert "more metrics are in <code>metrics.jsonl</code>" in text


def test_a_long_curve_keeps_its_peaks() -> None:
    curve = {step: 0.0 for step in range(10_000)} | {5_555: 9.0, 7_777: -9.0}
    steps, values = thin_out(curve)
    assert len(steps) <= 2 * MAX_POINTS
    assert (steps[0], steps[-1], max(values), min(values)) == (0, 9_999, 9.0, -9.0)
    assert steps == sorted(steps)
    assert thin_out({1: 0.5, 2: 0.25}) == ([1, 2], [0.5, 0.25])


def test_curves_of_one_quantity_are_together_the_monitors_first() -> None:
    curves = {name: {1: 0.0} for name in ("train/loss", "lr", "val/loss", "grad/norm", "val/acc", "train/acc")}
    groups = group_curves(curves, Summary("", monitor="val/acc"))
    assert {name: [*group] for name, group in groups.items()} == {
        "acc": ["val/acc", "train/acc"],
        "loss": ["train/loss", "val/loss"],
        "lr": ["lr"],
        "grad/norm": ["grad/norm"],
    }
    assert list_facts(Summary(""), Path("x")) == [("folder", "x")]


def test_each_block_is_escaped() -> None:
    blocks: list[Block] = [
        Heading(EVIL),
        write(EVIL, Code(EVIL)),
        Table((EVIL, "b"), [(EVIL, 1)]),
        Items([EVIL]),
        Listing(EVIL),
    ]
    for block in blocks:
        html = render_block(block)
        assert "<script" not in html
        assert "&lt;script&gt;" in html
        assert "{braces}" in html
    page = check(render_page(EVIL, [*blocks, Picture("x")], {"x": "<figure></figure>"}))
    assert "line {braces}" in page.texts["pre"][0]
    assert escape("token=abcdefgh1234") == "token=***"


def test_numbers_stand_at_the_right() -> None:
    html = render_table(("name", "value"), [("a", "0.5"), ("b", "1e-05"), ("c", "± 0.1"), ("d", "")])
    assert html.count('class="number"') == 5
    assert 'class="number"' not in render_table(("name", "value"), [("a", "0.5"), ("b", "cat")])


def run_report(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["report", *arguments])
    command.main()


@pytest.fixture(scope="module")
def sweep_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of twelve trials, one with a result that its run does not have."""
    folder = tmp_path_factory.mktemp("root") / "sweep <script>"
    folder.mkdir()
    store_study(fill_study(folder, 12), f"journal://{folder / 'study.journal'}")
    write_json(
        folder / "2" / "summary.json", {"status": "FINISHED", "monitor": "val/acc", "value": 0.25, "version": 2, "steps": 9}
    )
    write_json(folder / "0" / "env.json", {"git": {"sha": "b" * 40}, "command": ["train.py", "-m", "lr=1,2"]})
    (folder / "0" / "config.yaml").write_text("target: 0.5\n")
    return folder


def test_the_page_of_a_sweep(sweep_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The ranking, pictures, what was corrected, importances, and the command; nothing else is written."""
    before = sorted(sweep_folder.rglob("*"))
    run_report(monkeypatch, str(sweep_folder), "--html", str(tmp_path / "page.html"))
    assert capsys.readouterr().out == f"report           {tmp_path / 'page.html'}\n"
    assert sorted(sweep_folder.rglob("*")) == before
    page = check((tmp_path / "page.html").read_text())
    heads = page.texts["h2"]
    assert heads == ["The best trials", "What was run", "Failed", "What val/acc depends on", "Pictures", "Corrected", "Again",
                     "Environment"]  # fmt: skip
    assert page.tags["svg"] + page.tags["img"] == 7
    assert "steps to val/acc 0.5" in page.texts["th"]
    assert any(line.startswith("trial 2: the study has") for line in page.texts["li"])
    listings = "\n".join(page.texts["pre"])
    assert f"git checkout {'b' * 40}\npython train.py -m lr=1,2" in listings
    assert "# @package _global_" in listings


def test_the_page_of_a_run_by_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """By default in the run's folder; without --html the answer names it, and what is neither run nor sweep is told."""
    folder = make_run(tmp_path / "run")
    run_report(monkeypatch, str(folder), "--html")
    check((folder / "report.html").read_text())
    for arguments in ([str(folder)], [str(tmp_path), "--html"]):
        with pytest.raises(SystemExit) as end:
            run_report(monkeypatch, *arguments)
        assert end.value.code == 2
        assert "--html" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        run_report(monkeypatch, str(folder), "--html", str(file := tmp_path / "nowhere" / "page.html"))
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: {file}: ")


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FRAME = """<iframe id="f" src="{url}" width="390" height="900"></iframe><p id="out"></p><script>
onload = () => {{
  const frame = document.getElementById("f"), root = frame.contentDocument.documentElement;
  const requests = frame.contentWindow.performance.getEntriesByType("resource").map(e => e.name.slice(0, 5));
  const dark = frame.contentWindow.matchMedia("(prefers-color-scheme: dark)").matches;
  const color = frame.contentWindow.getComputedStyle(frame.contentDocument.body).backgroundColor;
  document.getElementById("out").textContent = JSON.stringify([root.scrollWidth, root.clientWidth, requests, dark, color]);
}};
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="needs Chromium: apt-get install chromium")
@pytest.mark.parametrize("kind", ["run", "sweep"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page_on_a_phone(
    kind: str, scheme: str, sweep_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 390 pixels nothing scrolls sideways, nothing is requested, the console has no error, and dark is dark."""
    folder = make_run(tmp_path / "run") if kind == "run" else sweep_folder
    page = tmp_path / "page.html"
    run_report(monkeypatch, str(folder), "--html", str(page))
    (tmp_path / "frame.html").write_text(FRAME.format(url=page.as_uri()))
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--virtual-time-budget=5000"]
    flags += ["--enable-logging=stderr", "--v=0", "--window-size=800,1000", f"--user-data-dir={tmp_path / 'profile'}"]
    flags += ["--force-dark-mode"] if scheme == "dark" else []
    argv = [str(BROWSER), *flags, "--dump-dom", (tmp_path / "frame.html").as_uri()]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True)
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    width, visible, requests, dark, color = json.loads(done.stdout.partition('<p id="out">')[2].partition("</p>")[0])
    assert width <= visible <= 390
    assert set(requests) <= {"data:"}
    assert (dark, color) == ((True, "rgb(20, 20, 20)") if scheme == "dark" else (False, "rgb(255, 255, 255)"))
