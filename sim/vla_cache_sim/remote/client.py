"""An environment whose simulator runs in a process and a Python environment of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

from vla_cache_ros.core.errors import ConfigError, SimulatorError
from vla_cache_sim.remote.process import WorkerProcess
from vla_cache_sim.remote.server import PROTOCOL, Arrays, FrameError, Message

__all__ = ['RemoteEnvironment', 'Timeouts']


@dataclass(frozen=True)
class Timeouts:
    """Seconds that a worker may take for each call; one that takes longer is killed."""

    hello_s: float = 300.0
    """Imports, and building the simulator."""
    reset_s: float = 300.0
    advance_s: float = 60.0
    observe_s: float = 60.0
    close_s: float = 10.0


class RemoteEnvironment(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """The client of a worker that keeps to docs/remote_environments.md.

    Every call is answered before it returns, so that an episode is the same one as in the
    worker's own process. A worker that raises, dies, hangs or breaks the protocol is a
    SimulatorError; after the last three the environment is of no more use.
    """

    metadata: ClassVar[dict[str, Any]] = {'render_modes': []}

    def __init__(
        self,
        command: Sequence[str],
        arguments: Mapping[str, Any],
        *,
        environ: Mapping[str, str] | None = None,
        timeouts: Timeouts | None = None,
        hint: str = '',
    ) -> None:
        """Start the worker and have it build its simulator.

        Args:
            command: The worker's program and arguments; `python_worker` makes a Python worker's.
            arguments: What the worker builds its simulator from; JSON.
            environ: Environment variables set for it besides this process's.
            timeouts: How long its calls may take.
            hint: What to do where the worker cannot be started.

        Raises:
            ConfigError: The worker refuses the arguments.
            SimulatorError: It cannot be started, speaks another protocol, or fails.
        """
        self._timeouts = timeouts or Timeouts()
        self._calls = 0
        self._process = WorkerProcess(command, environ, hint)
        try:
            header, _ = self._call('hello', protocol=PROTOCOL, arguments=dict(arguments))
            self._introduce(header)
        except BaseException:
            self._process.close(0.0)
            raise

    @property
    def instruction(self) -> str:
        """The present task in words."""
        return self._instruction

    @property
    def control_frequency_hz(self) -> float:
        """Actions per second of simulated time."""
        return self._control_frequency_hz

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    @property
    def scene(self) -> 'RemoteEnvironment':
        """What tells the robot's state: this environment itself, by its `proprioception`."""
        return self

    def proprioception(self) -> dict[str, np.ndarray]:
        """The present observation without its images; the worker renders them all the same."""
        observation = self.observe()
        return {key: observation[key] for key in observation if key not in self.cameras}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode; the worker knows the options.

        Raises:
            ConfigError: The worker refuses the options.
            SimulatorError: The simulator failed.
        """
        super().reset(seed=seed)
        header, observation = self._call('reset', seed=seed, options=dict(options or {}))
        return observation, self._follow(header)

    def advance(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        """Advance one control step without fetching images.

        Args:
            action: Finite numbers in the shape of the action space.

        Returns:
            (reward, terminated, truncated, info).

        Raises:
            ConfigError: Wrong shape or a value that is not finite.
            SimulatorError: The simulator failed.
        """
        action = np.asarray(action, dtype=np.float64)
        shape = self.action_space.shape
        if action.shape != shape or not np.isfinite(action).all():
            raise ConfigError(f'an action is finite numbers of shape {shape}; got {action!r}')
        header, _ = self._call('advance', {'action': action})
        info = self._follow(header)
        try:
            reward = float(header['reward'])
            return reward, bool(header['success']), bool(header['truncated']), info
        except (KeyError, TypeError, ValueError) as error:
            raise self._incomplete('advance', error) from error

    def observe(self) -> dict[str, np.ndarray]:
        """Fetch the present observation."""
        return self._call('observe').arrays

    def step(
        self, action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Advance one control step and observe."""
        reward, terminated, truncated, info = self.advance(action)
        return self.observe(), reward, terminated, truncated, info

    def close(self) -> None:
        """End the worker; may be repeated."""
        try:
            self._call('close')
        except SimulatorError:  # it has ended already
            pass
        finally:
            self._process.close(self._timeouts.close_s)

    def _call(self, call: str, arrays: Arrays | None = None, **fields: Any) -> Message:
        """Carry one call out; what the worker reports as an error is raised."""
        self._calls += 1
        request = {'id': self._calls, 'call': call, **fields}
        try:
            answer = self._process.exchange(
                Message(request, arrays or {}), getattr(self._timeouts, f'{call}_s')
            )
        except FrameError as error:  # nothing was sent
            raise ConfigError(f'{call} cannot be sent to the simulator: {error}') from error
        header = answer.header
        if 'error' in header:
            raise _as_error(call, header['error'])
        if header.get('id') != self._calls or header.get('reply') != call:
            raise self._process.end(
                f'answered {header.get("reply")!r} number {header.get("id")!r} to {call!r} '
                f'number {self._calls} and was killed'
            )
        return answer

    def _introduce(self, header: Mapping[str, Any]) -> None:
        """Take over what the worker says of itself."""
        try:
            if header['protocol'] != PROTOCOL:
                raise SimulatorError(
                    f'the worker speaks protocol {header["protocol"]}, not {PROTOCOL}'
                )
            self.worker = str(header.get('worker', ''))
            self.cameras = tuple(map(str, header['cameras']))
            self._instruction = str(header['instruction'])
            self._control_frequency_hz = float(header['control_frequency_hz'])
            described = header['spaces']
            self.action_space = _box(described['action'])
            self.observation_space: spaces.Dict = spaces.Dict(
                {name: _box(each) for name, each in described['observation'].items()}
            )
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise self._incomplete('hello', error) from error

    def _follow(self, header: Mapping[str, Any]) -> dict[str, Any]:
        """Take the instruction over, which may change with every call, and return the info."""
        self._instruction = str(header.get('instruction', self._instruction))
        return {**header.get('info', {}), 'instruction': self._instruction}

    def _incomplete(self, call: str, error: Exception) -> SimulatorError:
        return SimulatorError(
            f"the worker's answer to {call!r} is incomplete: {type(error).__name__}: {error}; "
            'docs/remote_environments.md says what belongs into it'
        )


def _box(described: Mapping[str, Any]) -> spaces.Box:
    """A space from its description; null bounds are infinite."""
    dtype = np.dtype(described['dtype'])
    shape = tuple(map(int, described['shape']))
    low, high = (
        np.full(shape, infinity if described[bound] is None else described[bound], dtype)
        for bound, infinity in (('low', -np.inf), ('high', np.inf))
    )
    return spaces.Box(low, high, shape, dtype.type)


def _as_error(call: str, error: Any) -> Exception:
    """The exception for an error that the worker reports."""
    error = error if isinstance(error, dict) else {'message': repr(error)}
    if error.get('kind') == 'config':
        return ConfigError(str(error.get('message')))
    said = f'{error.get("type", "error")}: {error.get("message")}'
    trace = error.get('traceback', '')
    return SimulatorError(f'{call} failed in the simulator process: {said}\n{trace}'.rstrip())
