"""The sink that logs a run to Weights & Biases, on line or into files that `wandb sync` sends later."""

import json
import secrets
import shlex
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from research.run_dir import RunConfig, read_json, write_json
from research.tracking import fields
from research.tracking.jsonl import FAILED, KILLED
from research.tracking.sink import Record, Sink, find_weights, import_extra
from research.tracking.storage import can_connect, check_login, get_wandb_server, has_login

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
BLOCK, PIECE, MAGIC_BYTES = 32_768, struct.Struct("<IHB"), 7  # of its files: checksum, length and kind before each piece
PIECE_KINDS, LAST_KINDS = (1, 2, 3, 4), (1, 4)  # whole, first, middle, last


@dataclass
class WandbRun:
    """What a run folder says of its run in W&B."""

    id: str
    folder: str  # in which it was made: a copy elsewhere becomes a run of its own


class WandbSink(Sink):
    """A run in W&B: its project is the study, its group the sweep. Its rows name their step, which is the axis of all curves.

    `auto` is on line where there is a login and the server can be reached, else offline: into RUN/wandb, for `wandb sync`.
    W&B cannot delete a row: with trainer.guard.policy=rollback it gets those alone that no rollback repeats.
    """

    name, title, is_append_only = "wandb", "W&B", True

    def __init__(
        self,
        project: str | None = None,
        entity: str | None = None,
        mode: Literal["auto", "online", "offline"] = "auto",
        log_weights: bool = False,
    ) -> None:
        self.project, self.entity, self.mode, self.log_weights = project, entity, mode, log_weights
        self.is_finished = False

    @property
    def address(self) -> str:
        return (
            f"W&B in {self.run.folder / WANDB_FOLDER}" if self.is_offline else f"W&B at {urlsplit(get_wandb_server()).hostname}"
        )

    def prepare(self, run: RunConfig) -> None:
        """Import wandb. Raise ValueError where it is not installed, or is to be on line and has no login."""
        super().prepare(run)
        self.wandb = import_extra("wandb")
        self.is_offline = not has_login() or self.mode == "offline"
        if conflict := check_login(self.mode):
            raise ValueError(f"{conflict.message}\n{conflict.fix}")

    def open(self) -> None:
        self.folder = self.run.folder / WANDB_FOLDER
        self.folder.mkdir(exist_ok=True)
        self.record = self._read_record()
        last_step = read_last_step(self.folder, self.record.id)
        if not self.is_offline:
            self.is_offline = self.mode == "auto" and not can_connect()
        try:
            self._init()
        except Exception:
            if self.is_offline or self.mode == "online":
                raise
            self.is_offline = True  # a login that is wrong, a server that does not answer
            self._init()
        write_json(self.folder / RUN_FILE, asdict(self.record))
        self.last_step = max(last_step, int(self.logged.summary.get("step", 0)))  # the server's, of a run that is resumed there

    def rewind(self, step: int) -> None:
        self.last_step = step

    def log(self, records: Sequence[Record]) -> None:
        for record in records:
            if record.step > self.last_step:  # a resumed run repeats some steps, with the same numbers
                self.logged.log({"step": record.step, "seconds": record.seconds, **record.metrics})
                self.last_step = record.step

    def close(self, status: str, summary: dict[str, Any]) -> None:
        if not self.is_finished:
            results = fields.collect_results(summary) | {"status": status, "error": str(summary.get("error", ""))}
            self.logged.summary.update(results)
            path = find_weights(self.run.folder, int(summary.get("best", {}).get("step", -1)))
            if self.log_weights and path:
                artifact = self.wandb.Artifact(f"weights-{self.record.id}", type="model")
                artifact.add_file(str(path))
                self.logged.log_artifact(artifact, aliases=["best"])
            self.logged.finish(exit_code=int(status in (FAILED, KILLED)))
            self.is_finished = True
        for _ in range(WRITE_TRIES if self.is_offline else 0):  # another process writes the file
            if read_last_step(self.folder, self.record.id) >= self.last_step:
                return
            time.sleep(WRITE_PAUSE)
        if self.is_offline:
            raise OSError(f"its file below {self.folder} is not complete")

    def describe_end(self) -> str:
        if not self.is_offline:
            return str(self.logged.url)
        return f"wandb sync {shlex.join([str(self.folder)])}/offline-run-*-{self.record.id}"

    def _read_record(self) -> WandbRun:
        """Return what the folder says of its run; a new one where it says nothing, or is a copy of another folder."""
        with suppress(TypeError, ValueError, OSError):
            record = WandbRun(**read_json(self.folder / RUN_FILE))
            original = Path(record.folder)
            if original == self.run.folder or not (original / WANDB_FOLDER / RUN_FILE).exists():
                return WandbRun(record.id, str(self.run.folder))
        return WandbRun(secrets.token_hex(4), str(self.run.folder))

    def _init(self) -> None:
        run, sweep = self.run, self.run.sweep_folder
        self.logged = self.wandb.init(
            project=self.project or run.study.replace("/", "_"),
            entity=self.entity,
            name=run.name,
            group=f"{run.study} {sweep.name}" if sweep else None,
            id=self.record.id,
            resume=None if self.is_offline else "allow",
            dir=str(run.folder),
            config=run.config,
            settings=self.wandb.Settings(**SETTINGS, mode="offline" if self.is_offline else "online"),
        )
        self.logged.define_metric("step", hidden=True)
        self.logged.define_metric("*", step_metric="step")


def read_last_step(folder: Path, run_id: str) -> int:
    """Return the step of the last row in a run's files: what a kill kept W&B from writing is sent again; 0 without a row."""
    last_step = 0
    for path in sorted(folder.glob(f"*run-*-{run_id}/run-{run_id}.wandb")):
        for record in read_file(path):
            for item in record.history.item if record.WhichOneof("record_type") == "history" else ():
                if "step" in (item.key, *item.nested_key):
                    last_step = int(json.loads(item.value_json))
    return last_step


def read_file(path: Path) -> Iterator[Any]:
    """Yield the records of one of W&B's files, which is a log as LevelDB's: pieces in blocks. A torn one is its end."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, whole = path.read_bytes(), MAGIC_BYTES, b""
    while position + PIECE.size <= len(content):
        left = BLOCK - position % BLOCK
        if left < PIECE.size:
            position += left  # padding
            continue
        _, length, kind = PIECE.unpack_from(content, position)
        piece = content[position + PIECE.size : position + PIECE.size + length]
        if kind not in PIECE_KINDS or len(piece) < length:
            return
        position, whole = position + PIECE.size + length, whole + piece
        if kind in LAST_KINDS:
            yield Record.FromString(whole)
            whole = b""
