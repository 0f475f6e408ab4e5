import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from vla_cache_ros.core.errors import ConfigError, SimulatorError
from vla_cache_ros.evaluation.environment import Environment
from vla_cache_sim.remote.client import RemoteEnvironment, Timeouts
from vla_cache_sim.remote.process import python_worker
from vla_cache_sim.remote.server import Message

FACTORY = f'{Path(__file__).parent / "fake_factory.py"}:make'
ACTION = np.linspace(-1, 1, 7)


def start(timeouts: Timeouts | None = None, **arguments: Any) -> RemoteEnvironment:
    command = python_worker(sys.executable, FACTORY)
    return RemoteEnvironment(command, arguments, timeouts=timeouts, hint='do this')


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_an_episode_runs_as_in_the_same_process():
    env = start(image_size_px=16)
    standing: Environment = env  # the seam of the evaluation
    assert standing.control_frequency_hz == 20
    observation, info = env.reset(seed=4, options={'task': 2, 'init_state': 0})
    assert env.observation_space.contains(observation)
    assert np.array_equal(observation['agentview'][-1, 0], [0, 1, 2])
    assert info == {
        'instruction': 'do task 2 with seed 4',
        'episode': 3,
        'path': "<class 'object'>",
        'loss': None,
    }
    ends = [env.advance(ACTION)[:3] for _ in range(5)]
    assert ends == [
        (0.5, False, False),
        (0.5, False, False),
        (0.5, True, False),
        (0.5, False, False),
        (0.5, False, True),
    ]
    observation = env.observe()
    assert observation['ee_position_m'] == pytest.approx(ACTION[:3])
    assert (observation['wrist'] == 5).all()
    pid = env.pid
    env.close()
    env.close()
    assert gone(pid)
    with pytest.raises(SimulatorError, match='was closed'):
        env.reset()


def test_the_spaces_are_the_workers():
    env = start()
    assert env.action_space.shape == (7,)
    assert env.cameras == ('agentview', 'wrist')
    position = env.observation_space['ee_position_m']
    assert isinstance(position, spaces.Box)
    assert position.high.tolist() == [1, 2, 3]
    assert np.isneginf(position.low).all()
    assert env.worker.startswith('Python 3')
    env.close()


@pytest.mark.parametrize(
    ('behaviour', 'complaint'),
    [
        ('crashes', r"died of SIGSEGV during 'advance'; its last lines:\n.*fault ahead"),
        ('exits', "died with exit code 7 during 'advance'"),
        ('floods stderr and exits', '(?s)exit code 1 .*the last word'),
    ],
)
def test_a_worker_that_dies_is_a_simulator_error_with_its_last_lines(
    behaviour: str, complaint: str
):
    env = start(behaviour=behaviour)
    env.reset()
    with pytest.raises(SimulatorError, match='(?s)' + complaint) as raised:
        env.advance(ACTION)
    assert 'do this' not in str(raised.value)  # it had started
    with pytest.raises(SimulatorError, match='died'):
        env.reset()
    env.close()


def test_a_worker_that_hangs_is_killed_and_shows_its_last_lines():
    env = start(Timeouts(advance_s=0.5), behaviour='hangs')
    env.reset()
    pid, begin = env.pid, time.monotonic()
    with pytest.raises(SimulatorError, match=r"'advance' within 0.5 s and was killed(?s:.*)lock"):
        env.advance(ACTION)
    assert time.monotonic() - begin < 20  # not the minute that it would sleep
    assert gone(pid)
    env.close()


@pytest.mark.parametrize('behaviour', ['floods stderr', 'reads stdin'])
def test_what_a_simulator_prints_and_reads_does_not_touch_the_protocol(behaviour: str):
    env = start(behaviour=behaviour)
    env.reset()
    assert env.advance(ACTION)[3]['steps'] == 1
    env.close()


def test_what_a_simulator_raises_arrives_with_its_traceback_and_the_worker_lives_on():
    env = start(behaviour='raises')
    env.reset()
    with pytest.raises(SimulatorError, match=r'(?s)ZeroDivisionError: the solver.*Traceback'):
        env.advance(ACTION)
    assert env.reset()[1]['episode'] == 3
    env.close()


def test_an_observation_that_cannot_travel_is_a_simulator_error():
    env = start(behaviour='observes objects')
    with pytest.raises(SimulatorError, match='elements object'):
        env.reset()
    env.close()


def test_a_refused_option_is_a_configuration_error():
    env = start()
    with pytest.raises(ConfigError, match="unknown reset option 'unknown'; valid: task"):
        env.reset(options={'unknown': 1})
    with pytest.raises(ConfigError, match='cannot be sent'):
        env.reset(options={'task': object()})
    env.close()


@pytest.mark.parametrize('action', [np.zeros(6), np.full(7, np.nan), np.zeros((1, 7))])
def test_an_invalid_action_is_a_configuration_error(action: np.ndarray):
    env = start()
    env.reset()
    with pytest.raises(ConfigError, match='finite numbers of shape'):
        env.advance(action)
    env.close()


def test_a_simulator_that_cannot_be_built_is_a_simulator_error():
    with pytest.raises(SimulatorError, match='no assets here'):
        start(behaviour='fails to build')


@pytest.mark.parametrize(
    ('command', 'complaint'),
    [
        (['/no/such/python'], 'cannot start /no/such/python'),
        (['/bin/sh', '-c', 'echo not here >&2; exit 3'], r'exit code 3 (?s:.*)not here'),
        (
            ['/bin/sh', '-c', 'echo a banner on its pipe; cat > /dev/null'],
            'does not keep to the protocol',
        ),
        (['/bin/cat'], "answered None number 1 to 'hello' number 1"),
        (['/bin/sleep', '60'], 'within 0.3 s and was killed'),
    ],
)
def test_a_program_that_is_no_worker_is_a_simulator_error(command: list[str], complaint: str):
    timeouts = Timeouts(hello_s=0.3 if command[0] == '/bin/sleep' else 30)
    with pytest.raises(SimulatorError, match=complaint) as raised:
        RemoteEnvironment(command, {}, hint='do this', timeouts=timeouts)
    assert 'do this' in str(raised.value) or command == ['/bin/cat']


def test_a_call_that_was_interrupted_ends_the_worker_with_the_next_one():
    env = start(behaviour='hangs')
    env.reset()
    # What a Ctrl-C leaves behind: a request whose answer nobody read.
    exchange = env._process.exchange

    def interrupt(message: Message, timeout_s: float) -> Message:
        env._calls += 1
        return exchange(message, timeout_s)

    env._process.exchange = interrupt  # type: ignore[method-assign]
    with pytest.raises(SimulatorError, match="answered 'observe' number .* and was killed"):
        env.observe()
    assert gone(env.pid)
    env.close()


def test_big_images_and_empty_arrays_travel():
    env = start(image_size_px=2048, wrist_shape=[0, 5, 3])
    observation, _ = env.reset()
    assert observation['agentview'].shape == (2048, 2048, 3)
    assert observation['wrist'].shape == (0, 5, 3)
    observation['agentview'][:] = 0  # the receiver's own
    env.close()


def test_a_collected_environment_takes_its_worker_along():
    env = start()
    pid = env.pid
    del env
    assert gone(pid)


def test_the_workers_python_sees_none_of_this_environments_paths(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv('PYTHONPATH', str(Path(__file__).parent))
    with pytest.raises(SimulatorError, match="No module named 'fake_factory'"):
        RemoteEnvironment(python_worker(sys.executable, 'fake_factory:make'), {})
