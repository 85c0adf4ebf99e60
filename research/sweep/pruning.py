"""End a run that its study's pruner stops."""

import logging
import threading
from contextlib import suppress

from research.cli import wait_for
from research.contracts import contract
from research.signals import Stopped
from research.sweep.trial import Trial, get_current_trial
from research.training.state import PRUNED_REASON, Callback, State

UNSAID = 1.0  # seconds of waiting that are not worth a word
log = logging.getLogger(__name__)


class Pruning(Callback):
    """Report each evaluation to the study and stop where its pruner says so; without a pruner, do nothing."""

    trial: Trial | None = None

    @contract
    def on_start(self, state: State) -> None:
        self.trial = get_current_trial()
        # The process before may have ended right after the pruner's verdict.
        if self.trial and self.trial.is_pruned():
            state.stop = PRUNED_REASON

    def on_step(self, state: State) -> None:
        is_due = state.info.monitor in state.logged and state.progress.step < state.info.steps
        if self.trial is None or state.stop or not is_due:
            return
        answers: list[bool] = []
        arguments = (self.trial, state.logged[state.info.monitor], state.progress.step, answers)
        thread = threading.Thread(target=report, args=arguments, name="report", daemon=True)
        thread.start()
        thread.join(UNSAID)
        if thread.is_alive():  # a signal ends the wait, and the run at its next safe point
            with suppress(Stopped), wait_for("the study's storage"):
                thread.join()
        if any(answers):
            state.stop = PRUNED_REASON


@contract
def report(trial: Trial, value: float, step: int, answers: list[bool]) -> None:
    """Report a step and append whether the trial is pruned. In a thread: a signal cannot end the wait for a database."""
    try:
        trial.report(value, step)
        answers.append(trial.should_prune())
    except Exception as error:  # each storage raises its own: an unreachable one must not end the run
        log.warning("step %d was not reported to the study: %s", step, error)
