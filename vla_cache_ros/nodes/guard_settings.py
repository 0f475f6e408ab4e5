"""The guard's parameters -> its command loop; what contradicts is refused here."""

import math

from vla_cache_ros.core.chunk_execution import make_execution
from vla_cache_ros.core.command_loop import CommandLoop, LoopConfig
from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.core.execution_base import ExecutionConfig
from vla_cache_ros.core.guard import CommandGuard
from vla_cache_ros.core.guard_config import GuardConfig, JointLimits
from vla_cache_ros.core.policy_watch import PolicyWatch
from vla_cache_ros.nodes.parameter_tables.command_guard import GuardParameters


def make_loop(parameters: GuardParameters, *, e_stopped: bool) -> CommandLoop:
    """Make the command loop that the parameters describe.

    Raises:
        ConfigError: A parameter contradicts another one.
    """
    lockstep = parameters.pacing == 'state'
    return CommandLoop(
        make_execution(_execution(parameters, lockstep)),
        CommandGuard(_limits(parameters)),
        PolicyWatch(0.0 if lockstep else _heartbeat_timeout_s(parameters)),
        LoopConfig(lockstep, parameters.instruction_timeout_s),
        e_stopped=e_stopped,
    )


def _execution(parameters: GuardParameters, lockstep: bool) -> ExecutionConfig:
    if parameters.lockstep_delay_steps and not lockstep:
        raise ConfigError(
            f'lockstep_delay_steps is {parameters.lockstep_delay_steps} in timer pacing, where '
            'inference takes the time it takes; set it to 0.'
        )
    return ExecutionConfig(
        mode=parameters.chunk_execution,
        period_s=1 / parameters.control_frequency_hz,
        actions_per_chunk=parameters.actions_per_chunk,
        # In lockstep the simulator waits for a chunk: none is ever late.
        run_on_steps=0 if lockstep else parameters.run_on_steps,
        delay_steps=parameters.lockstep_delay_steps,
        ensemble_decay=parameters.ensemble_decay,
        max_age_s=parameters.stale_image_timeout_s,
    )


def _limits(parameters: GuardParameters) -> GuardConfig:
    same_names = (
        'on_limit',
        'position_scale_m',
        'rotation_scale_rad',
        'max_linear_velocity_m_s',
        'max_angular_velocity_rad_s',
        'max_linear_acceleration_m_s2',
        'max_angular_acceleration_rad_s2',
        'max_linear_jump_m',
        'max_angular_jump_rad',
        'gripper_interval_s',
        'workspace_lower_m',
        'workspace_upper_m',
        'state_timeout_s',
    )
    return GuardConfig(
        lower=parameters.lower_limits,
        upper=parameters.upper_limits,
        max_age_ms=1e3 * parameters.stale_image_timeout_s,
        period_s=1 / parameters.control_frequency_hz,
        joints=JointLimits(
            names=parameters.joint_names,
            lower_rad=parameters.joint_lower_limits_rad,
            upper_rad=parameters.joint_upper_limits_rad,
            velocity_rad_s=parameters.joint_velocity_limits_rad_s,
            margin_rad=parameters.joint_margin_rad,
        ),
        **{name: getattr(parameters, name) for name in same_names},
    )


def _heartbeat_timeout_s(parameters: GuardParameters) -> float:
    """Two heartbeats must fit, or every gap between them would be an alarm."""
    timeout_s = parameters.heartbeat_timeout_periods / parameters.control_frequency_hz
    if timeout_s and timeout_s < 2 * parameters.heartbeat_period_s:
        least = math.ceil(2 * parameters.heartbeat_period_s * parameters.control_frequency_hz)
        raise ConfigError(
            f'heartbeat_timeout_periods is {parameters.heartbeat_timeout_periods:g}, that is '
            f'{timeout_s:g} s, but nodes show a sign of life every '
            f'{parameters.heartbeat_period_s:g} s; valid: at least {least}, or 0, or a lower '
            'heartbeat_period_s of guard and policy alike.'
        )
    return timeout_s
