"""Parameters of fault_injector."""

import dataclasses

from vla_cache_ros.core.frame_faults import FAULTS, NO_FAULT
from vla_cache_ros.nodes.parameters import parameter


@dataclasses.dataclass(frozen=True)
class FaultInjectorParameters:
    """Parameters of fault_injector; `fault` may change at any time, the others are fixed."""

    camera_names: tuple[str, ...] = parameter(
        ('agentview', 'wrist'),
        'Cameras to relay, from source/camera/<name>/image_raw to camera/<name>/image_raw.',
        read_only=True,
    )
    faulty_cameras: tuple[str, ...] = parameter(
        ('agentview',), 'Those of them that faults of images concern.', read_only=True
    )
    fault: str = parameter(
        NO_FAULT, 'What is wrong now; set it while the graph runs.', choices=FAULTS
    )
    delay_s: float = parameter(
        0.2,
        "Time by which `delayed` holds the faulty cameras' images back.",
        unit='s',
        valid=(0.0, 10.0),
        read_only=True,
    )
    clock_jump_s: float = parameter(
        1.0,
        'Distance by which `clock_forward` and `clock_backward` move the stamps of all inputs.',
        unit='s',
        valid=(0.0, 3600.0),
        read_only=True,
    )
    restamp: bool = parameter(
        False,
        "Stamp inputs with this node's clock at receipt instead of their own stamp: a simulator "
        "then looks like a robot's sensors. Inputs of one stamp keep one stamp.",
        read_only=True,
    )
