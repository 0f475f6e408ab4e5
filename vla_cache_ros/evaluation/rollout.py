"""One episode of a policy in a simulator, without ROS.

The simulator advances the arm's number of actions of each chunk and renders only the frames that
the policy reads.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from vla_cache_ros.core.errors import ConfigError, SimulatorError
from vla_cache_ros.core.protocols import Policy
from vla_cache_ros.core.shadow import compare_actions
from vla_cache_ros.core.types import Observation, Proprioception
from vla_cache_ros.evaluation.arms import parse_arm
from vla_cache_ros.evaluation.environment import Environment
from vla_cache_ros.evaluation.episode import (
    UNDISTURBED,
    EpisodeRow,
    EpisodeSpec,
    PolicyStep,
)


def run_episode(
    env: Environment,
    policy: Policy,
    spec: EpisodeSpec,
    dense: Policy | None = None,
    on_call: Callable[[str], None] | None = None,
) -> EpisodeRow:
    """Run one episode to its success, its step limit or an invalid action.

    Args:
        env: The simulator.
        policy: The policy, built with the preset of the spec's arm; it is reset first.
        spec: The episode.
        dense: The same policy without reuse. It computes a chunk of its own for every observation,
            unseen by the simulator and outside all times, so that the divergence is known.
        on_call: Called with the name of each call of the simulator when it begins ('reset',
            'advance', 'observe') and with '' when it has returned; a watchdog listens.

    Returns:
        The row. An action that is not finite ends the episode as a failure, with a note.

    Raises:
        SimulatorError: The simulator failed; the episode says nothing about the policy.
    """
    execute_steps = parse_arm(spec.arm).execute_steps or default_execute_steps(policy)
    watch = _Stopwatch(on_call)
    trace: list[PolicyStep] = []
    steps, outcome, note = 0, '', ''

    with watch.simulator('reset'):
        observed, info = env.reset(seed=spec.seed, options=reset_options(spec))
        period_ns = round(1e9 / env.control_frequency_hz)
    for each in filter(None, (policy, dense)):
        each.reset('episode start')
    while not outcome:
        observation = to_observation(
            observed, policy.camera_names, info['instruction'], steps * period_ns
        )
        with watch.policy():
            chunk = policy.act(observation)
        actions = chunk.actions[:execute_steps]
        if chunk.report is not None:
            divergence = None
            if dense is not None:
                with watch.policy():
                    divergence = compare_actions(actions, dense.act(observation).actions)
            trace.append(PolicyStep.of(chunk.report, steps, divergence))
        if not np.isfinite(chunk.actions).all():
            outcome, note = 'failure', f'the chunk at step {steps} holds NaN or infinity'
            break
        for action in actions:
            with watch.simulator('advance'):
                _, success, truncated, info = env.advance(action)
            steps += 1
            if success or truncated:
                outcome = 'success' if success else 'failure'
                break
        else:
            with watch.simulator('observe'):
                observed = env.observe()

    return EpisodeRow(
        spec,
        outcome,
        steps=steps,
        wall_s=watch.wall_s,
        overhead_ms=1e3 * watch.overhead_s / max(1, steps),
        trace=tuple(trace),
        note=note,
    )


def reset_options(spec: EpisodeSpec) -> dict[str, object]:
    """What the environment's reset is told of an episode."""
    options: dict[str, object] = {'task': spec.task, 'init_state': spec.init_state}
    if spec.condition != UNDISTURBED:
        options['condition'] = spec.condition
    return options


def to_observation(
    observed: Mapping[str, np.ndarray],
    camera_names: Sequence[str],
    instruction: str,
    stamp_ns: int,
) -> Observation:
    """Turn an environment's observation into a policy's.

    Raises:
        ConfigError: The simulator has no such camera.
    """
    if missing := [name for name in camera_names if name not in observed]:
        raise ConfigError(
            f'the policy wants the cameras {", ".join(camera_names)}; the simulator has no '
            f'{", ".join(missing)}, only {", ".join(observed)}.'
        )
    return Observation(
        images={name: observed[name] for name in camera_names},
        proprioception=Proprioception(
            observed['ee_position_m'],
            observed['ee_quaternion_xyzw'],
            observed['gripper_position_m'],
        ),
        instruction=instruction,
        stamp_ns=stamp_ns,
    )


def default_execute_steps(policy: Policy) -> int:
    """Actions executed of each chunk: what the policy says, else half of its chunk."""
    return int(getattr(policy, 'execute_steps', max(1, policy.chunk_size // 2)))


class _Stopwatch:
    """Tells the time of the harness from that of the policy and of the simulator."""

    def __init__(self, on_call: Callable[[str], None] | None) -> None:
        self._on_call = on_call or (lambda call: None)
        self._begin = time.perf_counter()
        self._elsewhere_s = 0.0

    @property
    def wall_s(self) -> float:
        return time.perf_counter() - self._begin

    @property
    def overhead_s(self) -> float:
        return self.wall_s - self._elsewhere_s

    @contextlib.contextmanager
    def policy(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._elsewhere_s += time.perf_counter() - begin

    @contextlib.contextmanager
    def simulator(self, call: str) -> Iterator[None]:
        """Blame the simulator for whatever is raised inside, configuration errors excepted."""
        begin = time.perf_counter()
        self._on_call(call)
        try:
            yield
        except (ConfigError, SimulatorError):
            raise
        except Exception as error:  # a simulator raises anything; none of it is the policy's
            raise SimulatorError(f'{call} failed: {type(error).__name__}: {error}') from error
        finally:
            self._on_call('')
            self._elsewhere_s += time.perf_counter() - begin
