"""A sweep whose runs have several processes each, started by torchrun: the first process decides, the others follow.

They receive each job through the store that torchrun itself keeps: their process group exists during a run only.
"""

import json
import os
from datetime import timedelta
from typing import Any

from research.contracts import contract
from research.signals import get_launched_ranks

END_MESSAGE = "end"
MAX_MESSAGES = 1_000_000  # jobs of one sweep
WAIT_TIMEOUT = timedelta(days=30)  # the first process may wait for trials of others


class Ranks:
    """The processes of one torchrun. With one process its methods do nothing."""

    store: Any = None
    message_index = 0

    def __init__(self) -> None:
        self.rank, self.world_size = get_launched_ranks()
        if self.world_size == 1:
            return
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            fix = "start the sweep by torchrun, or as one process"
            raise ValueError(f"-m: {self.world_size} processes have no common store\n{fix}")
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        prefix = f"sweep-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self.store = PrefixStore(prefix, TCPStore(*address, is_master=False, wait_for_workers=False, timeout=WAIT_TIMEOUT))

    @contract
    def send(self, job: list[Any] | str) -> None:
        """Send the other processes a job to launch, or END_MESSAGE."""
        if self.store is not None:
            self.store.set(str(self.message_index), json.dumps(job))
            self.message_index += 1

    def follow(self, launcher: Any) -> None:
        """Launch what the first process launches, until it ends; the first process alone counts failed jobs."""
        for index in range(MAX_MESSAGES):
            self.store.wait([str(index)], WAIT_TIMEOUT)
            job = json.loads(self.store.get(str(index)))
            if job == END_MESSAGE:
                return
            launcher.launch(job[0], initial_job_idx=job[1])
        raise ValueError(f"-m: a sweep on several processes has at most {MAX_MESSAGES:,} jobs\ngive a smaller n_trials")
