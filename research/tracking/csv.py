"""The sink that writes metrics.csv, for spreadsheets and what reads tables."""

import csv
from collections.abc import Sequence
from io import StringIO
from typing import Any

from research.contracts import contract
from research.run_dir import RunConfig, replace_text
from research.tracking.sink import Record, Sink

CSV_FILE = "metrics.csv"
FIRST = ("step", "seconds")  # columns


class CsvSink(Sink):
    """RUN/metrics.csv: a row a log point, a column a metric, empty where a step has not logged it.

    Columns stand in the order in which they came. For a new one, and for steps that are repeated, the file is replaced.
    """

    name, title, trace = "csv", "CSV", CSV_FILE

    @contract
    def prepare(self, run: RunConfig) -> None:
        super().prepare(run)
        self.path, self.columns, self.size = run.folder / CSV_FILE, list[str](), 0

    @property
    def address(self) -> str:
        return str(self.path)

    def open(self) -> None:
        self._replace([], FIRST)  # the rows of an earlier process come again, from metrics.jsonl

    @contract
    def rewind(self, step: int) -> None:
        self._replace([row for row in self._read_rows() if int(row["step"]) <= step], self.columns)

    @contract
    def log(self, records: Sequence[Record]) -> None:
        rows = [{"step": record.step, "seconds": record.seconds, **record.finite} for record in records]
        keys = {key: None for row in rows for key in row}
        if new := [key for key in keys if key not in self.columns]:
            self._replace([*self._read_rows(), *rows], (*self.columns, *new))
            return
        with self.path.open("r+", encoding="utf-8", newline="") as file:
            file.seek(self.size)
            file.truncate()  # what a write that failed has left
            file.write(self._format(rows, self.columns))
            file.flush()
            self.size = file.tell()

    def _read_rows(self) -> list[dict[str, Any]]:
        text = self.path.read_bytes()[: self.size].decode()
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(StringIO(text))]

    def _replace(self, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
        """Write the whole file, in one rename."""
        text = ",".join(columns) + "\n" + self._format(rows, columns)
        replace_text(self.path, text)
        self.columns, self.size = list(columns), len(text.encode())

    def _format(self, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
        text = StringIO()
        csv.DictWriter(text, columns, lineterminator="\n").writerows(rows)
        return text.getvalue()
