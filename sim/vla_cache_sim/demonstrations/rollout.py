"""One labelled episode, from the environment's present state to its end."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.types import Observation, Proprioception
from vla_cache_ros.dataset import RELEVANCE_BITS, DatasetSpec, Episode, EpisodeInfo
from vla_cache_sim.demonstrations.drivers import Action, Driver


def rollout_episode(
    env: Any,
    expert: Any,
    driver: Driver,
    rng: np.random.Generator,
    spec: DatasetSpec,
    info: EpisodeInfo,
) -> Episode:
    """Record one episode from the environment's present state until success or its step limit.

    Args:
        env: A started `LiberoEnv`.
        expert: Its expert, reset.
        driver: Who moves the robot.
        rng: Source of the driver's randomness.
        spec: What to store.
        info: Where the episode comes from; `success` and `control_steps` are filled in here.

    Returns:
        The episode, one frame every `spec.control_steps_per_frame` control steps.
    """
    labels: list[Action] = []
    frames: list[_Frame] = []
    driver.begin(rng)
    done = success = False
    while not done:
        label = expert.act()
        view = _View(env)
        action, policy_drives = driver.drive(label, view.observation)
        if len(labels) % spec.control_steps_per_frame == 0:
            frames.append(_Frame.capture(view, action, policy_drives, spec))
        labels.append(label)
        _, success, truncated, _ = env.advance(action)
        done = success or truncated
    return _assemble(frames, np.stack(labels), spec, info, bool(success))


class _View:
    """The present control step, rendered when somebody looks and only once."""

    def __init__(self, env: Any) -> None:
        self.env = env

    @cached_property
    def values(self) -> dict[str, NDArray[Any]]:
        return self.env.observe()

    def observation(self) -> Observation:
        values = self.values
        return Observation(
            images={camera: values[camera] for camera in self.env.cameras},
            proprioception=Proprioception(
                values['ee_position_m'], values['ee_quaternion_xyzw'], values['gripper_position_m']
            ),
            instruction=self.env.instruction,
        )


@dataclass(frozen=True)
class _Frame:
    """One stored frame, without the labels of later control steps."""

    values: dict[str, NDArray[Any]]
    executed_action: Action
    policy_drives: bool
    target_position_m: NDArray[np.float64]
    goal_position_m: NDArray[np.float64]
    relevance: NDArray[np.uint8]

    @classmethod
    def capture(
        cls, view: _View, action: Action, policy_drives: bool, spec: DatasetSpec
    ) -> '_Frame':
        scene = view.env.scene
        rows = spec.relevance_rows
        relevance = np.zeros((len(spec.cameras), rows, rows), dtype=np.uint8)
        for grid, camera in zip(relevance, spec.cameras, strict=True):
            masks = scene.relevance_masks(camera, rows, rows)
            for name, bit in RELEVANCE_BITS.items():
                grid |= np.where(getattr(masks, name), bit, 0).astype(np.uint8)
        return cls(
            view.values,
            action,
            policy_drives,
            scene.target_position_m(),
            scene.goal_position_m(),
            relevance,
        )


def _assemble(
    frames: list[_Frame], labels: Action, spec: DatasetSpec, info: EpisodeInfo, success: bool
) -> Episode:
    """Stack the frames; each gets the labels [T, 7] of its own and the next control steps."""
    starts = np.arange(len(frames)) * spec.control_steps_per_frame
    steps = starts[:, None] + np.arange(spec.chunk_size)
    proprioception = ('ee_position_m', 'ee_quaternion_xyzw', 'gripper_position_m')

    def stack(values: Iterator[Any]) -> NDArray[np.float32]:
        return np.stack(list(values)).astype(np.float32)

    return Episode(
        images={c: np.stack([frame.values[c] for frame in frames]) for c in spec.cameras},
        state=stack(np.concatenate([f.values[name] for name in proprioception]) for f in frames),
        action=labels[starts],
        executed_action=stack(frame.executed_action for frame in frames),
        label_chunk=labels[np.minimum(steps, len(labels) - 1)],
        label_valid=steps < len(labels),
        target_position_m=stack(frame.target_position_m for frame in frames),
        goal_position_m=stack(frame.goal_position_m for frame in frames),
        relevance=np.stack([frame.relevance for frame in frames]),
        policy_drives=np.array([frame.policy_drives for frame in frames]),
        info=EpisodeInfo(
            instruction=info.instruction,
            suite=info.suite,
            task=info.task,
            source=info.source,
            seed=info.seed,
            attempt=info.attempt,
            success=success,
            control_steps=len(labels),
        ),
    )
