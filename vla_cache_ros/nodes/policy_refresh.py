"""One refresh of the policy, in the inference thread: observation, step, chunk, deadline."""

import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from vla_cache_interfaces.msg import ActionChunk as ActionChunkMessage

from vla_cache_ros.core.commitment import committed_actions
from vla_cache_ros.core.deadline import DeadlineConfig, ExpectedRefresh, ReusePressure
from vla_cache_ros.core.errors import InstructionError, ObservationError
from vla_cache_ros.core.frame_watch import FrameLimits
from vla_cache_ros.core.gripper import GripperMap
from vla_cache_ros.core.protocols import Policy, ReuseControl
from vla_cache_ros.core.types import ActionChunk, Observation
from vla_cache_ros.nodes.chunk_messages import message_to_chunk
from vla_cache_ros.nodes.conversions import stamp_to_ns
from vla_cache_ros.nodes.observation_builder import ObservationBuilder
from vla_cache_ros.nodes.parameter_tables.policy_node import PolicyParameters
from vla_cache_ros.nodes.policy_requests import RefusedError, Request
from vla_cache_ros.nodes.step_messages import StepTimes


@dataclass(frozen=True)
class Refresh:
    """A chunk and how it came about.

    Attributes:
        observation: What it was computed from.
        chunk: The chunk, finite, with its instruction.
        started_ns, finished_ns: CLOCK_MONOTONIC.
    """

    observation: Observation
    chunk: ActionChunk
    started_ns: int
    finished_ns: int

    @property
    def inference_ms(self) -> float:
        """Time of the policy step, milliseconds."""
        return (self.finished_ns - self.started_ns) / 1e6


class Refresher:
    """Runs policy steps and watches their deadline."""

    def __init__(self, policy: Policy, parameters: PolicyParameters) -> None:
        """Prepare.

        Raises:
            ConfigError: The gripper's parameters contradict one another.
        """
        self._policy = policy
        self._builder = ObservationBuilder(
            policy.camera_names,
            GripperMap(
                parameters.gripper_joint_names,
                parameters.gripper_open_position,
                parameters.gripper_closed_position,
            ),
            FrameLimits(
                round(parameters.frozen_image_timeout_s * 1e9), parameters.black_image_contrast
            ),
        )
        self._pressure = ReusePressure(DeadlineConfig(parameters.refresh_deadline_ms))
        self._from_stamp = parameters.refresh_deadline_from == 'stamp'
        self._expected = ExpectedRefresh()
        self._committed: tuple[ActionChunk, int, int] | None = None  # first due, period

    def commit(self, message: ActionChunkMessage) -> None:
        """Take note of what the guard will run next; any thread.

        Raises:
            ObservationError: The message is no chunk.
        """
        chunk = message_to_chunk(message)
        period_ns = round(1e9 / message.control_frequency_hz) if len(chunk.actions) else 0
        self._committed = (chunk, stamp_to_ns(message.header.stamp), period_ns)

    def observe(self, request: Request) -> tuple[Observation, str]:
        """Build the observation.

        Returns:
            The observation, and the camera whose resolution has changed; empty: none.

        Raises:
            RefusedError: It cannot be used.
        """
        try:
            observation = self._builder.build(request, self._running_meanwhile(request))
        except ObservationError as error:
            raise RefusedError('bad_observation', str(error)) from error
        return observation, self._builder.resized

    def run(self, observation: Observation) -> Refresh:
        """Take one policy step.

        Raises:
            RefusedError: It gives no chunk that may be published.
        """
        policy = self._policy
        if isinstance(policy, ReuseControl):
            policy.set_pressure(self._pressure.value)
        started_ns = time.monotonic_ns()
        try:
            chunk = policy.act(observation)
        except InstructionError as error:
            raise RefusedError('bad_instruction', str(error)) from error
        except ObservationError as error:
            raise RefusedError('bad_observation', str(error)) from error
        except Exception as error:  # whatever a model raises, the node must outlive it
            detail = f'{type(error).__name__}: {error}'
            raise RefusedError('inference_fault', detail, flushes=True) from error
        finished_ns = time.monotonic_ns()
        if not np.isfinite(chunk.actions).all():
            raise RefusedError(
                'non_finite_chunk',
                'the policy answered NaN or infinity; its weights or its cache are damaged.',
                flushes=True,
            )
        chunk = replace(chunk, instruction=observation.instruction)
        return Refresh(observation, chunk, started_ns, finished_ns)

    def published(self, times: StepTimes) -> bool:
        """Take note of when the chunk was out; return whether that was late."""
        since_receipt_ms = (times.published_ns - times.received_ns) / 1e6
        since_stamp_ms = since_receipt_ms + max(0.0, times.age_ms)
        self._expected.record(since_stamp_ms)
        return self._pressure.record(since_stamp_ms if self._from_stamp else since_receipt_ms)

    def _running_meanwhile(self, request: Request) -> NDArray[np.float32] | None:
        """The committed actions that run while the request is worked on, [d, 7]."""
        if self._committed is None:
            return None
        chunk, first_due_ns, period_ns = self._committed
        if not period_ns or chunk.instruction != request.instruction:
            return None
        return committed_actions(
            chunk.actions,
            first_due_ns,
            period_ns,
            request.inputs.stamp_ns,
            round(self._expected.ms * 1e6),
        )
