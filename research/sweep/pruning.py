"""Ends a run that its study gives up."""

import logging

from research.tracking.optuna_storage import Trial, get_current_trial
from research.training.state import PRUNED_REASON, Callback, State

log = logging.getLogger(__name__)


class Pruning(Callback):
    """Tell the study of each evaluation, and stop where its pruner says so; outside of a study that prunes, nothing."""

    trial: Trial | None = None

    def on_start(self, state: State) -> None:
        self.trial = get_current_trial()
        if self.trial and self.trial.is_pruned():  # it may have been ended right after it had been given up
            state.stop = PRUNED_REASON

    def on_step(self, state: State) -> None:
        if (
            self.trial is None
            or state.stop
            or state.info.monitor not in state.logged
            or state.progress.step == state.info.steps
        ):
            return
        try:
            self.trial.report(state.logged[state.info.monitor], state.progress.step)
            if self.trial.should_prune():
                state.stop = PRUNED_REASON
        except Exception as error:  # whatever a storage raises that is away for a while: no reason to lose the run
            log.warning("the study did not hear of step %d: %s", state.progress.step, error)
