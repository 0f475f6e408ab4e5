"""What the example configurations tell the policy node is something that it can do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from vla_cache_ros.core.deadline import DeadlineConfig
from vla_cache_ros.core.gripper import TRAINED_CLOSED_M, TRAINED_OPEN_M, GripperMap
from vla_cache_ros.nodes.parameter_tables.policy_node import PolicyParameters
from vla_cache_ros.nodes.policy_shadow import shadow_config

pytestmark = pytest.mark.ros

NODE = '/**/policy_node'
CONFIGS = [
    path
    for path in sorted(Path(__file__).parents[2].glob('config/*.yaml'))
    if NODE in yaml.safe_load(path.read_text(encoding='utf-8'))
]


def parameters_of(path: Path) -> PolicyParameters:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding='utf-8'))
    values = content[NODE]['ros__parameters']
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return PolicyParameters(**{**values, **lists})


def test_there_are_configurations_of_robots_and_simulators():
    assert len(CONFIGS) >= 6


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_gripper_shadow_and_deadline_of_every_configuration_can_be_had(path):
    parameters = parameters_of(path)
    gripper = GripperMap(
        parameters.gripper_joint_names,
        parameters.gripper_open_position,
        parameters.gripper_closed_position,
    )
    opened = gripper.fingers(parameters.gripper_open_position)
    closed = gripper.fingers(parameters.gripper_closed_position)
    np.testing.assert_allclose(opened, TRAINED_OPEN_M, atol=1e-6)
    np.testing.assert_allclose(closed, TRAINED_CLOSED_M, atol=1e-6)
    shadow_config(parameters)
    DeadlineConfig(parameters.refresh_deadline_ms)
