"""When a study ends before its last trial."""

import math
import time
from datetime import datetime

from optuna.study import Study, StudyDirection
from optuna.trial import TrialState

from research.sweep.settings import SweepSettings
from research.sweep.study import instantiate_setting
from research.tracking.optuna_storage import silence_optuna


class Stopping:
    """The rules to end early; `get_reason` is called before each trial."""

    def __init__(self, settings: SweepSettings, start_time: float) -> None:
        self.settings, self.start_time = settings, start_time  # in seconds since the epoch: the same in all workers
        self.terminator = instantiate_setting(settings.terminator, "hydra.sweeper.terminator") if settings.terminator else None

    def get_reason(self, study: Study) -> str:
        """Return why no other trial begins; an empty text while there is no reason."""
        s = self.settings
        if s.timeout is not None and time.time() - self.start_time >= s.timeout:
            return f"timeout: {s.timeout:g} s are over"
        if s.target_value is None and s.patience is None and self.terminator is None:
            return ""
        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        ended = sorted(
            (t for t in study.get_trials(deepcopy=False) if t.state in (TrialState.COMPLETE, TrialState.PRUNED)),
            key=lambda t: t.datetime_complete or datetime.max,
        )
        best, since = math.inf, 0  # the best loss, and the trials that have ended after it
        for trial in ended:
            loss = sign * trial.value if trial.state == TrialState.COMPLETE and trial.value is not None else math.inf
            best, since = (loss, 0) if loss < best else (best, since + 1)
        if s.target_value is not None and best <= sign * s.target_value:
            return f"target_value: {sign * best:g} reached {s.target_value:g}"
        if s.patience is not None and since >= s.patience:
            return f"patience: {since} trials in a row were no better than {sign * best:g}"
        return self._get_terminator_reason(study) if best < math.inf else ""

    def _get_terminator_reason(self, study: Study) -> str:
        if self.terminator is None:
            return ""
        with silence_optuna():
            should_end = self.terminator.should_terminate(study)
        return "terminator: no improvement is to be expected" if should_end else ""
