"""A fake simulator and a fake policy behind the real seams, and the real nodes on real rclpy."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from vla_cache_ros.core.errors import InstructionError, SimulatorError, UnknownNameError
from vla_cache_ros.core.layout import CameraSpan, TokenLayout
from vla_cache_ros.core.plan import LayerGroup, ReusePlan
from vla_cache_ros.core.types import ActionChunk, Observation, StepReport

CAMERAS = ('agentview', 'wrist')
IMAGE_SIZE_PX = 16
STEP_LIMIT = 40
GOAL_M = 0.1


class FakeEnv(gymnasium.Env):
    """A point that moves by 0.01 m per unit of action; the goal is x >= 0.1 m."""

    def __init__(self) -> None:
        image = spaces.Box(0, 255, (IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3), np.uint8)
        self.observation_space = spaces.Dict(dict.fromkeys(CAMERAS, image))
        self.action_space = spaces.Box(-1.0, 1.0, (7,), np.float32)
        self.instruction = 'push the point'
        self.position_m = np.zeros(3, np.float32)
        self.actions: list[np.ndarray] = []
        self.resets: list[dict[str, Any]] = []
        self.renders = 0
        self.fail_at: int | None = None
        self.is_closed = False

    @property
    def scene(self) -> 'FakeEnv':
        return self

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        options = dict(options or {})
        if not 0 <= options.get('init_state', 0) < 50:
            raise UnknownNameError('initial state', options['init_state'], ['0..49'])
        self.resets.append({'seed': seed, **options})
        self.position_m = np.array([0.0, 0.0, options.get('init_state', 0)], np.float32)
        self.actions = []
        return self.observe(), {'success': False}

    def advance(self, action):
        if self.fail_at == len(self.actions):
            raise SimulatorError('the fake physics diverged')
        self.actions.append(np.array(action))
        self.position_m = self.position_m + 0.01 * np.asarray(action[:3], np.float32)
        success = bool(self.position_m[0] >= GOAL_M - 1e-6)
        return float(success), success, len(self.actions) >= STEP_LIMIT, {'success': success}

    def observe(self):
        self.renders += 1
        value = len(self.actions) % 256
        image = np.full((IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3), value, np.uint8)
        return {**dict.fromkeys(CAMERAS, image), **self.proprioception()}

    def proprioception(self):
        return {
            'ee_position_m': self.position_m,
            'ee_quaternion_xyzw': np.array([0, 0, 0, 1], np.float32),
            'gripper_position_m': np.array([0.04, -0.04], np.float32),
            'joint_position_rad': np.linspace(0.1, 0.7, 7).astype(np.float32),
        }

    def close(self):
        self.is_closed = True


class FakePolicy:
    """Moves along x by a fixed share of full speed; action k of a chunk says so in its y."""

    chunk_size = 8
    camera_names = CAMERAS
    image_size_px = IMAGE_SIZE_PX
    layout = TokenLayout(
        cameras=(CameraSpan('agentview', 0, 2, 2), CameraSpan('wrist', 4, 2, 2)),
        text=(8, 10),
        actions=(10, 12),
        num_tokens=12,
    )

    def __init__(self, speed: float = 0.5) -> None:
        self.speed = speed
        self.observations: list[Observation] = []
        self.resets: list[str] = []
        self.fault: Exception | None = None
        self.fill: float | None = None
        self.begun = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def reset(self, reason: str = 'reset') -> None:
        self.resets.append(reason)

    def act(self, observation: Observation) -> ActionChunk:
        self.begun.set()
        assert self.go.wait(30)
        if self.fault is not None:
            raise self.fault
        if len(observation.instruction) > 60:
            raise InstructionError('the instruction has 61 characters or more; valid: up to 60.')
        self.observations.append(observation)
        actions = np.zeros((self.chunk_size, 7), np.float32)
        actions[:, 0] = self.speed
        actions[:, 1] = 0.01 * np.arange(self.chunk_size)
        if self.fill is not None:
            actions[:] = self.fill
        return ActionChunk(actions, observation.stamp_ns, self._report())

    def _report(self) -> StepReport:
        everything = np.arange(12)
        plan = ReusePlan(
            num_tokens=12,
            groups=(LayerGroup(0, 1), LayerGroup(1, 3)),
            recompute=(everything, everything[2:]),
            status=np.zeros(8, np.uint8),
            age=np.array([3, 3, 0, 0, 0, 0, 0, 0], np.int32),
        )
        return StepReport(len(self.observations) - 1, 'cached', {'vision': 1.0, 'head': 0.5}, plan)


class FakeCachedPolicy(FakePolicy):
    """Its cached actions are off by `error`, those of its dense twin are right."""

    def __init__(self) -> None:
        super().__init__()
        self.error = 0.0
        self.off_reason = ''
        self.pressures: list[float] = []
        self.twin = FakeTwin()

    def set_pressure(self, pressure: float) -> None:
        self.pressures.append(pressure)

    def switch_off(self, reason: str) -> None:
        self.off_reason = reason

    def switch_on(self) -> None:
        self.off_reason = ''

    def dense_twin(self) -> 'FakeTwin':
        return self.twin

    def act(self, observation: Observation) -> ActionChunk:
        chunk = super().act(observation)
        if not self.off_reason:
            chunk.actions[:, :6] += self.error
        return chunk

    def _report(self) -> StepReport:
        return replace(
            super()._report(),
            mode='dense' if self.off_reason else 'cached',
            off_reason=self.off_reason,
            reuse_pressure=self.pressures[-1],
        )


class FakeTwin(FakePolicy):
    """The dense twin of a FakeCachedPolicy."""

    followed = 0

    def follow(self, leader: FakeCachedPolicy) -> None:
        self.followed += 1


@pytest.fixture
def env() -> FakeEnv:
    return FakeEnv()


@pytest.fixture
def policy() -> FakePolicy:
    return FakePolicy()


@pytest.fixture
def cached_policy() -> FakeCachedPolicy:
    return FakeCachedPolicy()


@pytest.fixture
def ros() -> Iterator[None]:
    import rclpy

    rclpy.init()
    try:
        yield
    finally:
        rclpy.try_shutdown()


@pytest.fixture
def executor(ros) -> Iterator[Any]:
    from vla_cache_ros.nodes.running import make_executor

    executor = make_executor()
    try:
        yield executor
    finally:
        for node in executor.get_nodes():
            executor.remove_node(node)
            node.destroy_node()
        executor.shutdown()


@pytest.fixture
def spin_until(executor) -> Callable[..., None]:
    def spin(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        end_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end_s, 'condition not reached in time'
            executor.spin_once(0.01)

    return spin


@pytest.fixture
def spin_for(executor) -> Callable[[float], None]:
    def spin(duration_s: float) -> None:
        end_s = time.monotonic() + duration_s
        while time.monotonic() < end_s:
            executor.spin_once(0.01)

    return spin
