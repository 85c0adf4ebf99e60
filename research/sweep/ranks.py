"""A sweep whose runs have several processes each, started by torchrun: the first process decides, the others follow.

They receive each job through the store that torchrun itself keeps: their process group exists during a run only.
"""

import json
import os
from datetime import timedelta
from typing import Any

END_MESSAGE = "end"
WAIT_TIMEOUT = timedelta(days=30)  # the first process may wait for trials of others


def get_launched_ranks() -> tuple[int, int]:
    """Return this process's rank and the number of processes that its launcher started."""
    if "WORLD_SIZE" not in os.environ:
        return 0, 1  # no launcher: a sweep of runs without torch need not import it
    from research.training import distributed

    return distributed.get_launched_ranks()


class Ranks:
    """The processes of one torchrun. With one process its methods do nothing."""

    store: Any

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

        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        prefix = f"sweep-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self.store = PrefixStore(prefix, TCPStore(*address, is_master=False, wait_for_workers=False, timeout=WAIT_TIMEOUT))

    def send(self, job: list[Any] | str) -> None:
        """Send the other processes a job to launch, or END_MESSAGE."""
        if self.store is not None:
            self.store.set(str(self.message_index), json.dumps(job))
            self.message_index += 1

    def follow(self, launcher: Any) -> None:
        """Launch what the first process launches, until it ends; the first process alone counts failed jobs."""
        while (job := self._receive()) != END_MESSAGE:
            lines, first = job
            launcher.launch(lines, initial_job_idx=first)

    def _receive(self) -> Any:
        self.store.wait([str(self.message_index)], WAIT_TIMEOUT)
        self.message_index += 1
        return json.loads(self.store.get(str(self.message_index - 1)))
