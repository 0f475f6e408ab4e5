from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from cli_fakes import FakeEnvs, FakePolicies
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_cache_ros.core.errors import ConfigError, EvaluationError, UnknownNameError
from vla_cache_ros.evaluation.crew import InlineCrew, LocalCrew
from vla_cache_ros.evaluation.episode import EpisodeRow, EpisodeSpec
from vla_cache_ros.evaluation.evaluate import evaluate, running_order
from vla_cache_ros.evaluation.runner import Job
from vla_cache_ros.evaluation.store import EpisodeStore

SPECS = [
    EpisodeSpec('libero_object', task, init_state, arm)
    for arm in ('off', 'safe')
    for task in (1, 0)
    for init_state in range(3)
]


def job(env_fault: str = '', policy_fault: str = '', once=None) -> Job:
    return Job(FakePolicies(policy_fault), FakeEnvs(env_fault, once))


def run(folder, the_job=None, specs=SPECS, crew=None, **options) -> list[EpisodeRow]:
    with EpisodeStore.open(folder) as store:
        return evaluate(the_job or job(), specs, crew or InlineCrew(), store, **options)


def test_rows_come_in_the_order_asked_for_and_bear_their_fingerprint(tmp_path):
    rows = run(tmp_path, fingerprints={'off': 'aaa', 'safe': 'bbb'})
    assert [row.spec for row in rows] == SPECS
    assert [row.success for row in rows] == [spec.init_state != 0 for spec in SPECS]
    assert {row.spec.arm: row.fingerprint for row in rows} == {'off': 'aaa', 'safe': 'bbb'}
    with EpisodeStore.read(tmp_path) as store:
        assert store.rows(SPECS) == rows


def test_arms_of_one_start_run_side_by_side():
    order = running_order([*SPECS, SPECS[0]])
    assert Counter(order) == Counter(SPECS)
    assert [spec.task for spec in order] == [1] * 6 + [0] * 6
    for dense, cached in zip(order[::2], order[1::2], strict=True):
        assert (dense.arm, cached.arm) == ('off', 'safe')
        assert (dense.task, dense.init_state) == (cached.task, cached.init_state)


def test_finished_episodes_never_run_twice_and_a_folder_can_be_extended(tmp_path):
    first, more, again = [], [], []
    run(tmp_path, specs=SPECS[:4], on_row=first.append)
    rows = run(tmp_path, on_row=more.append)
    assert {row.spec for row in more} == set(SPECS[4:])
    assert rows == run(tmp_path, on_row=again.append)
    assert again == []


def test_a_simulators_failure_is_tried_again_and_not_the_policys(tmp_path):
    specs = [EpisodeSpec('libero_object', 0, i) for i in range(4)]
    new = []
    rows = run(tmp_path, job('raises'), specs, on_row=new.append)
    assert [row.outcome for row in rows] == ['failure', 'simulator_error', 'success', 'failure']
    assert 'has a bug' in rows[1].note
    assert Counter(row.spec.init_state for row in new) == {0: 1, 1: 2, 2: 1, 3: 1}

    with EpisodeStore.open(tmp_path) as store:
        assert len(store.attempts()) == 2
        rows = evaluate(job(), specs, InlineCrew(), store)
    assert [row.outcome for row in rows] == ['failure', 'success', 'success', 'failure']


@pytest.mark.parametrize('fault', ['raises', 'dies', 'hangs'])
def test_a_simulator_that_fails_once_costs_nothing(tmp_path, fault):
    crew = LocalCrew(1, step_timeout_s=0.5)
    rows = run(tmp_path, job(fault, once=tmp_path / 'struck'), SPECS[:3], crew)
    assert [row.outcome for row in rows] == ['failure', 'success', 'success']
    with EpisodeStore.read(tmp_path) as store:
        assert [attempt.spec for attempt in store.attempts()] == [SPECS[1]]


def test_a_broken_simulator_stops_the_evaluation(tmp_path):
    with pytest.raises(EvaluationError, match=r'3 different episodes in a row.*never works'):
        run(tmp_path, job('broken'))
    with EpisodeStore.read(tmp_path) as store:
        assert len(store.attempts()) == 3


def test_the_same_episode_failing_again_is_not_taken_for_a_broken_simulator(tmp_path):
    specs = [EpisodeSpec('libero_object', task, i) for task in range(4) for i in range(2)]
    rows = run(tmp_path, job('raises'), specs, max_attempts=3)
    assert [row.judged for row in rows] == [True, False] * 4


@pytest.mark.parametrize('crew', [InlineCrew(), LocalCrew(1)])
def test_a_policys_bug_is_shown_and_not_counted(tmp_path, crew):
    with pytest.raises((EvaluationError, RuntimeError), match='the policy has a bug'):
        run(tmp_path, job(policy_fault='raises'), crew=crew)
    with EpisodeStore.read(tmp_path) as store:
        assert store.rows() == []
        assert store.attempts() == []


def test_nonsense_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(UnknownNameError, match='unknown arm'):
        run(tmp_path, specs=[EpisodeSpec('libero_object', 0, 0, 'sage')])
    with pytest.raises(ConfigError, match='max_attempts'):
        run(tmp_path, max_attempts=0)


@dataclass
class ScriptedCrew:
    """Does with each episode what the script says: 'judge', 'fail' or 'stop'."""

    script: Iterator[str]
    judged: list[EpisodeSpec] = field(default_factory=list)

    def run(self, the_job: Job, specs: Sequence[EpisodeSpec]):
        for spec in specs:
            action = next(self.script, 'judge')
            if action == 'stop':
                raise KeyboardInterrupt
            if action == 'judge':
                self.judged.append(spec)
            yield EpisodeRow(spec, 'success' if action == 'judge' else 'simulator_error')


@settings(max_examples=30)
@given(
    st.lists(st.sampled_from(['judge', 'judge', 'fail', 'stop']), max_size=30),
    st.permutations(SPECS),
)
def test_any_interleaving_of_stops_ends_with_every_episode_once(tmp_path_factory, script, specs):
    folder = tmp_path_factory.mktemp('store')
    crew = ScriptedCrew(iter(script))
    rows: list[EpisodeRow] = []
    for _ in range(len(script) + 1):
        try:
            rows = run(folder, specs=specs, crew=crew)
        except (KeyboardInterrupt, EvaluationError):
            continue
        if all(row.judged for row in rows):
            break
    assert [row.spec for row in rows] == specs
    assert Counter(crew.judged) == Counter(SPECS)
    with EpisodeStore.read(folder) as store:
        assert Counter(row.spec for row in store.rows()) == Counter(SPECS)
        assert len(store.attempts()) == script_failures(script, crew)


def script_failures(script: list[str], crew: ScriptedCrew) -> int:
    """How many failures were played; the rest of the script was not reached."""
    left = list(crew.script)
    return script[: len(script) - len(left)].count('fail')
