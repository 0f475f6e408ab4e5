"""Forward kinematics against a plain product of transforms; the Jacobian against differences."""

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_cache_ros.core.errors import ConfigError, RobotError
from vla_cache_ros.robot import kinematics as kinematics_module
from vla_cache_ros.robot.kinematics import Kinematics, read_urdf

FOLDER = Path(__file__).parent
SEVEN = (FOLDER / 'seven_joints.urdf').read_text()
FIVE = (FOLDER / 'five_joints.urdf').read_text()
CHAINS = [(SEVEN, 'link0', 'tcp'), (FIVE, 'base_link', 'tip'), (FIVE, 'world', 'tip')]
ANGLES = st.lists(st.floats(-3, 3), min_size=7, max_size=7).map(np.array)


def transform(xyz: str, rpy: str) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler('xyz', [float(part) for part in rpy.split()]).as_matrix()
    matrix[:3, 3] = [float(part) for part in xyz.split()]
    return matrix


def walked(urdf: str, base: str, tip: str, positions: dict[str, float]) -> np.ndarray:
    """Multiply the URDF's transforms from tip up to base."""
    joints = {
        joint.find('child').attrib['link']: joint
        for joint in ElementTree.fromstring(urdf).iter('joint')
    }
    matrix, link = np.eye(4), tip
    while link != base:
        joint = joints[link]
        origin = joint.find('origin').attrib
        turn = np.eye(4)
        if joint.attrib['name'] in positions:
            axis = np.array([float(part) for part in joint.find('axis').attrib['xyz'].split()])
            angle = positions[joint.attrib['name']]
            turn[:3, :3] = Rotation.from_rotvec(angle * axis).as_matrix()
        matrix = transform(origin['xyz'], origin['rpy']) @ turn @ matrix
        link = joint.find('parent').attrib['link']
    return matrix


@given(ANGLES, st.sampled_from(CHAINS))
def test_the_pose_is_the_product_of_the_descriptions_transforms(angles, chain):
    arm = Kinematics(*chain)
    joints = angles[: len(arm.joint_names)]
    pose = arm.pose(joints)
    wanted = walked(*chain, dict(zip(arm.joint_names, joints, strict=True)))
    assert pose.position_m == pytest.approx(wanted[:3, 3], abs=1e-9)
    assert pose.rotation == pytest.approx(wanted[:3, :3], abs=1e-9)
    quaternion = arm.quaternion_xyzw(pose.rotation)
    assert Rotation.from_quat(quaternion).as_matrix() == pytest.approx(pose.rotation, abs=1e-9)


@given(ANGLES, st.sampled_from(CHAINS))
def test_the_jacobian_is_the_derivative_of_the_pose(angles, chain):
    arm = Kinematics(*chain)
    joints = angles[: len(arm.joint_names)]
    jacobian, step = arm.jacobian(joints), 1e-6
    for column in range(len(joints)):
        moved = joints.copy()
        moved[column] += step
        before, after = arm.pose(joints), arm.pose(moved)
        turned = Rotation.from_matrix(after.rotation @ before.rotation.T).as_rotvec()
        difference = np.concatenate([after.position_m - before.position_m, turned]) / step
        assert jacobian[:, column] == pytest.approx(difference, abs=1e-4)


def test_limits_speeds_and_names_are_the_descriptions(seven, five):
    assert seven.joint_names == tuple(f'joint{index}' for index in range(1, 8))
    assert seven.lower[3] == pytest.approx(-3.0718)
    assert seven.upper[3] == pytest.approx(-0.0698)
    assert seven.max_speed == pytest.approx([2.175] * 4 + [2.61] * 3)
    # The last joint turns for ever and names no speed.
    assert five.lower[4] == -math.inf
    assert five.upper[4] == math.inf
    assert five.max_speed[4] == math.inf


