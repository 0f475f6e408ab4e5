"""Settings of the reuse: what may be reused, how much of it, and when everything is recomputed.

'Step' is a policy step (one model call) throughout. Token counts are given as a share of a
camera's P patches, so that a preset fits every grid; the published counts are shares of 256.
"""

import math
from dataclasses import dataclass, replace

from vla_cache_ros.core.errors import ConfigError, UnknownNameError

PRESETS = ('safe', 'paper', 'paper_openvla', 'static_only', 'random', 'off')
BASELINES = ('static_only', 'random')
CHOICES = ('static', 'random')
SCHEDULES = ('code', 'paper', 'fixed')
ENTROPY_REFRESHES = ('step', 'keyframe')


@dataclass(frozen=True)
class ReuseConfig:
    """All settings; derive variants with dataclasses.replace, which checks them again.

    Attributes:
        enabled: Whether anything may be reused.
        prune_layers: Layers at which reused tokens stop running, ascending; with num_layers they
            bound the layer groups. Published: 2, 6, 9, 11 of 32. 0 lets a reused token skip the
            whole decoder.
        similarity_threshold: Least cosine similarity of a static patch, [0, 1]. Published: 0.996.
        difference_threshold: Greatest RMS difference of a static patch, share of full scale,
            [0, 1]. Not in the paper; 1 switches the criterion off.
        static_fraction: At most this share of a camera's patches, the most similar ones, is
            considered static, [0, 1]. Published: 130 of 256 (OpenVLA), 150 of 256 (OpenVLA-OFT).
        protected_fraction: This share of a camera's patches, the most task-relevant ones, is
            always recomputed, [0, 1]. Published: 120 of 256 (OpenVLA), 100 of 256 (OpenVLA-OFT).
        relevance_layer: Layer whose text-to-vision attention gives the relevance. Published: 15
            of 32.
        choice: Which tokens are reused: the 'static' ones, or as many as these 'random' out of all
            vision tokens, changed and task-relevant ones among them: a baseline that no robot
            should run.
        choice_seed: Seed of the 'random' choice, >= 0.
        schedule: How many candidates are reused in each group: 'code' or 'paper' (entropy rules,
            see core.schedule) or 'fixed'.
        fixed_ratios: Share of the candidates reused from each prune layer on, (0, 1], one per
            prune layer; used by schedule 'fixed' alone.
        growth: Damping of the 'code' rule. Published: 0.55.
        gain: k of the 'paper' rule. Its value is not published.
        entropy_refresh: When the model reports attention entropies to an entropy rule: every
            'step' (published) or at each 'keyframe' alone (they cost a pass over all attention).
        age_limit_steps: A token's K/V is at most this many steps old; None: no limit (published).
        age_stagger_steps: The tokens' limits are spread over this many steps below
            age_limit_steps, so that they do not all expire in one step and make it a slow one.
        keyframe_period_steps: Everything is recomputed at least this often; None: only at the
            start of an episode (published).
        difference_threshold_limit: What `difference_threshold` may be raised to under pressure
            (late refreshes), [0, 1]; no more than it is: it stays.
        keyframe_postpone_steps: Steps by which a periodic keyframe may be put off under pressure,
            within age_limit_steps, which bounds every token's age by itself; without one, none.
        camera_motion_fraction: Where more than this share of a camera's patches changed, the
            camera moves and is recomputed whole, [0, 1]; 1: never (published).
        auto_off: Whether the reuse switches itself off where it does not pay.
        auto_off_window_steps: Steps of each kind over which the running medians are taken.
        auto_off_min_steps: Steps of each kind to see before judging.
        auto_off_margin: Reuse pays where the median cached step takes less than
            (1 - margin) x the median dense step.
        auto_off_probe_steps: Dense steps after which a reuse that was switched off is tried again.
    """

    enabled: bool = True
    prune_layers: tuple[int, ...] = (0,)
    similarity_threshold: float = 0.996
    difference_threshold: float = 0.02
    static_fraction: float = 1.0
    protected_fraction: float = 0.1
    relevance_layer: int = 0
    choice: str = 'static'
    choice_seed: int = 0
    schedule: str = 'fixed'
    fixed_ratios: tuple[float, ...] = (1.0,)
    growth: float = 0.55
    gain: float = 1.0
    entropy_refresh: str = 'keyframe'
    age_limit_steps: int | None = 16
    age_stagger_steps: int = 0
    keyframe_period_steps: int | None = 64
    difference_threshold_limit: float = 0.0
    keyframe_postpone_steps: int = 0
    camera_motion_fraction: float = 0.9
    auto_off: bool = True
    auto_off_window_steps: int = 64
    auto_off_min_steps: int = 4
    auto_off_margin: float = 0.0
    auto_off_probe_steps: int = 200

    def __post_init__(self) -> None:
        """Check ranges and agreement.

        Raises:
            ConfigError: A value is out of its range or contradicts another one.
        """
        for name in (
            'similarity_threshold',
            'difference_threshold',
            'difference_threshold_limit',
            'static_fraction',
            'protected_fraction',
            'growth',
            'camera_motion_fraction',
            'auto_off_margin',
        ):
            self._require(name, 0 <= getattr(self, name) <= 1, 'in [0, 1]')
        for name in ('auto_off_window_steps', 'auto_off_min_steps', 'auto_off_probe_steps'):
            self._require(name, getattr(self, name) >= 1, 'at least 1')
        for name in ('age_limit_steps', 'keyframe_period_steps'):
            value = getattr(self, name)
            self._require(name, value is None or value >= 1, 'at least 1, or None for no limit')
        self._require(
            'age_stagger_steps',
            0 <= self.age_stagger_steps < (self.age_limit_steps or math.inf),
            f'at least 0 and below age_limit_steps ({self.age_limit_steps})',
        )
        self._require('gain', math.isfinite(self.gain) and self.gain >= 0, 'finite and >= 0')
        for name in ('relevance_layer', 'choice_seed', 'keyframe_postpone_steps'):
            self._require(name, getattr(self, name) >= 0, 'at least 0')
        layers = self.prune_layers
        self._require(
            'prune_layers',
            len(layers) > 0 and layers[0] >= 0 and sorted(set(layers)) == list(layers),
            'at least one layer >= 0, strictly ascending',
        )
        if self.choice not in CHOICES:
            raise UnknownNameError('choice', self.choice, CHOICES)
        if self.schedule not in SCHEDULES:
            raise UnknownNameError('schedule', self.schedule, SCHEDULES)
        if self.entropy_refresh not in ENTROPY_REFRESHES:
            raise UnknownNameError('entropy refresh', self.entropy_refresh, ENTROPY_REFRESHES)
        if self.schedule == 'fixed':
            self._require(
                'fixed_ratios',
                len(self.fixed_ratios) == len(layers)
                and all(0 < ratio <= 1 for ratio in self.fixed_ratios),
                f'one ratio in (0, 1] for each of the {len(layers)} prune layers',
            )
        self._require(
            'auto_off_window_steps',
            self.auto_off_window_steps >= self.auto_off_min_steps,
            f'at least auto_off_min_steps ({self.auto_off_min_steps})',
        )

    def _require(self, name: str, holds: bool, valid: str) -> None:
        if not holds:
            raise ConfigError(f'{name} is {getattr(self, name)!r}; valid: {valid}.')

    def under_pressure(self, pressure: float) -> 'ReuseConfig':
        """The settings for late refreshes: more reuse, within the limits that these allow.

            threshold = threshold_0 + p max(0, limit - threshold_0)
            keyframe period = period_0 + floor(p min(postpone, age limit))

        Relevance, age limits and the camera-motion guard stay as they are.

        Args:
            pressure: p, in [0, 1]; at 0 these very settings.

        Raises:
            ConfigError: The pressure is outside [0, 1].
        """
        if not 0 <= pressure <= 1:
            raise ConfigError(f'pressure is {pressure!r}; valid: in [0, 1].')
        threshold, period = self.difference_threshold, self.keyframe_period_steps
        limit = max(threshold, self.difference_threshold_limit)
        postpone = min(self.keyframe_postpone_steps, self.age_limit_steps or 0)
        return replace(
            self,
            difference_threshold=min(limit, threshold + pressure * (limit - threshold)),
            keyframe_period_steps=None if period is None else period + int(pressure * postpone),
        )

    @property
    def uses_entropy(self) -> bool:
        """Whether the schedule needs the model's attention entropies."""
        return self.enabled and self.schedule != 'fixed'

    @property
    def uses_relevance(self) -> bool:
        """Whether the selection needs the model's text-to-vision attention."""
        return self.enabled and self.protected_fraction > 0


