"""Parameters of policy_node."""

import dataclasses

from vla_cache_ros.core.config import PRESETS
from vla_cache_ros.core.gripper import TRAINED_CLOSED_M, TRAINED_OPEN_M
from vla_cache_ros.nodes.parameters import ManagedParameters, parameter
from vla_cache_trt.backends import backend_names


@dataclasses.dataclass(frozen=True)
class PolicyParameters(ManagedParameters):
    """Parameters of policy_node; read at each configure."""

    checkpoint: str = parameter(
        '',
        "Folder of the checkpoint: this project's own, OpenVLA, OpenVLA-OFT or CogACT; empty "
        'means the weights that the package brings.',
    )
    dtype: str = parameter(
        'float32',
        'Number format of weights and activations.',
        choices=('float32', 'bfloat16', 'float16'),
    )
    device: str = parameter('cpu', "Device that the model runs on: 'cpu', 'cuda', 'cuda:1', ..")
    backend: str = parameter(
        'torch',
        'What runs the policy: PyTorch, or an engine that `vla-cache engine build` built before. '
        'The node itself builds nothing: a robot must not wait for a compiler.',
        choices=backend_names(),
    )
    precision: str = parameter(
        '', 'What the engine computes in: fp32, bf16, fp16 or int8; empty means as dtype.'
    )
    engine_folder: str = parameter(
        '',
        'Where engines lie; empty means $VLA_CACHE_ENGINES, or ~/.cache/vla_cache_ros/engines.',
    )
    cache_preset: str = parameter(
        'safe',
        'Token reuse: off (every token in every step), safe, the published rules, or a baseline.',
        choices=PRESETS,
    )
    unnorm_key: str = parameter(
        '', "Dataset whose statistics scale the actions; empty means the checkpoint's only one."
    )
    embodiment: str = parameter(
        '',
        'Conventions of the robot (images, rotation, gripper): libero, bridge, google_robot, '
        'finetuned or generic; empty means by unnorm_key.',
    )
    control_frequency_hz: float = parameter(
        20.0,
        'Rate at which the actions of a chunk follow one another.',
        unit='Hz',
        valid=(0.1, 1000.0),
    )
    pairing_tolerance_s: float = parameter(
        0.01,
        'Greatest difference between the stamps of one observation.',
        unit='s',
        valid=(0.0, 1.0),
    )
    stale_image_timeout_s: float = parameter(
        0.5,
        'Age beyond which an image is dropped, and silence after which a camera is reported '
        'missing.',
        unit='s',
        valid=(0.01, 60.0),
    )
    image_transport: str = parameter(
        'raw',
        'How the cameras send, by the names of image_transport: camera/<name>/image_raw, or '
        'camera/<name>/image_raw/compressed.',
        choices=('raw', 'compressed'),
    )
    joint_state_topics: tuple[str, ...] = parameter(
        ('joint_states',),
        'Where joint states come from; arm and gripper may have topics of their own.',
    )
    gripper_joint_names: tuple[str, ...] = parameter(
        ('panda_finger_joint1', 'panda_finger_joint2'),
        "The gripper's joints in the joint states: two fingers, or one joint for both.",
    )
    gripper_open_position: tuple[float, ...] = parameter(
        TRAINED_OPEN_M,
        "Each gripper joint's position when open, in its own unit; mapped onto the gripper that "
        'the policies were trained on, whose defaults these are.',
    )
    gripper_closed_position: tuple[float, ...] = parameter(
        TRAINED_CLOSED_M,
        "Each gripper joint's position when closed.",
    )
    frozen_image_timeout_s: float = parameter(
        0.0,
        'A camera whose picture, or stamp, repeats for longer than this is dropped as frozen; 0: '
        'never. A simulated scene at rest repeats, a real sensor does not.',
        unit='s',
        valid=(0.0, 60.0),
    )
    black_image_contrast: float = parameter(
        0.0,
        'A picture whose levels have a smaller standard deviation is dropped as black; 0: none. '
        'A covered lens has about 1, a lit scene more than 20.',
        unit='of 255 levels',
        valid=(0.0, 128.0),
    )
    refresh_frequency_hz: float = parameter(
        0.0,
        "Greatest rate of policy steps; 0: every frame. The command rate is the guard's.",
        unit='Hz',
        valid=(0.0, 1000.0),
    )
    refresh_deadline_ms: float = parameter(
        0.0,
        'Time within which a chunk has to follow its images; late ones raise the reuse towards '
        'its safe limit. 0: no deadline.',
        unit='ms',
        valid=(0.0, 60000.0),
    )
    refresh_deadline_from: str = parameter(
        'stamp',
        "What the deadline counts from: the oldest image's stamp, or the receipt of the last "
        'input.',
        choices=('stamp', 'receipt'),
    )
    shadow_every_steps: int = parameter(
        0,
        'Policy steps after which a cached chunk is compared with the dense one of the same '
        'observation; 0: by shadow_when_idle alone.',
        unit='steps',
        valid=(0, 100000),
    )
    shadow_when_idle: bool = parameter(
        False, 'Compare whenever no observation waits once a chunk was published.'
    )
    shadow_gives_way: bool = parameter(
        True,
        'Put a comparison off while an observation waits. False: make it on its turn; the next '
        'chunk may then be late by one dense step.',
    )
    shadow_alarm_budget: float = parameter(
        0.04,
        'Running mean difference from dense beyond which shadow mode alarms.',
        unit='action units',
        valid=(0.0, 1000.0),
    )
    shadow_off_budget: float = parameter(
        0.08,
        'Running mean difference beyond which the reuse switches itself off until ~/reset.',
        unit='action units',
        valid=(0.0, 1000.0),
    )
