"""The sink that logs a run to Weights & Biases, on line or into files that `wandb sync` sends later."""

import logging
import secrets
import shlex
import shutil
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from research.contracts import contract
from research.files.network import can_connect
from research.files.wandb_files import list_files, read_last_step, read_rows
from research.ranges import check_settings
from research.run_dir import RunConfig, read_json, write_json
from research.tracking import fields
from research.tracking.history import METRICS_FILE
from research.tracking.jsonl import FAILED, KILLED
from research.tracking.sink import Record, Sink, import_extra, open_weights, read_history
from research.tracking.wandb_login import SERVER_VARIABLE, check_login, choose_mode, get_server, has_login

WANDB_FOLDER, RUN_FILE = "wandb", "run.json"  # in a run folder, and in that
INIT_SECONDS = 15.0  # for it to open a run, after which the run goes offline
WRITE_TRIES, WRITE_PAUSE = 50, 0.1  # seconds between two looks at whether its file is complete
SETTINGS: dict[str, Any] = {  # W&B's: nothing on the terminal, nothing of this machine that the run does not say itself
    "silent": True,
    "console": "off",
    "symlink": False,
    "reinit": "create_new",
    "disable_git": True,
    "save_code": False,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_disable_stats": True,  # callbacks=utilization logs them, to every tracker
    "x_save_requirements": False,
    "init_timeout": INIT_SECONDS,
}
log = logging.getLogger(__name__)


@dataclass
class Identity:
    """What a run folder says of its run in W&B."""

    id: str
    folder: str  # in which it was made: a copy elsewhere becomes a run of its own


