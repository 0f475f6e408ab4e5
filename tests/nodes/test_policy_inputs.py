"""What the policy node makes of real cameras, grippers and states, and of those that fail."""

import threading
from collections import Counter

import numpy as np
import pytest
from std_msgs.msg import String
from vla_cache_interfaces.msg import ActionChunk as ActionChunkMessage
from vla_cache_interfaces.srv import SetInstruction

from vla_cache_ros.core.types import ActionChunk
from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.chunk_messages import chunk_to_message
from vla_cache_ros.nodes.conversions import stamp_to_ns

from .policy_robot import PIXELS, SECOND_NS, Robot, inference_threads

pytestmark = pytest.mark.ros

MS_NS = 1_000_000


def picture(seed: int, side: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)


@pytest.fixture
def make_robot(executor, spin_until, policy):
    def make(**parameters) -> Robot:
        return Robot(executor, spin_until, policy, **parameters).activate()

    return make


# Cameras


def test_compressed_images_are_unpacked(make_robot, policy):
    robot = make_robot(image_transport='compressed')
    robot.send(SECOND_NS)
    assert len(robot.expect_chunk(SECOND_NS)) == 8
    unpacked = policy.observations[0].images['wrist']
    assert np.abs(unpacked.astype(int) - PIXELS).max() <= 2  # what JPEG makes of one level


def test_a_damaged_compressed_image_is_a_drop(make_robot):
    robot = make_robot(image_transport='compressed')
    robot.send_state(SECOND_NS)
    robot.send_images(SECOND_NS, cameras=('agentview',))
    robot.send_images(SECOND_NS, cameras=('wrist',), data=[1, 2, 3])
    assert 'wrist' in robot.expect_drop('bad_image').detail
    robot.expect_alive(2 * SECOND_NS)


def test_cameras_out_of_step_are_paired_with_the_nearest(make_robot, policy):
    robot = make_robot(pairing_tolerance_s=0.017)
    for k in range(4):
        stamp_ns = SECOND_NS + k * 33 * MS_NS
        robot.send_state(stamp_ns)
        robot.send_images(stamp_ns, cameras=('agentview',))
        robot.send_images(stamp_ns + 14 * MS_NS, cameras=('wrist',))
        robot.expect_chunk(stamp_ns)
    assert len(policy.observations) == 4
    assert robot.node.drops == {}


