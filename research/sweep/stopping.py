"""When a study is over before its last trial."""

import math
import time
from datetime import datetime

from optuna.study import Study, StudyDirection
from optuna.trial import TrialState

from research.sweep.settings import Settings
from research.sweep.study import instantiate_setting, silence_optuna_warnings


class Stopping:
    """Asked before each trial."""

    def __init__(self, settings: Settings, start_time: float) -> None:
        self.settings, self.start_time = settings, start_time  # in seconds since the epoch: of all workers the same
        self.terminator = instantiate_setting(settings.terminator, "hydra.sweeper.terminator") if settings.terminator else None

    def get_reason(self, study: Study) -> str:
        """Why no other trial begins; empty while there is no reason."""
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
        best, since = math.inf, 0
        for each in ended:
            value = sign * each.value if each.state == TrialState.COMPLETE and each.value is not None else math.inf
            best, since = (value, 0) if value < best else (best, since + 1)
        if s.target_value is not None and best <= sign * s.target_value:
            return f"target_value: {sign * best:g} reached {s.target_value:g}"
        if s.patience is not None and since >= s.patience:
            return f"patience: {since} trials in a row were no better than {sign * best:g}"
        return self._get_terminator_reason(study) if best < math.inf else ""

    def _get_terminator_reason(self, study: Study) -> str:
        if self.terminator is None:
            return ""
        with silence_optuna_warnings():
            return "terminator: no room for improvement is left" if self.terminator.should_terminate(study) else ""
