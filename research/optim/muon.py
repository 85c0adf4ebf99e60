"""Muon (Jordan et al. 2024) as its authors use it: torch's Muon for the hidden matrices, AdamW for all else."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.optim import AdamW, Optimizer
from torch.optim import Muon as TorchMuon

from research import rules
from research.optim.param_groups import run_closure
from research.ranges import Fraction, Fractions, PositiveFloat, check_settings


class Muon(Optimizer):
    """One optimizer with two rules: Muon for 2-D parameters whose name contains none of `adamw_for`, AdamW for all else.

    Muon's update is scaled to the size of AdamW's (match_rms_adamw, Liu et al. 2025, arXiv 2502.16982), so one lr and one
    weight decay serve both.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],  # groups of named parameters
        lr: PositiveFloat,
        momentum: Fraction = 0.95,
        betas: Fractions = (0.9, 0.98),
        adamw_for: Sequence[str] = ("embed", "head"),
    ) -> None:
        check_settings("optim.base", Muon.__init__.__annotations__, locals())
        rules.enforce(rules.check_betas("research.optim.muon.Muon", betas))
        muon = TorchMuon([torch.nn.Parameter(torch.zeros(1, 1))], lr=lr, momentum=momentum, adjust_lr_fn="match_rms_adamw")
        adamw = AdamW([torch.zeros(1)], lr=lr, betas=(betas[0], betas[1]), fused=True)
        self._rules: dict[bool, Optimizer] = {True: muon, False: adamw}
        groups = []
        for group in params:
            named: dict[bool, list[Any]] = {True: [], False: []}
            for name, p in group["params"]:
                named[p.ndim == 2 and not any(word in name for word in adamw_for)].append((name, p))
            settings = {kind: rule.defaults | group | {"matrices": kind} for kind, rule in self._rules.items()}
            groups += [settings[kind] | {"params": part} for kind, part in named.items() if part]
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = run_closure(closure)
        for matrices, rule in self._rules.items():
            rule.state = self.state  # both rules work on our state and groups, which are saved, loaded and scheduled as usual
            rule.param_groups = [group for group in self.param_groups if group["matrices"] is matrices]
            rule.step()
        return loss
