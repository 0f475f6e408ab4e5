"""A policy and a simulator without weights, physics or rendering, for the command line's tests."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vla_cache_ros.core.config import PRESETS
from vla_cache_ros.core.errors import UnknownNameError
from vla_cache_ros.core.layout import CameraSpan, TokenLayout
from vla_cache_ros.core.plan import LayerGroup, PatchStatus, ReusePlan
from vla_cache_ros.core.types import ActionChunk, Observation, StepReport

LAYOUT = TokenLayout(
    cameras=(CameraSpan('agentview', 0, 4, 4), CameraSpan('wrist', 16, 4, 4)),
    text=(33, 36),
    actions=(36, 44),
    num_tokens=44,
)
GROUPS = (LayerGroup(0, 1), LayerGroup(1, 2), LayerGroup(2, 4))
STAGES = ('preprocess', 'diff', 'selection', 'vision', 'decoder', 'head')


def random_plan(rng: np.random.Generator, dense: bool) -> ReusePlan:
    """A nested plan with every status in it."""
    vision = np.arange(LAYOUT.num_vision)
    status = rng.integers(len(PatchStatus), size=LAYOUT.num_vision).astype(np.uint8)
    if dense:
        status[:] = PatchStatus.REFRESHED
    reused = vision[status == PatchStatus.REUSED]
    recompute = []
    for share in (1.0, 0.6, 0.4):  # reuse grows with depth
        dropped = reused[: int(len(reused) * (1.0 - share))]
        recompute.append(np.setdiff1d(np.arange(LAYOUT.num_tokens), dropped))
    age = np.where(status == PatchStatus.REUSED, rng.integers(1, 9, LAYOUT.num_vision), 0)
    return ReusePlan(LAYOUT.num_tokens, GROUPS, tuple(recompute), status, age.astype(np.int32))


@dataclass
class FakePolicy:
    """Moves along x; `cache` decides the mode, `fault` what goes wrong."""

    cache: str = 'off'
    fault: str = ''
    chunk_size: int = 8
    camera_names: tuple[str, ...] = ('agentview', 'wrist')
    image_size_px: int = 32
    layout: TokenLayout = LAYOUT
    execute_steps: int = 4
    resets: list[str] = field(default_factory=list)
    step: int = 0

    def reset(self, reason: str = 'reset') -> None:
        self.resets.append(reason)
        self.step = 0

    def act(self, observation: Observation) -> ActionChunk:
        if self.fault == 'raises':
            raise RuntimeError('the policy has a bug')
        if self.fault == 'slow':
            time.sleep(0.15)
        if self.fault == 'talks':
            import torch

            text = f'threads: {torch.get_num_threads()}\n'
            os.write(1, text.encode())
        rng = np.random.default_rng(self.step)
        mode = 'dense' if self.cache == 'off' else 'cached' if self.step else 'keyframe'
        scale = 0.5 if mode == 'cached' else 1.0
        report = StepReport(
            self.step,
            mode,
            {stage: scale * (i + 1.0) for i, stage in enumerate(STAGES)},
            random_plan(rng, dense=mode != 'cached'),
            keyframe_reason='first step' if mode == 'keyframe' else '',
        )
        self.step += 1
        actions = np.zeros((self.chunk_size, 7), dtype=np.float32)
        actions[:, 0] = np.nan if self.fault == 'nan' else 0.5
        return ActionChunk(actions, observation.stamp_ns, report)


@dataclass(frozen=True)
class FakePolicies:
    """A picklable factory of fake policies."""

    fault: str = ''

    def __call__(self, cache: str) -> FakePolicy:
        if self.fault == 'refuses':
            raise UnknownNameError('preset', 'none such', PRESETS)
        return FakePolicy(cache, self.fault)


class FakeEnv:
    """Succeeds after ten steps, except from initial states that are a multiple of three."""

    def __init__(
        self,
        suite: str,
        task: int,
        image_size_px: int,
        fault: str = '',
        once: Path | None = None,
        step_s: float = 0.0,
    ) -> None:
        self.suite, self.task, self.size = suite, task, image_size_px
        self.fault, self.once, self.step_s = fault, once, step_s
        self.steps = self.init_state = 0
        self.observed = 0
        self.closed = False
        self.instruction = 'pick up the cube'
        self.control_frequency_hz = 20.0

    def reset(self, *, seed=None, options=None):
        self.task, self.init_state = options['task'], options['init_state']
        self.steps = 0
        if self.fault == 'broken':
            raise ValueError('never works')
        if self.init_state == 1 and self.fault and not (self.once and self.once.exists()):
            self.strike()
        return self.observe(), self._info(False)

    def strike(self):
        if self.once:
            self.once.touch()
        if self.fault == 'raises':
            raise ValueError('the simulator has a bug')
        if self.fault == 'dies':
            os._exit(7)
        if self.fault == 'hangs':
            time.sleep(600)

    def advance(self, action):
        assert action.shape == (7,)
        time.sleep(self.step_s)
        self.steps += 1
        success = self.steps >= 10 and self.init_state % 3 != 0
        return float(success), success, self.steps >= 20, self._info(success)

    def observe(self):
        self.observed += 1
        rng = np.random.default_rng(self.steps)
        image = rng.integers(0, 255, (self.size, self.size, 3), dtype=np.uint8)
        return {'agentview': image, 'wrist': image[::-1].copy(), **self.proprioception()}

    def close(self) -> None:
        self.closed = True

    @property
    def unwrapped(self):
        return self

    @property
    def scene(self):
        return self

    def proprioception(self):
        return {
            'ee_position_m': np.zeros(3, np.float32),
            'ee_quaternion_xyzw': np.array([0, 0, 0, 1], np.float32),
            'gripper_position_m': np.zeros(2, np.float32),
            'joint_position_rad': np.zeros(7, np.float32),
        }

    def _info(self, success: bool):
        return {'success': success, 'instruction': self.instruction, 'task': self.task}


@dataclass(frozen=True)
class FakeEnvs:
    """A picklable factory of fake simulators.

    Attributes:
        fault: See FakeEnv; it strikes at initial state 1.
        once: A file that is made when the fault strikes, which it then does no more.
        step_s: Duration of a control step.
    """

    fault: str = ''
    once: Path | None = None
    step_s: float = 0.0

    def __call__(self, suite: str, task: int, image_size_px: int) -> FakeEnv:
        if self.fault == 'unbuildable':
            raise OSError('no such asset')
        return FakeEnv(suite, task, image_size_px, self.fault, self.once, self.step_s)
