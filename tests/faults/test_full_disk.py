"""Row 14: a full disk in a sweep: trials that lack room, memory or a store go on with the next start of the command."""

import errno
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError
from sweep_worker import make_worker
from sweeping import load_folder_study, load_study, run_program, run_sweep, write_program

from research.callbacks.pause import describe_pause
from research.pbt.evolve import Member
from research.pbt.plan import Plan as PopulationPlan
from research.pbt.plan import read_population
from research.pbt.population import Population
from research.pbt.settings import PopulationSettings
from research.run_dir import Summary, read_json
from research.sweep.objective import find_lack
from research.sweep.queue import TRIES
from research.sweep.space import parse_space
from research.sweep.sweep import begin
from research.tracking.optuna_storage import POSTPONED_ATTR


def wrap(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "lack"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "room"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "room"),
        (OSError(errno.EFBIG, "File too large"), "room"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "room"),
        (RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/0"), "room"),
        (OperationalError("INSERT", {}, Exception("database or disk is full")), "room"),
        (wrap(ValueError("the run failed"), OSError(errno.ENOSPC, "No space left on device")), "room"),
        (MemoryError(), "memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"), "memory"),
        (ValueError("out of memory at step 1: no more\na micro-batch is one sample"), "memory"),
        (OperationalError("SELECT 1", {}, Exception("server closed the connection")), "a store"),
        (ValueError("tracker.uri=http://h is not a store that MLflow can open: it is away"), "a store"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "a store"),
        (OSError(errno.EROFS, "Read-only file system"), "room"),
        (OSError(errno.EIO, "another word"), "a store"),
        (OSError(errno.ESTALE, "Stale file handle"), "a store"),
        (OSError(errno.EMFILE, "Too many open files"), "memory"),
        (OSError(errno.ENFILE, "Too many open files in system"), "memory"),
        (RuntimeError("I/O error: Read-only file system (os error 30)"), "room"),
        (RuntimeError("the run failed: [Errno 5] Input/output error"), "a store"),
        (RuntimeError("the run failed: OSError: [Errno 24] Too many open files"), "memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "memory"),
        (RuntimeError("can't start new thread"), "memory"),
        (sqlite3.OperationalError("database is locked"), "a store"),
        (ValueError("<urlopen error [Errno -3] Temporary failure in name resolution>"), "a store"),
        (ValueError("HTTPSConnectionPool(host='h', port=443): Read timed out. (read timeout=120)"), "a store"),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), "a store"),
        (ValueError("the loss is not finite"), ""),
        (FloatingPointError("NaN"), ""),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), ""),
        (PermissionError(errno.EACCES, "Permission denied"), ""),
        (KeyError("memory"), ""),
        (None, ""),
    ],
)
def test_what_a_machine_lacks_is_no_fault_of_the_trial(error: BaseException | None, lack: str) -> None:
    assert find_lack(error) == lack


class Machine:
    """Jobs that fail with an error until it is mended; the third fails by itself."""

    def __init__(self, error: Exception | None) -> None:
        self.error, self.calls = error, list[int]()

    def run(self, number: int, folder: Path) -> float:
        self.calls.append(number)
        if self.error and number == 1:
            raise self.error
        if number == 2:
            raise ValueError("its own fault")
        return float(number)


FULL = OSError(errno.ENOSPC, "No space left on device")


def start(folder: Path, machine: Machine, **settings: Any) -> Any:
    """Run the command once, to its end; return its worker."""
    own = make_worker(folder, machine.run, **settings)
    begin(own)
    own.run_all()
    own.queue.close()
    return own


def test_a_trial_without_room_goes_on_with_the_next_start(tmp_path: Path) -> None:
    """With its number, and as often as it takes; what failed by itself stays failed."""
    machine = Machine(FULL)
    for _ in range(4):
        own = start(tmp_path, machine)
        assert own.has_trials_left()
        with pytest.raises(ValueError, match=r"2 of 3 trials failed, the last with: room: .*No space left") as refusal:
            own.check_failures()
        assert "1 of them lack room, and go on when the same command is given again" in str(refusal.value)
    machine.error = None
    own = start(tmp_path, machine)
    assert machine.calls == [0, 1, 2, 1, 1, 1, 1]
    trials = load_folder_study(tmp_path, "s").trials
    assert [t.state for t in trials] == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL]
    assert (trials[1].value, trials[1].user_attrs.get(TRIES), trials[1].user_attrs[POSTPONED_ATTR]) == (1.0, None, "")
    assert not own.has_trials_left()


def test_a_trial_without_memory_goes_on_as_often_as_one_that_died(tmp_path: Path) -> None:
    """It may well be its own fault: a batch that fits into no machine must not keep a sweep from its end."""
    machine = Machine(MemoryError("Unable to allocate 1 TiB"))
    for _ in range(5):
        own = start(tmp_path, machine, max_retries=2)
    assert machine.calls.count(1) == 3
    trial = load_folder_study(tmp_path, "s").trials[1]
    assert trial.state == TrialState.FAIL
    assert "too little memory, again and again" in trial.user_attrs["error"]
    assert not own.has_trials_left()


def test_other_workers_of_the_same_start_leave_it_alone(tmp_path: Path) -> None:
    first, second = Machine(FULL), Machine(FULL)
    one = make_worker(tmp_path, first.run)
    two = make_worker(tmp_path, second.run)
    begin(one)
    one.run_all()
    two.run_all()
    assert (first.calls, second.calls) == ([0, 1, 2], [])
    for own in (one, two):
        own.queue.close()