def test_joints_come_in_the_order_that_was_asked_for(five):
    turned_round = Kinematics(FIVE, 'base_link', 'tip', five.joint_names[::-1])
    joints = np.array([0.3, -0.4, 0.5, 0.6, 4.0])
    same = turned_round.pose(joints[::-1].copy())
    assert same.position_m == pytest.approx(five.pose(joints).position_m)
    assert turned_round.jacobian(joints[::-1].copy()) == pytest.approx(
        five.jacobian(joints)[:, ::-1]
    )
    assert turned_round.upper[0] == math.inf
    assert turned_round.max_speed == pytest.approx(five.max_speed[::-1])


@pytest.mark.parametrize(
    ('urdf', 'base', 'tip', 'names', 'message'),
    [
        ('', 'link0', 'tcp', (), 'no valid URDF'),
        ('<robot', 'link0', 'tcp', (), 'no valid URDF'),
        ('<html></html>', 'link0', 'tcp', (), 'no valid URDF'),
        ('\x00\xff', 'link0', 'tcp', (), 'no valid URDF'),
        (SEVEN.replace('"revolute"', '"strange"'), 'link0', 'tcp', (), 'no valid URDF'),
        (SEVEN.replace('<link name="link0"/>', ''), 'link0', 'tcp', (), 'no valid URDF'),
        (SEVEN, 'link0', 'nowhere', (), "tip_link 'nowhere' is no link .* valid: link0, link1"),
        (SEVEN, 'joint1', 'tcp', (), "base_link 'joint1' is no link"),
        (SEVEN, 'tcp', 'link0', (), 'base_link must come before tip_link'),
        (SEVEN, 'hand', 'tcp', (), 'no joint moves'),
        (SEVEN, 'left_finger', 'right_finger', (), 'base_link must come before'),
        (SEVEN, 'link0', 'tcp', ('joint1', 'elbow'), 'the description has: joint1, joint2'),
        (SEVEN.replace('"revolute"', '"floating"', 1), 'link0', 'tcp', (), 'more than one axis'),
    ],
)
def test_a_description_that_cannot_be_used_is_refused_with_what_would_be_valid(
    urdf, base, tip, names, message
):
    with pytest.raises(RobotError, match=message):
        Kinematics(urdf, base, tip, names)


@given(st.binary(max_size=200))
def test_no_text_is_a_description_by_accident(data):
    with pytest.raises(RobotError):
        Kinematics(data.decode('utf-8', 'replace'), 'link0', 'tcp')


@given(st.integers(0, len(SEVEN) - 10))
def test_a_description_that_was_cut_is_refused(length):
    with pytest.raises(RobotError):
        Kinematics(SEVEN[:length], 'link0', 'tcp')


def test_joints_are_picked_out_of_a_joint_state_by_name(five):
    names = ['other', *five.joint_names[::-1]]
    picked = five.ordered(names, [9.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    assert picked.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    with pytest.raises(RobotError, match='lack wrist_roll; they hold: pan, lift'):
        five.ordered(five.joint_names[:4], [0.0] * 4)
    with pytest.raises(RobotError, match='lack'):
        five.ordered(five.joint_names, [])
    with pytest.raises(RobotError, match='NaN'):
        five.ordered(five.joint_names, [math.nan] * 5)


def test_a_file_that_is_no_description_is_refused(tmp_path, monkeypatch):
    with pytest.raises(RobotError, match='cannot be read'):
        read_urdf(str(tmp_path / 'missing.urdf'))
    with pytest.raises(RobotError, match='cannot be read'):
        read_urdf(str(tmp_path))
    path = tmp_path / 'robot.urdf'
    path.write_bytes(b'\xff\xfe\x00')
    with pytest.raises(RobotError, match='cannot be read'):
        read_urdf(str(path))
    path.write_text('<robot><xacro:include filename="x"/></robot>')
    with pytest.raises(RobotError, match='expand it first'):
        read_urdf(str(path))
    monkeypatch.setattr(kinematics_module, '_MAX_BYTES', 10)
    with pytest.raises(RobotError, match='larger than'):
        read_urdf(str(path))


def test_without_pinocchio_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'pinocchio', None)
    with pytest.raises(ConfigError, match='make setup-robot'):
        Kinematics(SEVEN, 'link0', 'tcp')
