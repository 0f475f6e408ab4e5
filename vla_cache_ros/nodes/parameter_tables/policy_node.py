"""Parameters of policy_node."""

import dataclasses

from vla_cache_ros.core.config import PRESETS
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
    gripper_joint_names: tuple[str, ...] = parameter(
        ('panda_finger_joint1', 'panda_finger_joint2'),
        'The two finger joints in the joint states.',
    )
