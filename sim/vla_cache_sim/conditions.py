"""What may disturb an episode, as data: cameras that shake, light that changes, late frames.

A condition is the same disturbance in every arm of a comparison: all that is random in it follows
from (seed, task, initial state) and the control step, never from what the policy does.

    >>> env.reset(seed=0, options={'init_state': 0, 'condition': 'camera_shake'})
"""

import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, fields

from vla_cache_ros.core.errors import ConfigError, UnknownNameError

UNDISTURBED = 'none'


@dataclass(frozen=True)
class Noise:
    """Noise of an image sensor, drawn per frame: variance = read^2 + shot x level.

    Attributes:
        read_levels: Standard deviation in the dark, 8-bit levels.
        shot_levels: Variance per level of brightness, 8-bit levels.
    """

    read_levels: float
    shot_levels: float


@dataclass(frozen=True)
class Dropped:
    """Frames that are lost on the way, in bursts (a two-state Markov chain over control steps).

    A frame that is read at a lost step is the last one that was read and arrived.

    Attributes:
        share: Share of the control steps at which a frame is lost.
        burst_steps: Mean length of a run of lost ones, control steps.
    """

    share: float
    burst_steps: float


@dataclass(frozen=True)
class CameraShake:
    """The outer camera wanders about its pose (an Ornstein-Uhlenbeck process at control rate).

    Attributes:
        position_m: Standard deviation per axis, metres.
        rotation_rad: Standard deviation per axis, radians.
        time_s: Time over which a deviation decays to 1/e, seconds.
    """

    position_m: float
    rotation_rad: float
    time_s: float


@dataclass(frozen=True)
class Lighting:
    """All light, headlight included, is switched and drifts; images follow as the sensor clips.

        gain = (level x colour) x (1 + drift x sin(2 pi t / period + phase)), a factor per channel

    Attributes:
        levels: Range of the level that each switch draws, log-uniform; it is 1 before the first.
        colour: Standard deviation of log colour per channel, drawn at each switch.
        interval_s: Mean time between switches, seconds; each lies within a quarter of it.
        drift: Amplitude of the slow part.
        drift_period_s: Its period, seconds.
    """

    levels: tuple[float, float]
    colour: float
    interval_s: float
    drift: float
    drift_period_s: float


@dataclass(frozen=True)
class Distractor:
    """Something of a hand's size that moves beside the workspace, seen by all cameras.

    It is drawn, with occlusion, and is no part of the physics: it touches nothing.

    Attributes:
        radius_m, half_length_m: Of a capsule, metres.
        period_s: Time of one sweep there and back, seconds.
    """

    radius_m: float
    half_length_m: float
    period_s: float


@dataclass(frozen=True)
class Condition:
    """One way to disturb an episode.

    Attributes:
        name: What it is called.
        description: One line for tables.
        noise, jpeg_quality, dropped: What happens to an image; any simulator can have it.
        delay_s: Images show the scene as it was this long ago; proprioception is of now, seconds.
        shake, lighting, distractor: What happens in the scene before it is rendered.
    """

    name: str
    description: str
    noise: Noise | None = None
    jpeg_quality: int | None = None
    dropped: Dropped | None = None
    delay_s: float = 0.0
    shake: CameraShake | None = None
    lighting: Lighting | None = None
    distractor: Distractor | None = None

    def __post_init__(self) -> None:
        """Check the ranges that the parts' equations need.

        Raises:
            ConfigError: A value is out of its range.
        """
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 100:
            raise ConfigError(f'jpeg_quality is {self.jpeg_quality}; valid: 1..100.')
        if not 0 <= self.delay_s <= 1:
            raise ConfigError(f'delay_s is {self.delay_s}; valid: 0..1 second.')
        if self.dropped and not (0 < self.dropped.share < 1 <= self.dropped.burst_steps):
            raise ConfigError(f'{self.dropped}; valid: share in (0, 1), burst_steps at least 1.')
        for part in (self.noise, self.shake, self.lighting, self.distractor):
            for field in fields(part) if part is not None else ():
                values = getattr(part, field.name)
                for value in values if isinstance(values, tuple) else (values,):
                    if not 0 <= value < math.inf:
                        raise ConfigError(f'{part}: {field.name} must be finite and not negative.')

    @property
    def needs_scene(self) -> bool:
        """Whether it changes what is rendered, not only the image."""
        parts = self.shake, self.lighting, self.distractor
        return self.delay_s > 0 or any(part is not None for part in parts)


CONDITIONS: dict[str, Condition] = {
    condition.name: condition
    for condition in (
        Condition(UNDISTURBED, 'nothing disturbs'),
        Condition(
            'camera_shake',
            'agentview wanders: 2 mm and 0.2 degrees per axis (sigma), decaying in 0.2 s',
            shake=CameraShake(0.002, math.radians(0.2), 0.2),
        ),
        Condition(
            'lighting',
            'light switched about every 2 s to 0.55 .. 1.3, colour 6 %, drifting by 8 % over 6 s',
            lighting=Lighting((0.55, 1.3), 0.06, 2.0, 0.08, 6.0),
        ),
        Condition(
            'distractor',
            "a capsule of a hand's size sweeps beside the workspace, 3 s there and back",
            distractor=Distractor(0.045, 0.07, 3.0),
        ),
        Condition(
            'noise',
            'sensor noise: 2 levels in the dark, 2.6 at mid-grey (sigma)',
            noise=Noise(2.0, 0.02),
        ),
        Condition(
            'noise_strong',
            'sensor noise: 6 levels in the dark, 6.7 at mid-grey (sigma)',
            noise=Noise(6.0, 0.07),
        ),
        Condition('jpeg', 'camera compresses with JPEG at quality 80', jpeg_quality=80),
        Condition(
            'dropped',
            '20 % of the frames lost in bursts of 4 control steps; the last one is seen again',
            dropped=Dropped(0.2, 4.0),
        ),
        *(
            Condition(f'delay_{ms}ms', f'images are {ms} ms old', delay_s=ms / 1000)
            for ms in (10, 50, 100, 200)
        ),
    )
}

IMAGE_CONDITIONS = tuple(name for name, known in CONDITIONS.items() if not known.needs_scene)
"""What a simulator can have whose scene is not ours to change."""


def find_condition(name: object, available: Iterable[str] = tuple(CONDITIONS)) -> Condition:
    """Look a condition up.

    Args:
        name: A key of CONDITIONS.
        available: Those that the simulator can have.

    Raises:
        UnknownNameError: There is no such condition, or the simulator cannot have it.
    """
    valid = tuple(available)
    if not isinstance(name, str) or name not in valid:
        raise UnknownNameError('condition', name, valid)
    return CONDITIONS[name]


def episode_key(seed: int, task: int, init_state: int | str) -> tuple[int, int, int]:
    """What seeds an episode's disturbance: the same in every arm.

    Args:
        seed: Of the episode, >= 0.
        task: Index of the task.
        init_state: Index of the initial state, or 'random'.
    """
    return seed, task, zlib.crc32(str(init_state).encode())
