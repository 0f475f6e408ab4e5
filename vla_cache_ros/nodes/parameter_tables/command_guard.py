"""Parameters of command_guard."""

import dataclasses

from vla_cache_ros.core.execution_base import MODES
from vla_cache_ros.core.guard_config import LIMIT_POLICIES
from vla_cache_ros.nodes.parameters import ManagedParameters, parameter


@dataclasses.dataclass(frozen=True)
class GuardParameters(ManagedParameters):
    """Parameters of command_guard; read at each configure."""

    autostart: bool = parameter(
        True,
        'Configure and activate without being told, once spinning: the guard is up before '
        'anything that may move the robot.',
        read_only=True,
    )
    control_frequency_hz: float = parameter(
        20.0,
        'Commands per second in timer pacing, and the rate that the actions of a chunk are made '
        'for: 20 for LIBERO, 5 for BridgeData.',
        unit='Hz',
        valid=(0.1, 1000.0),
    )
    pacing: str = parameter(
        'timer',
        'timer: one command per period; state: one command per joint state (lockstep simulation).',
        choices=('timer', 'state'),
    )
    dry_run: bool = parameter(
        False, 'Compute and report commands on vla/status, but do not publish them on vla/action.'
    )

    chunk_execution: str = parameter(
        'open_loop',
        'open_loop: a chunk from its first action on; ensemble: the mean of all chunks that cover '
        'the step; prefix: each action at its due time, so that inference hides behind the chunk '
        'before (real-time chunking).',
        choices=MODES,
    )
    actions_per_chunk: int = parameter(
        4,
        'Actions of each chunk until the next one is late; in ensemble and prefix counted from '
        "the image, so the policy's period plus its latency, e.g. 8 + 3.",
        unit='steps',
        valid=(1, 1000),
    )
    run_on_steps: int = parameter(
        1000,
        'Timer pacing: how many more actions of the chunk are executed while the next one is late '
        '(degradation on_chunk), before the arm is held; 1000: to its end.',
        unit='steps',
        valid=(0, 1000),
    )
    lockstep_delay_steps: int = parameter(
        0,
        'State pacing with ensemble or prefix: steps that an inference is taken to last, so that '
        'a chunk takes over that late; 0: no time, as open loop.',
        unit='steps',
        valid=(0, 1000),
    )
    ensemble_decay: float = parameter(
        0.01,
        "ensemble: m of the weights exp(-m i), i = 0 the oldest chunk; 0.01 is ACT's, below 0 "
        'favours the newest.',
        valid=(-10.0, 10.0),
    )

    stale_image_timeout_s: float = parameter(
        1.0,
        'Age of the image behind an action beyond which the action is not sent. The last action '
        "of a chunk is as old as the chunk's execution plus the inference.",
        unit='s',
        valid=(0.01, 60.0),
    )
    instruction_timeout_s: float = parameter(
        0.0,
        'Time since vla/instruction was published last beyond which nothing moves, for operators '
        'who must confirm, e.g. 30; 0: never.',
        unit='s',
        valid=(0.0, 86400.0),
    )
    state_timeout_s: float = parameter(
        0.2,
        'Age of ee_pose (with a workspace) and joint_states (with joint limits) beyond which '
        'nothing moves.',
        unit='s',
        valid=(0.005, 10.0),
    )
    policy_heartbeat_topic: str = parameter(
        'policy_node/heartbeat', "The policy's signs of life (vla_cache_interfaces/Heartbeat)."
    )
    heartbeat_timeout_periods: float = parameter(
        2.0,
        'Timer pacing: silence of the policy, in command periods, after which its chunk is '
        'revoked and the arm held until it is back with a newer one; 0: not watched.',
        unit='periods',
        valid=(0.0, 10000.0),
    )

    lower_limits: tuple[float, ...] = parameter(
        (-1.0,) * 7,
        "Least value of each axis (x, y, z, rx, ry, rz, gripper) in the action's own units, for "
        'LIBERO 1 being full speed.',
    )
    upper_limits: tuple[float, ...] = parameter(
        (1.0,) * 7, 'Greatest value of each axis, in the same order.'
    )
    on_limit: str = parameter(
        'clip',
        'Axis and velocity limits. clip: send a value as the limit, scale a vector down; null: '
        'send the null action instead.',
        choices=LIMIT_POLICIES,
    )
    position_scale_m: float = parameter(
        0.05,
        "Metres per unit of x, y, z and step: 0.05 for LIBERO's models, 1 where actions are "
        'metres (OpenVLA on BridgeData and others).',
        unit='m',
        valid=(1e-6, 1000.0),
    )
    rotation_scale_rad: float = parameter(
        0.5,
        "Radians per unit of rx, ry, rz and step: 0.5 for LIBERO's models, 1 where actions are "
        'radians.',
        unit='rad',
        valid=(1e-6, 1000.0),
    )
    max_linear_velocity_m_s: float = parameter(
        0.0,
        'Greatest speed of the end effector, e.g. 0.25 beside people; 0: not limited.',
        unit='m/s',
        valid=(0.0, 100.0),
    )
    max_angular_velocity_rad_s: float = parameter(
        0.0,
        'Greatest speed of rotation, e.g. 1.0; 0: not limited.',
        unit='rad/s',
        valid=(0.0, 100.0),
    )
    max_linear_acceleration_m_s2: float = parameter(
        0.0,
        'Greatest change of velocity per time, e.g. 2.0; stops are exempt; 0: not limited.',
        unit='m/s^2',
        valid=(0.0, 10000.0),
    )
    max_angular_acceleration_rad_s2: float = parameter(
        0.0,
        'The same of rotation, e.g. 8.0; 0: not limited.',
        unit='rad/s^2',
        valid=(0.0, 10000.0),
    )
    max_linear_jump_m: float = parameter(
        0.0,
        "Greatest difference between two successive actions' displacements, beyond which the null "
        'action is sent, e.g. 0.06; 0: not checked.',
        unit='m',
        valid=(0.0, 10.0),
    )
    max_angular_jump_rad: float = parameter(
        0.0, 'The same of rotation, e.g. 0.6; 0: not checked.', unit='rad', valid=(0.0, 10.0)
    )
    gripper_interval_s: float = parameter(
        0.0,
        'Least time between two switches of the gripper, e.g. 0.5; 0: not limited.',
        unit='s',
        valid=(0.0, 60.0),
    )
    workspace_lower_m: tuple[float, ...] = parameter(
        (),
        'Corner of the box that the end effector stays in, in the frame of ee_pose, e.g. [0.2, '
        "-0.4, 0.02]. Leave a margin of the greatest speed times the controller's lag; empty: not "
        'checked.',
        unit='m',
    )
    workspace_upper_m: tuple[float, ...] = parameter(
        (), 'The opposite corner, e.g. [0.7, 0.4, 0.6].', unit='m'
    )
    joint_names: tuple[str, ...] = parameter(
        (), 'Joints whose limits are watched, as in joint_states; empty: none.'
    )
    joint_lower_limits_rad: tuple[float, ...] = parameter(
        (), 'Least position of each of joint_names.', unit='rad'
    )
    joint_upper_limits_rad: tuple[float, ...] = parameter(
        (), 'Greatest position of each of joint_names.', unit='rad'
    )
    joint_margin_rad: float = parameter(
        0.05,
        'Distance from a joint limit at which the arm is held; then move it away by hand.',
        unit='rad',
        valid=(0.0, 3.0),
    )
    joint_velocity_limits_rad_s: tuple[float, ...] = parameter(
        (), 'Greatest measured speed of each of joint_names; empty: not checked.', unit='rad/s'
    )

    freeze_garbage: bool = parameter(
        False,
        'At activation, take what exists out of the garbage collection, which then pauses '
        'commands for less time; for a process of its own.',
    )
    realtime_priority: int = parameter(
        0,
        "SCHED_FIFO priority of the executor's thread while active, e.g. 50; it needs the right "
        'to (ulimit -r); 0: an ordinary thread.',
        valid=(0, 99),
    )
