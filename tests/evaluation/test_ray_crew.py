"""Episodes on a local Ray: workers and policies that die, hang, refuse."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cli.cli_fakes import FakeEnv, FakePolicies, FakePolicy
from vla_cache_ros.core.errors import EvaluationError
from vla_cache_ros.core.protocols import Policy
from vla_cache_ros.evaluation.episode import EpisodeRow, EpisodeSpec
from vla_cache_ros.evaluation.ray_crew import RayCrew, import_ray
from vla_cache_ros.evaluation.runner import Job

pytestmark = pytest.mark.slow
WORKERS = 2


@pytest.fixture(scope='module', autouse=True)
def cluster() -> Iterator[None]:
    """One Ray for all tests: starting one takes seconds."""
    ray = import_ray()
    ray.init(
        address='local',  # whatever cluster this machine may belong to
        num_cpus=WORKERS + 1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level='ERROR',
        object_store_memory=128 * 2**20,
    )
    yield
    ray.shutdown()


class SlowEnv(FakeEnv):
    """Takes its time, and says in a file which process runs which episode."""

    def __init__(self, folder: Path, pause_s: float, suite: str, task: int, size: int) -> None:
        super().__init__(suite, task, size)
        self.folder, self.pause_s = folder, pause_s

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        with (self.folder / 'episodes').open('a') as file:
            file.write(f'{os.getpid()} {options["init_state"]}\n')
        return super().reset(seed=seed, options=options)

    def advance(self, action: Any) -> Any:
        time.sleep(self.pause_s)
        return super().advance(action)


class HangingEnv(FakeEnv):
    """Never comes back from the episodes of initial state 1."""

    def advance(self, action: Any) -> Any:
        if self.init_state == 1:
            time.sleep(1000)
        return super().advance(action)


@dataclass(frozen=True)
class SlowEnvs:
    folder: Path
    pause_s: float = 0.05

    def __call__(self, suite: str, task: int, size: int) -> SlowEnv:
        return SlowEnv(self.folder, self.pause_s, suite, task, size)


@dataclass(frozen=True)
class PoliciesWithPid:
    """Says in a file which process holds the policies."""

    folder: Path

    def __call__(self, preset: str) -> Policy:
        (self.folder / 'policies').write_text(str(os.getpid()))
        return FakePolicy(preset)


def grid(states: int) -> list[EpisodeSpec]:
    return [
        EpisodeSpec('libero_object', 0, state, arm)
        for state in range(states)
        for arm in ('off', 'safe')
    ]


def episodes_of(folder: Path) -> list[tuple[int, int]]:
    """(process, initial state) of the episodes begun so far."""
    with contextlib.suppress(FileNotFoundError):
        lines = (folder / 'episodes').read_text().splitlines()
        return [(int(pid), int(state)) for pid, state in map(str.split, lines)]
    return []


def check(rows: list[EpisodeRow], specs: list[EpisodeSpec]) -> None:
    """Nothing lost, nothing double, everything judged as the fakes have it."""
    assert sorted(map(str, (row.spec for row in rows))) == sorted(map(str, specs))
    for row in rows:
        assert row.outcome == ('success' if row.spec.init_state % 3 else 'failure'), row.note
        assert row.summary.modes == (
            {'dense': row.summary.policy_steps}
            if row.spec.arm == 'off'
            else {'keyframe': 1, 'cached': row.summary.policy_steps - 1}
        )


def run_and_kill(
    job: Job, specs: list[EpisodeSpec], victim: Callable[[], int]
) -> tuple[list[EpisodeRow], RayCrew]:
    """Run the episodes; at the third row, kill a process while episodes run."""
    crew = RayCrew('local', WORKERS)
    rows = []
    for row in crew.run(job, specs):
        rows.append(row)
        if len(rows) == 3:
            time.sleep(0.2)  # the workers are in their next episodes
            os.kill(victim(), signal.SIGKILL)
    return rows, crew


def test_a_worker_killed_in_mid_run_is_replaced_and_its_episode_is_run_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    specs = grid(6)
    job = Job(FakePolicies(), SlowEnvs(tmp_path))
    killed: list[tuple[int, int]] = []

    def newest_worker() -> int:
        killed.append(episodes_of(tmp_path)[-1])
        return killed[0][0]

    rows, crew = run_and_kill(job, specs, newest_worker)
    check(rows, specs)
    begun = episodes_of(tmp_path)
    assert len(begun) == len(specs) + 1
    (pid, state) = killed[0]
    again = [other for other, own in begun[begun.index((pid, state)) + 1 :] if own == state]
    assert again, 'the episode was not run again'
    assert pid not in {other for other, _ in begun[-2:]}
    assert crew.statistics is not None
    assert crew.statistics.failures == 0
    assert len(crew.reruns) == 1
    assert 'the worker died' in crew.reruns[0]
    assert capfd.readouterr().out == ''  # Ray reports deaths there unless told not to


def test_a_policy_server_killed_in_mid_run_is_started_again_with_its_episodes(
    tmp_path: Path,
) -> None:
    specs = grid(4)
    job = Job(PoliciesWithPid(tmp_path), SlowEnvs(tmp_path))
    first: list[int] = []

    def server() -> int:
        first.append(int((tmp_path / 'policies').read_text()))
        return first[0]

    rows, _ = run_and_kill(job, specs, server)
    check(rows, specs)
    assert int((tmp_path / 'policies').read_text()) != first[0]
    assert len(episodes_of(tmp_path)) > len(specs)


def test_a_simulator_that_hangs_is_killed_and_reported_as_such() -> None:
    specs = [EpisodeSpec('libero_object', 0, state, 'off') for state in range(3)]
    rows = list(RayCrew('local', WORKERS, 2.0).run(Job(FakePolicies(), HangingEnv), specs))
    outcomes = {row.spec.init_state: row.outcome for row in rows}
    assert outcomes == {0: 'failure', 1: 'simulator_error', 2: 'success'}
    (note,) = (row.note for row in rows if not row.judged)
    assert note == 'advance did not return within 2 s; the worker was killed'


def test_a_policy_that_raises_ends_the_run_with_its_traceback(tmp_path: Path) -> None:
    crew = RayCrew('local', 1)
    with pytest.raises(EvaluationError, match='the policy has a bug'):
        list(crew.run(Job(FakePolicies('raises'), SlowEnvs(tmp_path)), grid(1)))