def preset(name: str, num_layers: int = 32) -> ReuseConfig:
    """A named configuration.

    'safe': this project's own: skip the whole decoder, both change criteria, age limit, keyframes,
        camera-motion guard, automatic off; the relevance layer lies at mid-depth.
    'paper': the published selection for OpenVLA-OFT (per camera 150 static, 100 protected of 256),
        its defects excepted; layers are scaled from its 32 to `num_layers`.
    'paper_openvla': the same for OpenVLA (130 static, 120 protected of 256).
    'static_only', 'random': baselines of 'safe', see `baseline`.
    'off': nothing is reused.

    Args:
        name: One of PRESETS.
        num_layers: L of the decoder.

    Raises:
        UnknownNameError: There is no such preset.
    """
    if name == 'safe':
        return ReuseConfig(relevance_layer=num_layers // 2, age_stagger_steps=8)
    if name == 'paper':
        return _published(num_layers, static=150, protected=100)
    if name == 'paper_openvla':
        return _published(num_layers, static=130, protected=120)
    if name in BASELINES:
        return baseline(name, preset('safe', num_layers))
    if name == 'off':
        return ReuseConfig(enabled=False)
    raise UnknownNameError('preset', name, PRESETS)


def baseline(name: str, safe: ReuseConfig) -> ReuseConfig:
    """What a model's 'safe' has to be better than.

    'static_only': the same without task relevance: every static patch may be reused.
    'random': as many tokens reused in every step and group, but drawn at random.

    Args:
        name: One of BASELINES.
        safe: The model's preset 'safe'.

    Raises:
        UnknownNameError: There is no such baseline.
    """
    if name == 'static_only':
        return replace(safe, protected_fraction=0.0)
    if name == 'random':
        return replace(safe, choice='random')
    raise UnknownNameError('baseline', name, BASELINES)


def _published(num_layers: int, static: int, protected: int) -> ReuseConfig:
    def scaled(layer: int) -> int:
        return min(max(1, round(layer * num_layers / 32)), num_layers - 1)

    return ReuseConfig(
        prune_layers=tuple(sorted({scaled(layer) for layer in (2, 6, 9, 11)})),
        difference_threshold=1.0,
        static_fraction=static / 256,
        protected_fraction=protected / 256,
        relevance_layer=scaled(15),
        schedule='code',
        fixed_ratios=(),
        entropy_refresh='step',
        age_limit_steps=None,
        keyframe_period_steps=None,
        camera_motion_fraction=1.0,
        auto_off=False,
    )
