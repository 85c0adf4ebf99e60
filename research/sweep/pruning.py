"""End a run that its study's pruner stops."""

import logging

from research.sweep.trial import Trial, get_current_trial
from research.training.state import PRUNED_REASON, Callback, State

log = logging.getLogger(__name__)


class Pruning(Callback):
    """Report each evaluation to the study and stop where its pruner says so; without a pruner, do nothing."""

    trial: Trial | None = None

    def on_start(self, state: State) -> None:
        self.trial = get_current_trial()
        # The process before may have ended right after the pruner's verdict.
        if self.trial and self.trial.is_pruned():
            state.stop = PRUNED_REASON

    def on_step(self, state: State) -> None:
        is_due = state.info.monitor in state.logged and state.progress.step < state.info.steps
        if self.trial is None or state.stop or not is_due:
            return
        try:
            self.trial.report(state.logged[state.info.monitor], state.progress.step)
            if self.trial.should_prune():
                state.stop = PRUNED_REASON
        except Exception as error:  # each storage raises its own: an unreachable one must not end the run
            log.warning("step %d was not reported to the study: %s", state.progress.step, error)
