"""The sink that writes TensorBoard's event files."""

import os
import socket
import time
from collections.abc import Sequence
from typing import Any

from research.contracts import contract
from research.run_dir import RunConfig
from research.tracking import fields
from research.tracking.jsonl import FAILED, KILLED
from research.tracking.sink import Record, Sink, import_extra

EVENTS_FOLDER = "tensorboard"  # in a run folder
EVENTS_PREFIX = "events.out.tfevents."


class TensorBoardSink(Sink):
    """RUN/tensorboard: the numbers as scalars, in float32 as TensorBoard keeps them, and the settings as hparams.

    Steps that are repeated go into a new file, whose first event makes TensorBoard forget them (SessionLog.START).
    """

    name, title, trace = "tensorboard", "TensorBoard", EVENTS_FOLDER

    @contract
    def prepare(self, run: RunConfig) -> None:
        """Import TensorBoard. Raise ValueError where it is not installed."""
        super().prepare(run)
        import_extra("tensorboard")
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard import summary

        self.event, self.summary, self.writer = event_pb2, summary_pb2, RecordWriter
        self.hparams: Any = summary.hparams
        self.folder = run.folder / EVENTS_FOLDER
        self.path, self.size = self.folder, 0  # of the file under way; none yet

    @property
    def address(self) -> str:
        return f"TensorBoard's {self.folder}"

    def open(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.older = sorted(self.folder.glob(f"{EVENTS_PREFIX}*"))  # what they hold comes again, from metrics.jsonl

    @contract
    def rewind(self, step: int) -> None:
        self._begin_file(step + 1)

    @contract
    def log(self, records: Sequence[Record]) -> None:
        if self.path == self.folder:
            self._begin_file(0)
        events = []
        for record in records:
            values = [self.summary.Summary.Value(tag=key, simple_value=value) for key, value in record.metrics.items()]
            event = {"wall_time": record.timestamp / 1000, "step": record.step, "summary": self.summary.Summary(value=values)}
            events.append(self.event.Event(**event))
        self._write(events)
        while self.older:
            self.older.pop().unlink(missing_ok=True)

    @contract
    def close(self, status: str, summary: dict[str, Any]) -> None:
        if self.path == self.folder:  # a run that logged nothing
            self._begin_file(0)
        end = self.hparams(self._get_params(), {})[2]
        if status in (FAILED, KILLED):
            from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

            stored = end.value[0].metadata.plugin_data
            data = plugin_data_pb2.HParamsPluginData.FromString(stored.content)
            data.session_end_info.status = api_pb2.STATUS_FAILURE
            stored.content = data.SerializeToString()
        self._write([self.event.Event(wall_time=time.time(), summary=end)])

    def describe_end(self) -> str:
        return f"tensorboard --logdir {self.run.folder.parent}"

    def _get_params(self) -> dict[str, Any]:
        params = fields.select_params(fields.flatten_config(self.run.config), {})
        return {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in params.items()}

    def _begin_file(self, step: int) -> None:
        """Begin a file before which TensorBoard forgets everything from a step on. Their names are in order of time."""
        name = f"{EVENTS_PREFIX}{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self.path, self.size, now = self.folder / name, 0, time.time()
        self.path.touch()
        start, session = self.event.SessionLog(status=self.event.SessionLog.START), self.hparams(self._get_params(), {})[:2]
        first = [self.event.Event(wall_time=now, file_version="brain.Event:2"), self.event.Event(wall_time=now, step=step)]
        first[1].session_log.CopyFrom(start)
        self._write([*first, *(self.event.Event(wall_time=now, summary=item) for item in session)])

    def _write(self, events: Sequence[Any]) -> None:
        """Write events behind those that were written whole."""
        with self.path.open("r+b") as file:
            file.seek(self.size)
            file.truncate()  # what a write that failed has left
            writer = self.writer(file)
            for event in events:
                writer.write(event.SerializeToString())
            writer.flush()
            self.size = file.tell()
