"""Shadow mode in the inference thread: the dense result beside the cached one, after it is out."""

import time

from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.core.protocols import Policy, ReuseControl
from vla_cache_ros.core.shadow import Shadow, ShadowConfig, compare_actions
from vla_cache_ros.core.types import ActionChunk, Observation
from vla_cache_ros.nodes.parameter_tables.policy_node import PolicyParameters
from vla_cache_ros.nodes.report_messages import ShadowResult


def shadow_config(parameters: PolicyParameters) -> ShadowConfig:
    """What the node's parameters say of shadow mode.

    Raises:
        ConfigError: The budgets contradict one another.
    """
    return ShadowConfig(
        every_steps=parameters.shadow_every_steps,
        when_idle=parameters.shadow_when_idle,
        gives_way=parameters.shadow_gives_way,
        alarm_budget=parameters.shadow_alarm_budget,
        off_budget=parameters.shadow_off_budget,
    )


class ShadowRunner:
    """Compares a policy's cached chunks with those of its dense twin, on the same weights."""

    def __init__(self, policy: Policy, config: ShadowConfig) -> None:
        """Make the twin: its K/V cache is its own, its weights are the policy's.

        Raises:
            ConfigError: The policy has no dense twin.
        """
        if not isinstance(policy, ReuseControl):
            raise ConfigError(
                'this policy has no dense twin to be compared with; valid: shadow_every_steps 0 '
                'and shadow_when_idle false.'
            )
        self._policy = policy
        self._twin = policy.dense_twin()
        self._shadow = Shadow(config)
        self._execute_steps: int | None = getattr(policy, 'execute_steps', None)

    def reset(self) -> None:
        """Forget the comparisons."""
        self._shadow.reset()

    def before(self) -> None:
        """Be where the policy is, before it takes its next step."""
        self._twin.follow(self._policy)

    def due(self, chunk: ActionChunk, is_idle: bool) -> bool:
        """Say, once after each step, whether to compare it."""
        is_cached = chunk.report is not None and chunk.report.mode == 'cached'
        return self._shadow.due(is_cached, is_idle)

    def compare(
        self, observation: Observation, chunk: ActionChunk, cached_ms: float
    ) -> tuple[ShadowResult, str] | None:
        """Compute the dense chunk of the same observation and judge.

        Args:
            observation: What the chunk was computed from.
            chunk: The cached chunk.
            cached_ms: Time that it took.

        Returns:
            The report, and why the reuse is to be switched off (empty: it is not); None where the
            dense chunk holds NaN.
        """
        started = time.perf_counter()
        dense = self._twin.act(observation)
        dense_ms = 1e3 * (time.perf_counter() - started)
        divergence = compare_actions(chunk.actions[: self._execute_steps], dense.actions)
        if divergence is None:
            return None
        verdict = self._shadow.record(divergence)
        config = self._shadow.config
        reason = (
            f'shadow: running difference {verdict.running:.4f} from dense; valid: at most '
            f'{config.off_budget:g}'
            if verdict.off
            else ''
        )
        result = ShadowResult(
            stamp_ns=observation.stamp_ns,
            mean_difference=divergence.mean,
            max_difference=divergence.max,
            gripper_flips=divergence.gripper_flips,
            alarm_budget=config.alarm_budget,
            off_budget=config.off_budget,
            alarm=verdict.alarm,
            switched_off=verdict.off,
            dense_ms=dense_ms,
            cached_ms=cached_ms,
        )
        return result, reason
