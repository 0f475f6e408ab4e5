"""Parameters of command_sink."""

import dataclasses

from vla_cache_ros.core.twist import FRAMES
from vla_cache_ros.nodes.parameter_tables.arm import ArmParameters
from vla_cache_ros.nodes.parameters import parameter

SINKS = ('twist', 'joint_trajectory', 'none')
GRIPPERS = ('none', 'joint_trajectory', 'gripper_command', 'parallel_gripper_command')


@dataclasses.dataclass(frozen=True)
class SinkParameters(ArmParameters):
    """Parameters of command_sink; read at each configure."""

    sink: str = parameter(
        'twist',
        'What the arm is driven by: velocities for MoveIt Servo, joint targets for a '
        'joint_trajectory_controller, or nothing.',
        choices=SINKS,
    )
    gripper: str = parameter(
        'none',
        'What the gripper is driven by: a joint_trajectory_controller, an action of control_msgs '
        'where that package is installed, or nothing.',
        choices=GRIPPERS,
    )
    control_frequency_hz: float = parameter(
        20.0,
        "Commands per second, as the guard's; a delta is executed for one period of it.",
        unit='Hz',
        valid=(0.1, 1000.0),
    )
    position_scale_m: float = parameter(
        0.05,
        "Metres per unit of x, y, z and step, as the guard's: 1 where actions are metres.",
        unit='m',
        valid=(1e-6, 1000.0),
    )
    rotation_scale_rad: float = parameter(
        0.5,
        "Radians per unit of rx, ry, rz and step, as the guard's: 1 where actions are radians.",
        unit='rad',
        valid=(1e-6, 1000.0),
    )
    command_timeout_s: float = parameter(
        0.2,
        "Age of a command's stamp beyond which it is not executed; after as long without one, "
        'joint targets begin anew where the arm is.',
        unit='s',
        valid=(0.001, 10.0),
    )
    heartbeat_timeout_periods: float = parameter(
        2.0,
        "Silence of the guard's heartbeat, in control periods, after which the arm is stopped and "
        'commands are refused. Its heartbeat_period_s must be well below.',
        valid=(0.5, 100.0),
    )
    dry_run: bool = parameter(
        False, 'Send what the robot would get to ~/dry_run/<topic> instead, and move nothing.'
    )
    publish_frequency_hz: float = parameter(
        100.0,
        "twist: velocities per second; the servo's own rate.",
        unit='Hz',
        valid=(1.0, 2000.0),
    )
    frame_id: str = parameter(
        'base_link', "twist: frame of the deltas' axes, a link of the base or of the tool."
    )
    delta_frame: str = parameter(
        'base', "joint_trajectory: whose axes the deltas' are.", choices=FRAMES
    )
    max_joint_speed_rad_s: float = parameter(
        1.0,
        "joint_trajectory: greatest speed of a joint beside the description's own (of a "
        'prismatic one in m/s). A delta that needs more is refused.',
        unit='rad/s',
        valid=(0.001, 20.0),
    )
    joint_limit_margin_rad: float = parameter(
        0.02,
        "joint_trajectory: distance kept from the joints' limits.",
        unit='rad',
        valid=(0.0, 1.0),
    )
    max_following_error_rad: float = parameter(
        0.2,
        'joint_trajectory: distance of a joint from its target beyond which the command is '
        'refused and targets begin anew where the arm is.',
        unit='rad',
        valid=(0.001, 3.2),
    )
    state_timeout_s: float = parameter(
        0.5,
        'joint_trajectory: age of the newest joint state beyond which commands are refused.',
        unit='s',
        valid=(0.001, 10.0),
    )
    position_tolerance_m: float = parameter(
        0.001,
        "joint_trajectory: distance of the tool from the delta's end up to which it counts as "
        'reached.',
        unit='m',
        valid=(1e-6, 0.1),
    )
    rotation_tolerance_rad: float = parameter(
        0.01,
        'joint_trajectory: the same for its orientation; 3.2 leaves it free where it cannot be '
        'had, as with five joints.',
        unit='rad',
        valid=(1e-6, 3.2),
    )
    rotation_weight_m: float = parameter(
        0.2,
        'joint_trajectory: metres that a radian is worth where not both can be reached; 0.01 '
        'with five joints.',
        unit='m',
        valid=(1e-6, 10.0),
    )
    gripper_joint_names: tuple[str, ...] = parameter(('gripper',), "The gripper's joints.")
    gripper_open_position: tuple[float, ...] = parameter(
        (0.04,), 'Position of each when open, metres or radians.'
    )
    gripper_closed_position: tuple[float, ...] = parameter((0.0,), 'The same when closed.')
    gripper_threshold: float = parameter(
        0.2,
        'Gripper values within this distance of 0 change nothing.',
        valid=(0.0, 0.99),
    )
    gripper_travel_time_s: float = parameter(
        0.5,
        'joint_trajectory: time for the way between open and closed.',
        unit='s',
        valid=(0.01, 10.0),
    )
    gripper_action: str = parameter(
        'gripper_controller/gripper_cmd', "Name of the gripper's action."
    )
    gripper_max_effort: float = parameter(
        0.0,
        "Greatest effort of the gripper's action, newtons or newton metres; 0: the driver's own.",
        valid=(0.0, 1000.0),
    )
