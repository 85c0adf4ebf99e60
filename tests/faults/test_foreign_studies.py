"""C17: a study that somebody else wrote holds pickles, and their code does not run: every attack would make MARK."""

import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cmaes
import numpy as np
import optuna
import pytest
from sweeping import connect_journal, list_params, load_study, run_program, run_sweep

from research.sweep import optuna_private
from research.sweep.study import make_sampler
from research.tracking import optuna_storage

CMAES = {"_target_": "optuna.samplers.CmaEsSampler", "n_startup_trials": 1, "seed": 0}
NESTED = {"_target_": "optuna.samplers.PartialFixedSampler", "fixed_params": {}, "base_sampler": CMAES}
OPTIMIZER_ATTR = "cma:optimizer:0"


class Attack:
    """Whoever unpickles this makes a file."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, ("MARK", "w")


ATTACKS = {
    "a builtin": pickle.dumps(Attack()),
    "a shell": b"cposix\nsystem\n(Vtouch MARK\ntR.",
    "an alias in cmaes": b"\x80\x04ccmaes._cma\nnp.load\n(VMARK\ntR.",
    "below what is known": pickle.dumps({"C": [Attack()]}),
}


@pytest.fixture(autouse=True)
def marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start in a folder in which no mark is at the end."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not [*tmp_path.rglob("MARK")]


def test_this_attack_would_work(tmp_path: Path) -> None:
    pickle.loads(ATTACKS["a builtin"]).close()
    (tmp_path / "MARK").unlink()


def add_trial(study: optuna.Study, content: bytes) -> None:
    """Add a trial with a pickle where CMA-ES keeps its own."""
    space: Any = {name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in "xy"}
    trial = study.ask(space)
    storage, trial_id = optuna_private.get_storage(study), optuna_private.get_trial_id(trial)
    storage.set_trial_system_attr(trial_id, OPTIMIZER_ATTR, content.hex())
    study.tell(trial, 0.5)


@pytest.mark.parametrize("sampler", [CMAES, {**CMAES, "seed": None}, NESTED], ids=["seed", "no seed", "nested"])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_sampler_runs_nothing_that_a_study_holds(tmp_path: Path, name: str, sampler: dict[str, Any]) -> None:
    add_trial(optuna.create_study(study_name="s", storage=connect_journal(tmp_path)), ATTACKS[name])
    study = optuna.load_study(study_name="s", storage=connect_journal(tmp_path), sampler=make_sampler(sampler))
    with pytest.raises(ValueError, match=r"holds a pickle that names .*: it could run code\n.*study_name"):
        add_trial(study, b"")


def make_optimizer(kind: str) -> Any:
    mean, bounds = np.zeros(2), np.array([[-1.0, 1.0], [-1.0, 1.0]])
    makers: dict[str, Callable[[], Any]] = {
        "plain": lambda: cmaes.CMA(mean, 1.0, seed=1),
        "rates": lambda: cmaes.CMA(mean, 1.0, seed=1, lr_adapt=True, bounds=bounds),
        "separable": lambda: cmaes.SepCMA(mean, 1.0, seed=1),
        "margin": lambda: cmaes.CMAwM(mean, 1.0, seed=1, bounds=bounds, steps=np.array([0.5, 0.0])),
    }
    return makers[kind]()


@pytest.mark.parametrize("kind", ["plain", "rates", "separable", "margin"])
def test_what_optuna_keeps_is_read_as_it_was(kind: str) -> None:
    """Each kind that CmaEsSampler has goes on with the same points."""
    optimizer = make_optimizer(kind)
    for _ in range(2):
        points = [
            np.ravel(optimizer.ask()[0] if kind == "margin" else optimizer.ask()) for _ in range(optimizer.population_size)
        ]
        optimizer.tell([(point, float(np.sum(point**2))) for point in points])
    content = pickle.dumps(optimizer)
    points = []
    for restored in (pickle.loads(content), optuna_private.OptimizerUnpickler(io.BytesIO(content)).load()):
        restored._rng.seed(3)
        points.append(np.array(restored.ask()))
    assert np.array_equal(points[0], points[1])


def test_a_study_of_one_s_own_goes_on_with_the_same_points(tmp_path: Path) -> None:
    def run_trials(name: str, *counts: int) -> list[dict[str, Any]]:
        for count in counts:  # each as a process of its own
            storage, sampler = connect_journal(tmp_path / name), make_sampler(CMAES)
            study = optuna.create_study(study_name="s", storage=storage, sampler=sampler, load_if_exists=True)
            study.optimize(lambda trial: sum(trial.suggest_float(key, -1, 1) ** 2 for key in "xy"), n_trials=count)
        assert any(OPTIMIZER_ATTR in trial.system_attrs for trial in study.trials)
        return list_params(study)

    assert run_trials("parts", 9, 5, 6) == run_trials("whole", 20)


def test_a_sweep_of_another_s_is_refused_by_the_program(tmp_path: Path) -> None:
    words = ["x=interval(0,1)", "y=interval(0,1)", "hydra/sweeper/sampler=cmaes", "hydra.sweeper.sampler.n_startup_trials=1"]
    run_sweep(tmp_path, *words, "hydra.sweeper.n_trials=1")
    add_trial(load_study(tmp_path), ATTACKS["a builtin"])
    done = run_program(tmp_path, "app.py", "-m", *words, "hydra.sweeper.n_trials=3")
    assert done.returncode != 0
    assert "hydra/sweeper/sampler=cmaes: the study holds a pickle that names " in done.stderr


class Redis:
    """As much of a Redis client as a journal uses."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.get, self.set, self.setnx = self.values.get, self.values.__setitem__, self.values.setdefault

    def eval(self, script: str, count: int, prefix: str, record: str) -> None:
        self.values[f"{prefix}:log_number"] += 1
        self.values[f"{prefix}:log:{self.values[f'{prefix}:log_number']}"] = record


@pytest.mark.parametrize("is_url", [True, False])
def test_a_snapshot_on_a_server_is_neither_read_nor_written(monkeypatch: pytest.MonkeyPatch, is_url: bool) -> None:
    server = Redis()
    server.set(":snapshot", ATTACKS["a builtin"])
    client = SimpleNamespace(from_url=lambda _: server)
    monkeypatch.setattr("optuna.storages.journal._redis.redis", SimpleNamespace(Redis=client))
    backend = {"_target_": "optuna.storages.journal.JournalRedisBackend", "url": "redis://h:1/0"}
    spec = {"_target_": "optuna.storages.JournalStorage", "log_storage": backend}
    monkeypatch.setattr(optuna.storages.journal._storage, "SNAPSHOT_INTERVAL", 1)
    optuna_storage._connect_storage.cache_clear()
    storage = optuna_storage.get_storage("redis://h:1/0" if is_url else spec)
    for number in range(3):
        optuna.create_study(study_name=str(number), storage=storage).tell(
            optuna.load_study(study_name=str(number), storage=storage).ask(), 1.0
        )
    assert server.get(":snapshot") == ATTACKS["a builtin"]
    optuna_storage._connect_storage.cache_clear()
    again = optuna_storage.get_storage("redis://h:1/0" if is_url else spec)
    assert [len(again.get_all_trials(study._study_id)) for study in again.get_all_studies()] == [1, 1, 1]
    optuna_storage._connect_storage.cache_clear()
