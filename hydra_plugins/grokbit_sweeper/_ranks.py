"""A sweep whose runs have several processes each, started by torchrun: the first one decides, the others run the same jobs.

They hear of each job through the store that torchrun itself keeps, for they know each other only while a run is under way.
"""

import json
import os
from datetime import timedelta
from typing import Any

from research.processes import launched

END = "end"
PATIENCE = timedelta(days=30)  # the first process may wait for trials of others


class Ranks:
    """The processes of one torchrun. With one process all of this does nothing."""

    def __init__(self) -> None:
        self.rank, self.count = launched()
        self.told, self.store = 0, None
        if self.count == 1:
            return
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            raise ValueError(f"-m: {self.count} processes have no common store\nstart the sweep by torchrun, or as one process")
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        run = f"sweep-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self.store = PrefixStore(run, TCPStore(*place, is_master=False, wait_for_workers=False, timeout=PATIENCE))

    store: Any

    def tell(self, job: list[Any] | str) -> None:
        """The first process to the others: what they are to launch, or that there is no more."""
        if self.store is not None:
            self.store.set(str(self.told), json.dumps(job))
            self.told += 1

    def follow(self, launcher: Any) -> None:
        """In the others: launch what the first one launches, until its end. Its jobs' failures are its own to judge."""
        while (job := self._next()) != END:
            lines, first = job
            launcher.launch(lines, initial_job_idx=first)

    def _next(self) -> Any:
        self.store.wait([str(self.told)], PATIENCE)
        self.told += 1
        return json.loads(self.store.get(str(self.told - 1)))
