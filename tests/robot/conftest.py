"""Two arms of the tests' own: seven joints, and five on a stand that is turned."""

from pathlib import Path

import pytest

from vla_cache_ros.robot.kinematics import Kinematics, read_urdf

FOLDER = Path(__file__).parent


@pytest.fixture(scope='session')
def seven() -> Kinematics:
    return Kinematics(read_urdf(str(FOLDER / 'seven_joints.urdf')), 'link0', 'tcp')


@pytest.fixture(scope='session')
def five() -> Kinematics:
    return Kinematics(read_urdf(str(FOLDER / 'five_joints.urdf')), 'base_link', 'tip')
