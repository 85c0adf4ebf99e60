"""A sweep whose runs have several processes each, started by torchrun: the first one decides, the others run the same jobs.

They hear of each job through the store that torchrun itself keeps, for they know each other only while a run is under way.
"""

import json
import os
from datetime import timedelta
from typing import Any

from research.training.distributed import get_launched_ranks

END_MESSAGE = "end"
WAIT_TIMEOUT = timedelta(days=30)  # the first process may wait for trials of others


class Ranks:
    """The processes of one torchrun. With one process all of this does nothing."""

    def __init__(self) -> None:
        self.rank, self.world_size = get_launched_ranks()
        self.message_index, self.store = 0, None
        if self.world_size == 1:
            return
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            raise ValueError(
                f"-m: {self.world_size} processes have no common store\nstart the sweep by torchrun, or as one process"
            )
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        run = f"sweep-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self.store = PrefixStore(run, TCPStore(*place, is_master=False, wait_for_workers=False, timeout=WAIT_TIMEOUT))

    store: Any

    def send(self, job: list[Any] | str) -> None:
        """The first process to the others: what they are to launch, or that there is no more."""
        if self.store is not None:
            self.store.set(str(self.message_index), json.dumps(job))
            self.message_index += 1

    def follow(self, launcher: Any) -> None:
        """In the others: launch what the first one launches, until its end. Its jobs' failures are its own to judge."""
        while (job := self._receive()) != END_MESSAGE:
            lines, first = job
            launcher.launch(lines, initial_job_idx=first)

    def _receive(self) -> Any:
        self.store.wait([str(self.message_index)], WAIT_TIMEOUT)
        self.message_index += 1
        return json.loads(self.store.get(str(self.message_index - 1)))