def test_a_frozen_camera_is_dropped_until_it_moves_again(make_robot):
    robot = make_robot(frozen_image_timeout_s=0.25)
    for tenth in range(10, 13):
        robot.send_state(tenth * SECOND_NS // 10)
        robot.send_images(tenth * SECOND_NS // 10, pixels=picture(1))
        robot.expect_chunk(tenth * SECOND_NS // 10)
    stamp_ns = 13 * SECOND_NS // 10
    robot.send_state(stamp_ns)
    robot.send_images(stamp_ns, pixels=picture(1))
    assert 'same pixels for 0.30 s' in robot.expect_drop('frozen_image').detail
    assert len(robot.expect_chunk(stamp_ns)) == 0
    robot.send_state(2 * SECOND_NS)
    robot.send_images(2 * SECOND_NS, pixels=picture(2))
    assert len(robot.expect_chunk(2 * SECOND_NS)) == 8


def test_a_stamp_that_repeats_for_too_long_is_a_frozen_camera(make_robot, spin_for):
    robot = make_robot(frozen_image_timeout_s=0.1)
    robot.expect_alive(SECOND_NS)
    robot.chunks.clear()
    for _ in range(4):
        robot.send_images(SECOND_NS, cameras=('wrist',))
        spin_for(0.06)
    drops = robot.node.drops
    assert drops['repeated_stamp'] >= 1
    assert drops['frozen_image'] >= 1
    assert sum(drops.values()) == 4
    assert len(robot.expect_chunk(SECOND_NS)) == 0  # the robot stops
    robot.send_state(2 * SECOND_NS)
    robot.send_images(2 * SECOND_NS, pixels=picture(1))
    assert len(robot.expect_chunk(2 * SECOND_NS)) == 8


def test_a_black_picture_stops_the_robot(make_robot):
    robot = make_robot(black_image_contrast=2.0)
    robot.send_state(SECOND_NS)
    robot.send_images(SECOND_NS, cameras=('agentview',), pixels=picture(1))
    robot.send_images(SECOND_NS, cameras=('wrist',), pixels=np.zeros((16, 16, 3), np.uint8))
    assert 'wrist: contrast' in robot.expect_drop('black_image').detail
    assert len(robot.expect_chunk(SECOND_NS)) == 0


def test_another_resolution_flushes_and_goes_on(make_robot, policy):
    robot = make_robot()
    robot.expect_alive(SECOND_NS)
    before = len(policy.resets)
    for second in (2, 3):
        robot.send_state(second * SECOND_NS)
        robot.send_images(second * SECOND_NS, cameras=('agentview',))
        robot.send_images(second * SECOND_NS, cameras=('wrist',), pixels=picture(1, side=32))
        assert len(robot.expect_chunk(second * SECOND_NS)) == 8
    assert policy.resets[before:] == ['resolution change']


def test_every_image_ends_in_a_chunk_a_drop_or_waits(make_robot, policy, spin_for):
    """Frames in = frames processed + frames reported dropped + frames that wait."""
    robot = make_robot(frozen_image_timeout_s=0.2, refresh_frequency_hz=50.0)
    rng = np.random.default_rng(0)
    now_ns = 10 * SECOND_NS
    for index in range(60):
        now_ns += int(rng.integers(5, 40)) * MS_NS
        robot.send_state(now_ns)
        for camera in ('agentview', 'wrist'):
            fate = rng.choice(['good', 'good', 'good', 'lost', 'bad', 'late', 'repeated'])
            stamp_ns = now_ns + int(rng.integers(0, 12)) * MS_NS
            changes = {'encoding': '32FC1'} if fate == 'bad' else {}
            if fate != 'lost':
                robot.send_images(stamp_ns, (camera,), picture(int(index)), **changes)
                spin_for(0.003)
            if fate == 'repeated':
                robot.send_images(stamp_ns, (camera,), picture(index))
                spin_for(0.003)
    spin_for(0.2)
    drops = Counter(robot.node.drops)
    alone = ('unpaired_image', 'voided_image', 'repeated_stamp', 'missing_camera')
    alone += ('clock_backwards',)
    of_images = sum(drops[reason] for reason in alone)
    of_observations = drops.total() - of_images + len(policy.observations)
    inputs = robot.node.inputs
    assert inputs.images_received == of_images + 2 * of_observations + inputs.images_waiting
    assert len(policy.observations) > 5
    assert {'not_due', 'bad_image', 'repeated_stamp'} <= set(drops)


def test_refresh_rate_is_the_nodes_own(make_robot, policy, spin_for):
    robot = make_robot(refresh_frequency_hz=10.0)
    for k in range(12):  # 30 Hz
        robot.send(SECOND_NS + k * 33_333_333)
        spin_for(0.02)
    stamps = [observation.stamp_ns - SECOND_NS for observation in policy.observations]
    assert stamps == [k * 33_333_333 for k in (0, 3, 6, 9)]
    assert robot.node.drops == {'not_due': 8}
    assert all(len(chunk.actions) for chunk in robot.chunks)


# Robot state


def test_arm_and_gripper_on_topics_of_their_own(make_robot, policy):
    robot = make_robot(
        joint_state_topics=['arm/joint_states', 'gripper/joint_states'],
        gripper_joint_names=['robotiq_85_left_knuckle_joint'],
        gripper_open_position=[0.0],
        gripper_closed_position=[0.8],
    )
    robot.send_images(SECOND_NS)
    robot.send_state(SECOND_NS)
    robot.send_joints(SECOND_NS, elbow_joint=1.0)
    robot.send_joints(SECOND_NS + 3 * MS_NS, topic=1, robotiq_85_left_knuckle_joint=0.4)
    assert len(robot.expect_chunk(SECOND_NS)) == 8
    fingers = policy.observations[0].proprioception.gripper_position_m
    np.testing.assert_allclose(fingers, [0.02, -0.02], atol=1e-7)


def test_a_gripper_that_cannot_be_mapped_makes_configure_fail(executor, spin_until, policy):
    robot = Robot(executor, spin_until, policy, gripper_open_position=[0.04])
    from rclpy.lifecycle import TransitionCallbackReturn
    from rclpy.parameter import Parameter

    assert robot.node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert robot.state == 'unconfigured'
    assert robot.node.count_subscribers('joint_states') == 0
    robot.node.set_parameters([Parameter('gripper_open_position', value=[0.04, 0.04])])
    robot.activate().expect_alive(SECOND_NS)


def test_states_at_1000_hz_find_the_nearest(make_robot, policy, spin_for):
    robot = make_robot()
    robot.send_images(SECOND_NS)
    for k in range(-20, 20, 3):
        robot.send_state(SECOND_NS + k * MS_NS, x_m=float(k))
        spin_for(0.001)
    robot.expect_chunk(SECOND_NS)
    assert abs(policy.observations[0].proprioception.ee_position_m[0]) <= 10


# Instruction


def test_instruction_by_service_is_known_to_late_joiners(make_robot, policy, spin_until, spin_for):
    robot = make_robot()
    answer = robot.call(SetInstruction, 'set_instruction', instruction=' pull the point ')
    assert (answer.success, answer.instruction) == (True, 'pull the point')
    robot.send(SECOND_NS)
    robot.expect_chunk(SECOND_NS)
    assert policy.observations[-1].instruction == 'pull the point'
    assert robot.chunks[-1].instruction == 'pull the point'

    robot.instruction.publish(String(data='lift the point'))  # by topic, over the service's
    spin_until(lambda: robot.node._task.instruction == 'lift the point')
    heard: list[str] = []
    qos.subscribe(
        robot.peer,
        String,
        'vla/instruction',
        lambda message: heard.append(message.data),
        qos.latched(),
    )
    spin_until(lambda: heard)
    spin_for(0.2)  # of the topic's publisher and of the node, whichever comes last
    assert set(heard) == {'lift the point'}


def test_empty_instruction_by_service_is_refused(make_robot):
    robot = make_robot()
    answer = robot.call(SetInstruction, 'set_instruction', instruction='  ')
    assert not answer.success
    assert 'empty' in answer.message
    assert answer.instruction == 'push the point'
    robot.expect_alive(SECOND_NS)


# Committed actions


def commit(robot, spin_for, actions: np.ndarray, stamp_ns: int, instruction: str) -> None:
    publisher = qos.publish(robot.peer, ActionChunkMessage, 'vla/committed', qos.command())
    robot.spin_until(publisher.get_subscription_count)
    chunk = ActionChunk(actions, 0, instruction=instruction)
    publisher.publish(chunk_to_message(chunk, 20.0, step_ns=stamp_ns))
    spin_for(0.1)


def test_committed_actions_that_run_meanwhile_are_given_to_the_policy(
    executor, spin_until, policy, spin_for
):
    robot = Robot(executor, spin_until, policy, stale_image_timeout_s=60.0, use_sim_time=False)
    robot.activate()
    now_ns = robot.peer.get_clock().now().nanoseconds
    robot.send(now_ns - 120 * MS_NS)  # at least 120 ms from stamp to chunk: three periods
    robot.expect_chunk(now_ns - 120 * MS_NS)
    assert policy.observations[-1].committed is None
    rows = np.repeat(np.arange(10, dtype=np.float32)[:, None], 7, axis=1)
    commit(robot, spin_for, rows, now_ns - 100 * MS_NS, 'push the point')
    robot.send(now_ns)
    robot.expect_chunk(now_ns)
    committed = policy.observations[-1].committed
    assert committed[0, 0] == 2  # the one due with the observation
    assert len(committed) >= 3
    robot.tell('pull the point')
    robot.send(now_ns + 40 * MS_NS)
    robot.expect_chunk(now_ns + 40 * MS_NS)
    assert policy.observations[-1].committed is None  # those were of another task


def test_a_damaged_commitment_is_counted_and_ignored(make_robot, policy, spin_for):
    robot = make_robot()
    publisher = qos.publish(robot.peer, ActionChunkMessage, 'vla/committed', qos.command())
    robot.spin_until(publisher.get_subscription_count)
    publisher.publish(ActionChunkMessage(axes=['x'], actions=[1.0]))
    robot.expect_drop('bad_committed')
    robot.expect_alive(SECOND_NS)
    assert all(len(chunk.actions) for chunk in robot.chunks)


# Answers that must not go out


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_a_chunk_that_is_not_finite_is_never_published(make_robot, policy, value):
    robot = make_robot()
    policy.fill = value
    robot.send(SECOND_NS)
    robot.expect_drop('non_finite_chunk')
    assert len(robot.expect_chunk(SECOND_NS)) == 0
    policy.fill = None
    robot.expect_alive(2 * SECOND_NS)
    assert policy.resets[-1] == 'fault'
    assert all(np.isfinite(chunk.actions).all() for chunk in robot.chunks)


def test_deactivate_during_inference_revokes_at_once_and_leaves_no_thread(make_robot, policy):
    robot = make_robot()
    policy.go.clear()
    robot.send(SECOND_NS)
    robot.spin_until(policy.begun.is_set)
    threading.Timer(0.3, policy.go.set).start()
    robot.node.trigger_deactivate()  # waits for the step in work
    robot.spin_until(lambda: len(robot.reports) >= 1)
    assert [len(chunk.actions) for chunk in robot.chunks] == [0]
    assert robot.reports[-1].dropped == 'superseded'
    assert stamp_to_ns(robot.reports[-1].header.stamp) == SECOND_NS
    assert not inference_threads()
    robot.node.trigger_activate()
    robot.expect_alive(2 * SECOND_NS)
    robot.node.trigger_deactivate()
    robot.node.trigger_cleanup()
    assert not inference_threads()
