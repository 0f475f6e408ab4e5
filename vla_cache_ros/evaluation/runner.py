"""Runs episodes one after another in one process, keeping policies and the simulator."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from vla_cache_ros.core.errors import SimulatorError, VlaCacheError
from vla_cache_ros.core.protocols import Policy
from vla_cache_ros.evaluation.arms import parse_arm
from vla_cache_ros.evaluation.environment import Environment, EnvironmentFactory, PolicyFactory
from vla_cache_ros.evaluation.episode import EpisodeRow, EpisodeSpec
from vla_cache_ros.evaluation.rollout import run_episode


@dataclass(frozen=True)
class Job:
    """What a worker needs to know besides the episodes; travels to it once.

    Attributes:
        policy_factory: Builds the policy of a preset; called once per preset and worker.
        make_env: Builds the simulator of a suite.
        divergence: Whether cached arms are compared with the dense policy at every step.
    """

    policy_factory: PolicyFactory
    make_env: EnvironmentFactory
    divergence: bool = True


class EpisodeRunner:
    """What every worker does, wherever it runs."""

    def __init__(self, job: Job, on_call: Callable[[str], None] | None = None) -> None:
        """Build nothing yet: policies and simulators come with the first episode of their kind.

        Args:
            job: What to run with.
            on_call: Called with the name of each call of the simulator ('make' and those of
                `run_episode`) when it begins, and with '' when it has returned.
        """
        self._job = job
        self._on_call = on_call or (lambda call: None)
        self._policies: dict[str, Policy] = {}
        self._env: Environment | None = None
        self._env_key: tuple[str, int] | None = None

    def run(self, spec: EpisodeSpec) -> EpisodeRow:
        """Run one episode; a simulator's failure is a row, too, and ends the simulator."""
        preset = parse_arm(spec.arm).preset
        policy = self._policy(preset)
        compares = self._job.divergence and preset != 'off'
        try:
            env = self._environment(spec, policy.image_size_px)
            dense = self._policy('off') if compares else None
            return run_episode(env, policy, spec, dense, self._on_call)
        except SimulatorError as error:
            with contextlib.suppress(Exception):  # it is broken; the next episode gets a new one
                self.close()
            return failed_row(spec, str(error))

    def close(self) -> None:
        """Free the simulator."""
        env, self._env, self._env_key = self._env, None, None
        if env is not None:
            env.close()

    def _policy(self, preset: str) -> Policy:
        if preset not in self._policies:
            self._policies[preset] = self._job.policy_factory(preset)
        return self._policies[preset]

    def _environment(self, spec: EpisodeSpec, image_size_px: int) -> Environment:
        key = (spec.suite, image_size_px)
        if self._env is None or key != self._env_key:
            self.close()
            self._env = self._make(spec, image_size_px)
            self._env_key = key
        return self._env

    def _make(self, spec: EpisodeSpec, image_size_px: int) -> Environment:
        self._on_call('make')
        try:
            return self._job.make_env(spec.suite, spec.task, image_size_px)
        except VlaCacheError:
            raise
        except Exception as error:  # a simulator raises anything; none of it is the policy's
            raise SimulatorError(f'make failed: {type(error).__name__}: {error}') from error
        finally:
            self._on_call('')


def failed_row(spec: EpisodeSpec, note: str) -> EpisodeRow:
    """The row of an episode whose simulator failed."""
    return EpisodeRow(spec, 'simulator_error', note=note)