class WandbSink(Sink):
    """A run in W&B: its project is the study, its group the sweep. Its rows name their step, which is the axis of all curves.

    `auto` is on line where there is a login and the server can be reached, else offline: into RUN/wandb, for `wandb sync`.
    No row can be changed or taken back in W&B. So offline a resumed run writes one whole file anew: `wandb sync` puts the last
    of several in the place of the others. On line it goes on behind the rows that the server has, as long as it repeats
    them; where it does not, the whole run becomes a new one there.
    """

    name, title, trace = "wandb", "W&B", f"{WANDB_FOLDER}/{RUN_FILE}"

    def __init__(
        self,
        project: str | None = None,
        entity: str | None = None,
        mode: Literal["auto", "online", "offline"] = "auto",
        log_weights: bool = False,
    ) -> None:
        check_settings("tracker", WandbSink.__init__.__annotations__, locals())
        self.project, self.entity, self.mode, self.log_weights = project, entity, mode, log_weights
        self.is_finished, self.last_step = False, 0

    @property
    def address(self) -> str:
        return f"W&B in {self.run.folder / WANDB_FOLDER}" if self.is_offline else f"W&B at {urlsplit(get_server()).hostname}"

    @contract
    def prepare(self, run: RunConfig) -> None:
        """Import wandb. Raise ValueError where it is not installed, or is to be on line and has no login."""
        super().prepare(run)
        self.wandb = import_extra("wandb")
        if conflict := check_login(self.mode):
            raise ValueError(f"{conflict.message}\n{conflict.fix}")
        self.chosen_mode = choose_mode(self.mode)
        self.is_off = self.chosen_mode == "disabled"
        self.is_offline = self.chosen_mode == "offline" or not has_login()

    def open(self) -> None:
        self.folder = self.run.folder / WANDB_FOLDER
        self.folder.mkdir(exist_ok=True)
        self.identity = self._read_identity()
        if not self.is_offline:
            self.is_offline = self.chosen_mode == "auto" and not can_connect(get_server(), SERVER_VARIABLE)
        self._begin()

    def _begin(self) -> None:
        """Open the run of `identity`, and look at which rows of it the server has."""
        files = list_files(self.folder, self.identity.id)
        try:
            self._init()
        except Exception:
            if self.is_offline or self.chosen_mode == "online":
                raise
            # A login that is wrong, a server that does not answer. W&B's process still holds the id.
            self.is_offline, self.identity = True, self._make_identity()
            self._init()
        write_json(self.folder / RUN_FILE, asdict(self.identity))
        self.file = Path(self.wandb_run.dir).parent / f"run-{self.identity.id}.wandb"
        count, rows = self.wandb_run.starting_step, read_rows(files) if self.wandb_run.starting_step else {}
        # An empty row, which no step repeats, is in the place of one that is on the server alone.
        self.kept_rows = deque(rows.get(number, {}) for number in range(count))
        self.older = [] if count else [file.parent for file in files if file.parent.name.startswith("offline-")]

    @contract
    def rewind(self, step: int) -> None:
        if self.last_step > step:
            self._begin_anew(step)

    @contract
    def log(self, records: Sequence[Record]) -> None:
        for record in records:
            if record.step <= self.last_step:
                continue  # an attempt that failed has logged it
            if self.kept_rows and not repeats(record, self.kept_rows[0]):
                self._begin_anew(record.step - 1)
            if self.kept_rows:
                self.kept_rows.popleft()
                self.last_step = record.step
            else:
                self._log(record)
        while self.older:  # what they hold has come again
            shutil.rmtree(self.older.pop(), ignore_errors=True)

    def _log(self, record: Record) -> None:
        row = {"step": record.step, "seconds": record.seconds, "_timestamp": record.timestamp / 1000}
        self.wandb_run.log(row | dict(record.metrics))
        self.last_step = record.step

    def _begin_anew(self, step: int) -> None:
        """Log the run up to a step into a new file, and on line into a new run: it has taken back what W&B has after that."""
        if not self.is_offline and self.identity.id == self.wandb_run.id:  # else an attempt that failed came so far
            new = self._make_identity()
            note = "has steps that this run has taken back, and W&B deletes none: all of the run goes on"
            log.warning("W&B: %s %s as %s", self.wandb_run.url, note, new.id)
            self.wandb_run.summary["continued_as"] = new.id
            self.identity = new
        self.wandb_run.finish()
        self._begin()
        self.last_step = 0
        for record in read_history(self.run.folder / METRICS_FILE):
            if record.step <= step:
                self._log(record)

    @contract
    def close(self, status: str, summary: dict[str, Any]) -> None:
        if self.kept_rows and self.last_step:
            self._begin_anew(self.last_step)
        if not self.is_finished:
            results = fields.collect_results(summary) | {"status": status, "error": str(summary.get("error", ""))}
            self.wandb_run.summary.update(results)
            if self.log_weights:
                self._log_weights(int(summary.get("best", {}).get("step", -1)))
            self.wandb_run.finish(exit_code=int(status in (FAILED, KILLED)))
            self.is_finished = True
        for _ in range(WRITE_TRIES if self.is_offline else 0):  # another process writes the file
            if read_last_step(self.file) >= self.last_step:
                return
            time.sleep(WRITE_PAUSE)
        if self.is_offline:
            raise OSError(f"its file below {self.folder} is not complete")

    def _log_weights(self, step: int) -> None:
        with open_weights(self.run, step) as weights:
            if weights:
                path, facts = weights
                name, description = f"weights-{self.identity.id}", facts["description"]
                artifact = self.wandb.Artifact(name, type="model", description=description, metadata=facts)
                artifact.add_file(str(path))
                self.wandb_run.log_artifact(artifact, aliases=["best"])

    def describe_end(self) -> str:
        return shlex.join(["wandb", "sync", str(self.file.parent)]) if self.is_offline else str(self.wandb_run.url)

    def _read_identity(self) -> Identity:
        """Return what the folder says of its run; a new one where it says nothing, or is a copy of another folder."""
        with suppress(TypeError, ValueError, OSError):
            identity = Identity(**read_json(self.folder / RUN_FILE))
            original = Path(identity.folder)
            if original == self.run.folder or not (original / WANDB_FOLDER / RUN_FILE).exists():
                return Identity(identity.id, str(self.run.folder))
        return self._make_identity()

    def _make_identity(self) -> Identity:
        return Identity(secrets.token_hex(4), str(self.run.folder))

    def _init(self) -> None:
        run, sweep = self.run, self.run.sweep_folder
        self.wandb_run = self.wandb.init(
            project=self.project or run.study.replace("/", "_"),
            entity=self.entity,
            name=run.name,
            group=f"{run.study} {sweep.name}" if sweep else None,
            id=self.identity.id,
            resume=None if self.is_offline else "allow",
            dir=str(run.folder),
            config=run.config,
            settings=self.wandb.Settings(**SETTINGS, mode="offline" if self.is_offline else "online"),
        )
        self.wandb_run.define_metric("step", hidden=True)
        self.wandb_run.define_metric("*", step_metric="step")


@contract
def repeats(record: Record, row: Mapping[str, float]) -> bool:
    """Return whether a record has the step and the numbers of a row; speed, which never repeats exactly, does not count."""
    numbers = {"step": float(record.step)} | record.finite
    both = [{key: value for key, value in item.items() if not key.startswith(fields.SPEED)} for item in (numbers, row)]
    return both[0] == both[1]
