"""A policy that remembers what it saw, servers around it, and observations in every protocol."""

import threading
import time
from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from vla_cache_ros.core.errors import ObservationError
from vla_cache_ros.core.layout import CameraSpan, TokenLayout
from vla_cache_ros.core.plan import LayerGroup, PatchStatus, ReusePlan
from vla_cache_ros.core.types import ActionChunk, Observation, StepReport
from vla_cache_ros.serving import openpi
from vla_cache_ros.serving.app import make_app, make_server, open_socket
from vla_cache_ros.serving.limits import Limits
from vla_cache_ros.serving.observations import Conventions
from vla_cache_ros.serving.service import Service
from vla_cache_ros.serving.sessions import PolicyHost

CAMERAS = ('agentview', 'wrist')
CHUNK_SIZE = 4
LAYOUT = TokenLayout(
    cameras=(CameraSpan('agentview', 0, 2, 2), CameraSpan('wrist', 4, 2, 2)),
    text=(9, 10),
    actions=(10, 12),
    num_tokens=12,
)


def plan(dense: bool) -> ReusePlan:
    status = np.full(8, PatchStatus.REFRESHED, np.uint8)
    recompute = np.arange(12)
    if not dense:
        status[:4] = PatchStatus.REUSED
        recompute = recompute[4:]
    return ReusePlan(12, (LayerGroup(0, 2),), (recompute,), status, np.zeros(8, np.int32))


@dataclass
class RememberingPolicy:
    """Its actions depend on everything it saw since its last reset: no session can hide another's.

    The instruction 'wait' holds it until `gate` is set; 'fail' and 'nan' make it fail.
    """

    gate: threading.Event = field(default_factory=threading.Event)
    chunk_size: int = CHUNK_SIZE
    camera_names: tuple[str, ...] = CAMERAS
    image_size_px: int = 32
    execute_steps: int = 3
    layout: TokenLayout = LAYOUT
    resets: list[str] = field(default_factory=list)
    seen: list[Observation] = field(default_factory=list)
    memory: float = 0.0
    step: int = 0

    def reset(self, reason: str = 'reset') -> None:
        self.resets.append(reason)
        self.memory, self.step = 0.0, 0

    def act(self, observation: Observation) -> ActionChunk:
        if observation.instruction == 'refuse':
            raise ObservationError('the policy does not like it')
        if observation.instruction == 'fail':
            raise RuntimeError('the policy has a bug')
        if observation.instruction == 'wait':
            self.gate.wait(20)
        self.seen.append(observation)
        pixels = sum(float(image.mean()) for image in observation.images.values())
        self.memory = 0.5 * self.memory + pixels / 512
        actions = np.full((self.chunk_size, 7), self.memory, np.float32)
        actions[:, 1] = np.arange(self.chunk_size)
        actions[:, 6] = [-1, 1] * (self.chunk_size // 2)
        if observation.instruction == 'nan':
            actions[0, 0] = np.nan
        mode = 'cached' if self.step else 'keyframe'
        report = StepReport(self.step, mode, {'vision': 1.0, 'decoder': 2.0}, plan(not self.step))
        self.step += 1
        return ActionChunk(actions, observation.stamp_ns, report)


class ServerThread:
    """A server with real sockets in a thread."""

    def __init__(
        self,
        protocol,
        make_policy=None,
        token='',
        images='upright',
        limits=None,
        needs_state=True,
        execute_steps=None,
        unnorm_key='',
    ):
        self.gate = threading.Event()
        self.policies = []

        def remember():
            self.policies.append(RememberingPolicy(self.gate))
            return self.policies[-1]

        limits = limits or Limits(idle_s=60)
        self.host = PolicyHost(make_policy or remember, limits, execute_steps)
        conventions = Conventions(CAMERAS, images, needs_state, limits.image_side_px)
        self.service = Service(self.host, conventions, 'fake', CHUNK_SIZE, unnorm_key)
        self._listener = open_socket('127.0.0.1', 0, token)
        self.port = self._listener.getsockname()[1]
        started = threading.Event()
        self._server = make_server(
            make_app(protocol, self.service, token), self.host.limits, started.set
        )
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],))
        self._thread.start()
        assert started.wait(20)

    @property
    def http(self):
        return f'http://127.0.0.1:{self.port}'

    @property
    def ws(self):
        return f'ws://127.0.0.1:{self.port}'

    def wait_for_sessions(self, count, timeout_s=5):
        """Wait until so many sessions are open; how long it took, seconds."""
        begin = time.monotonic()
        while len(self.host.sessions) != count:
            assert time.monotonic() - begin < timeout_s, self.host.sessions
            time.sleep(0.002)
        return time.monotonic() - begin

    def stop(self):
        self.gate.set()
        self._server.should_exit = True
        self._thread.join(20)
        self._listener.close()
        assert not self._thread.is_alive()


def image(seed, size=16):
    return np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8)


def state(x_m=0.0):
    return np.array([x_m, 0.1, 1.0, 3.1, 0.1, 0.0, 0.04, -0.04])


def openpi_observation(seed=0, prompt='pick', x_m=0.0):
    return {
        'observation/image': image(seed),
        'observation/wrist_image': image(seed + 1000),
        'observation/state': state(x_m),
        'prompt': prompt,
    }


def vla_eval_observation(seed=0, words='pick', x_m=0.0):
    return {
        'images': {'agentview': image(seed), 'wrist': image(seed + 1000)},
        'states': state(x_m),
        'task_description': words,
    }


def openvla_observation(seed=0, words='pick', x_m=0.0):
    return {
        'image': image(seed),
        'wrist_image': image(seed + 1000),
        'state': state(x_m),
        'instruction': words,
    }


WIRE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=24),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [*openpi.CAMERA_KEYS.values(), openpi.STATE_KEY, openpi.PROMPT_KEY, 'reset']
            )
            | st.sampled_from([b'__ndarray__', b'data', b'dtype', b'shape', b'__npgeneric__'])
            | st.text(max_size=3),
            inner
            | st.sampled_from(['<f4', '|u1', '|O', 'O', '<M8[s]', '|V3', 'pick', '<f9999'])
            | st.lists(st.integers(-2, 9), max_size=5),
            max_size=5,
        )
    ),
    max_leaves=12,
)


def refuse_or_read(decode, to_observation, frame):
    """What a handler does; any error but the protocol's own fails the test."""
    try:
        to_observation(decode(frame), Conventions(CAMERAS))
    except ObservationError:
        return
