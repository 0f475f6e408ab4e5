import pytest
from cli_fakes import FakeEnv, FakeEnvs, FakePolicies, FakePolicy

from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.evaluation.episode import EpisodeSpec
from vla_cache_ros.evaluation.runner import EpisodeRunner, Job


class Workshop:
    """Counts what is built."""

    def __init__(self, fault: str = '') -> None:
        self.fault = fault
        self.policies: list[str] = []
        self.envs: list[FakeEnv] = []

    def policy(self, preset: str) -> FakePolicy:
        self.policies.append(preset)
        return FakePolicy(preset)

    def env(self, suite: str, task: int, image_size_px: int) -> FakeEnv:
        self.envs.append(FakeEnv(suite, task, image_size_px, self.fault))
        return self.envs[-1]

    def runner(self, divergence: bool = True) -> EpisodeRunner:
        return EpisodeRunner(Job(self.policy, self.env, divergence))


def test_policies_and_the_simulator_are_built_once():
    workshop = Workshop()
    runner = workshop.runner()
    for task in (0, 1):
        for arm in ('off', 'safe', 'safe@2'):
            assert runner.run(EpisodeSpec('libero_object', task, 1, arm)).success
    assert workshop.policies == ['off', 'safe']
    assert len(workshop.envs) == 1
    runner.run(EpisodeSpec('libero_goal', 0, 1))
    assert [env.closed for env in workshop.envs] == [True, False]
    runner.close()
    assert workshop.envs[1].closed


def test_only_arms_with_reuse_are_compared_with_the_dense_policy():
    spec = EpisodeSpec('libero_object', 0, 1, 'safe')
    assert Workshop().runner().run(spec).summary.divergence_mean == 0.0
    workshop = Workshop()
    assert workshop.runner(divergence=False).run(spec).summary.divergence_mean is None
    assert workshop.policies == ['safe']


def test_a_failed_simulator_is_replaced():
    workshop = Workshop(fault='raises')
    runner = workshop.runner()
    rows = [runner.run(EpisodeSpec('libero_object', 0, i)) for i in range(3)]
    assert [row.outcome for row in rows] == ['failure', 'simulator_error', 'success']
    assert 'the simulator has a bug' in rows[1].note
    assert [env.closed for env in workshop.envs] == [True, False]


def test_a_simulator_that_cannot_be_built_is_no_failure_of_the_policy():
    runner = EpisodeRunner(Job(FakePolicies(), FakeEnvs('unbuildable')))
    row = runner.run(EpisodeSpec('libero_object', 0, 0))
    assert row.outcome == 'simulator_error'
    assert row.note == 'make failed: OSError: no such asset'


def test_bad_input_is_no_simulators_error():
    def refuse(suite: str, task: int, image_size_px: int) -> FakeEnv:
        raise ConfigError('no such suite')

    runner = EpisodeRunner(Job(FakePolicies(), refuse))
    with pytest.raises(ConfigError, match='no such suite'):
        runner.run(EpisodeSpec('libero_object', 0, 0))