def test_each_lack_is_named_once(tmp_path: Path) -> None:
    """The words of an error do not decide: one that begins with memory is about a store here."""
    errors: list[Exception] = [MemoryError(), FULL, ConnectionRefusedError("memory of the store: Connection refused"), FULL]

    def run(number: int, folder: Path) -> float:
        raise errors[number]

    own = make_worker(tmp_path, run, "x=1,2,3,4")
    begin(own)
    own.run_all()
    own.queue.close()
    with pytest.raises(ValueError, match="4 of them lack memory or room or a store, and go on"):
        own.check_failures()


def test_a_failure_within_the_rate_is_no_success_without_room(tmp_path: Path) -> None:
    """A study may lose half of its trials, but one that has only to be continued has not ended."""
    own = start(tmp_path, Machine(FULL))
    own.plan.grid = None
    own.plan.spec["kind"] = "study"
    with pytest.raises(ValueError, match=r"lack room"):
        own.check_failures()


def test_the_same_command_goes_on_once_there_is_room(tmp_path: Path) -> None:
    """The program: a sweep that a full disk has ended runs what it lacks, in the same folder, and only that."""
    output = run_sweep(tmp_path, "x=1,2,3,4", fails=True, fail_at="1-3", error="No space left on device")
    assert "2 of them lack room, and go on when the same command is given again" in output
    assert not read_json(tmp_path / "sweep" / "study.json")["over"]
    assert "room: OSError: No space left" in (tmp_path / "sweep" / "trials.csv").read_text()
    write_program(tmp_path)
    done = run_program(tmp_path, "app.py", "-m", "x=1,2,3,4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(t.number, t.value) for t in load_study(tmp_path).trials] == [(0, 1.0), (1, 4.0), (2, 9.0), (3, 16.0)]
    began = [line.split()[0] for line in (tmp_path / "times.txt").read_text().splitlines()]
    assert sorted(began) == sorted("0012231133")  # a line as each begins, and one as it ends
    assert read_json(tmp_path / "sweep" / "study.json")["over"]


class Members:
    """A launcher of a population's members, one of which fails with an error until it is mended."""

    def __init__(self, folder: Path, error: Exception | None, failing: str = "g1m1") -> None:
        self.folder, self.error, self.failing, self.names = folder, error, failing, list[str]()

    def launch(self, lines: list[list[str]], initial_job_idx: int) -> list[JobReturn]:
        return [self.run(dict(line.split("=", 1) for line in overrides)) for overrides in lines]

    def run(self, overrides: dict[str, str]) -> JobReturn:
        name, value = overrides["hydra.sweep.subdir"], float(overrides["lr"])
        self.names.append(name)
        if self.error and name == self.failing:
            result = JobReturn(status=JobStatus.FAILED)
            result.return_value = self.error
            return result
        folder, stop = self.folder / name, describe_pause(2 * int(name[1]) + 2)
        (folder / "checkpoints" / "step-00000002").mkdir(parents=True)
        values: dict[str, float | None] = {"val/acc": value}
        Summary("FINISHED", metrics=values, best=values, steps=2, stop=stop).write(folder)
        result = JobReturn(status=JobStatus.COMPLETED)
        result.return_value = value
        return result


def train_population(folder: Path, launcher: Members, n_jobs: int) -> list[Member]:
    """Run the command once, to its end or its error; return the members that population.json holds."""
    folder.mkdir(exist_ok=True)
    settings = PopulationSettings(population=3, interval=2, n_jobs=n_jobs)
    space = parse_space({}, ["lr=interval(0.1,1.0)"], {}, None)
    plan = PopulationPlan(settings, space, OmegaConf.create(), 6, "val/acc", maximize=True, folder=folder)
    try:
        Population(plan, launcher).run_all()
    finally:
        members = list(read_population(folder).members)
    return members


@pytest.mark.parametrize("n_jobs", [1, 3])
@pytest.mark.parametrize(
    "error", [FULL, ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")], ids=["room", "store"]
)
def test_a_population_goes_on_with_the_member_that_lacked_something(tmp_path: Path, error: Exception, n_jobs: int) -> None:
    """It is neither a failed one, which a copy would replace, nor run twice; and the end is that of a run without a fault."""
    whole = train_population(tmp_path / "whole", Members(tmp_path / "whole", None), n_jobs)
    names = [f"g{generation}m{member}" for generation in range(3) for member in range(3)]
    launcher = Members(tmp_path / "part", error)
    for _ in range(3):
        with pytest.raises(ValueError, match=r"hydra/sweeper=pbt: g1m1 lacks .*\nthe same command goes on with it"):
            train_population(tmp_path / "part", launcher, n_jobs)
        saved = [member.name for member in read_population(tmp_path / "part").members]
        assert saved == [name for name in names[: 3 + (1 if n_jobs == 1 else 3)] if name != "g1m1"]
    launcher.error = None
    launcher.names.clear()
    ended = train_population(tmp_path / "part", launcher, n_jobs)
    assert sorted(ended, key=lambda member: member.name) == whole
    assert launcher.names == [name for name in names if name not in saved]


def test_a_member_that_fails_by_itself_is_replaced_and_not_run_again(tmp_path: Path) -> None:
    launcher = Members(tmp_path, FloatingPointError("NaN"))
    members = train_population(tmp_path, launcher, 3)
    assert [member.error for member in members if member.error] == ["FloatingPointError: NaN"]
    assert len(launcher.names) == 9
    assert next(member for member in members if member.name == "g2m1").parent != 1
