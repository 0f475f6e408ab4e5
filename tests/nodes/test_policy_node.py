"""The policy node: every transition, every bad input by name, and it always stays alive."""

import json

import numpy as np
import pytest
from lifecycle_msgs.msg import State
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_msgs.msg import String
from std_srvs.srv import Trigger

from vla_cache_ros.core.errors import (
    CheckpointError,
    ConfigError,
    EngineError,
    ObservationError,
    UnknownNameError,
)
from vla_cache_ros.nodes.conversions import (
    stamp_to_ns,
)
from vla_cache_ros.nodes.parameter_tables.policy_node import PolicyParameters
from vla_cache_ros.nodes.policy_loading import load_policy
from vla_cache_ros.nodes.step_messages import message_to_step

from .policy_robot import PIXELS, SECOND_NS, SUCCESS, Robot, inference_threads

pytestmark = pytest.mark.ros


@pytest.fixture
def robot(executor, spin_until, policy):
    return Robot(executor, spin_until, policy)


# Lifecycle


def test_every_transition_in_turn(robot, policy):
    node = robot.node
    assert robot.state == 'unconfigured'
    assert robot.configured == []
    for _ in range(2):  # what was freed can be allocated again
        assert node.trigger_configure() == SUCCESS
        assert robot.state == 'inactive'
        assert node.trigger_activate() == SUCCESS
        assert robot.state == 'active'
        assert node.trigger_deactivate() == SUCCESS
        assert robot.state == 'inactive'
        assert node.trigger_cleanup() == SUCCESS
        assert robot.state == 'unconfigured'
        assert node._inference is None
        assert node.count_subscribers('joint_states') == 0
    assert len(robot.configured) == 2
    assert node.trigger_shutdown() == SUCCESS
    assert robot.state == 'finalized'


@pytest.mark.parametrize('begin', ['unconfigured', 'inactive', 'active'])
def test_shutdown_from_every_state(robot, begin):
    if begin != 'unconfigured':
        robot.node.trigger_configure()
    if begin == 'active':
        robot.node.trigger_activate()
    assert robot.state == begin
    assert robot.node.trigger_shutdown() == SUCCESS
    assert robot.state == 'finalized'
    assert robot.node._inference is None
    assert not inference_threads()


def test_policy_that_cannot_be_loaded_leaves_the_node_unconfigured(robot):
    robot.failure = CheckpointError('the weights are truncated.')
    assert robot.node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert robot.state == 'unconfigured'
    robot.failure = None
    assert robot.node.trigger_configure() == SUCCESS


def test_unforeseen_error_is_handled_and_the_node_can_be_configured_again(robot):
    robot.failure = RuntimeError('out of memory')
    assert robot.node.trigger_configure() == TransitionCallbackReturn.ERROR
    assert robot.state == 'unconfigured'
    robot.failure = None
    robot.activate().expect_alive(SECOND_NS)


def test_parameters_are_read_at_each_configure(robot):
    robot.node.trigger_configure()
    robot.node.trigger_cleanup()
    robot.node.set_parameters([Parameter('cache_preset', value='off')])
    robot.node.trigger_configure()
    assert [parameters.cache_preset for parameters in robot.configured] == ['safe', 'off']


def test_inactive_node_neither_acts_nor_counts(robot, policy, spin_for):
    robot.node.trigger_configure()
    robot.wait_for_peers()
    robot.tell('push the point')
    robot.send(SECOND_NS)
    spin_for(0.1)
    assert policy.observations == []
    assert robot.chunks == []
    assert robot.node.drops == {}


def test_deactivate_revokes_the_chunk(robot, spin_until):
    robot.activate().expect_alive(SECOND_NS)
    robot.chunks.clear()
    robot.node.trigger_deactivate()
    spin_until(lambda: robot.chunks)
    assert len(robot.chunks[0].actions) == 0


def test_autostart_configures_and_activates(executor, spin_until, policy):
    robot = Robot(executor, spin_until, policy, autostart=True)
    spin_until(lambda: robot.state == 'active')


def test_transitions_by_service(robot, spin_until):
    from lifecycle_msgs.srv import ChangeState, GetState

    change = robot.peer.create_client(ChangeState, 'policy_node/change_state')
    get = robot.peer.create_client(GetState, 'policy_node/get_state')
    spin_until(lambda: change.service_is_ready() and get.service_is_ready())
    for transition, state in (
        (1, State.PRIMARY_STATE_INACTIVE),
        (3, State.PRIMARY_STATE_ACTIVE),
        (4, State.PRIMARY_STATE_INACTIVE),
        (2, State.PRIMARY_STATE_UNCONFIGURED),
        (5, State.PRIMARY_STATE_FINALIZED),
    ):
        request = ChangeState.Request()
        request.transition.id = transition
        answer = change.call_async(request)
        spin_until(answer.done)
        assert answer.result().success
        answer = get.call_async(GetState.Request())
        spin_until(answer.done)
        assert answer.result().current_state.id == state


# Acting


def test_observation_becomes_a_chunk_with_its_stamp(robot, policy):
    robot.activate()
    robot.send_state(SECOND_NS, x_m=0.25)
    robot.send_images(SECOND_NS)
    actions = robot.expect_chunk(SECOND_NS)
    np.testing.assert_allclose(actions[:, 0], 0.5)
    (observation,) = policy.observations
    assert observation.stamp_ns == SECOND_NS
    assert observation.instruction == 'push the point'
    assert observation.proprioception.ee_position_m[0] == 0.25
    np.testing.assert_array_equal(observation.images['wrist'], PIXELS)


def test_step_report_tells_times_and_reuse(robot, spin_until):
    robot.activate().send(SECOND_NS)
    spin_until(lambda: robot.reports)
    report = message_to_step(robot.reports[0])
    assert report.stage_ms == {'vision': 1.0, 'head': 0.5}
    assert report.mode == 'cached'
    assert [(camera.name, camera.reused) for camera in report.cameras] == [
        ('agentview', 2),
        ('wrist', 0),
    ]
    assert report.cameras[0].age_steps.tolist() == [3, 3, 0, 0]
    assert report.recompute_ratio == pytest.approx((12 + 2 * 10) / 36)
    assert report.inference_ms >= 0
    assert report.published_ns > report.received_ns


def test_slow_policy_works_on_the_newest_image(robot, policy, spin_until):
    robot.activate()
    policy.go.clear()
    robot.send(SECOND_NS)
    spin_until(policy.begun.is_set)
    for tenth in (11, 12, 13):
        robot.send(tenth * SECOND_NS // 10)
        spin_until(
            lambda newest_ns=tenth * SECOND_NS // 10: (
                robot.node.inputs._pairing._newest_ns['wrist'] == newest_ns
            )
        )
    policy.go.set()
    robot.expect_chunk(13 * SECOND_NS // 10)
    stamps = [observation.stamp_ns for observation in policy.observations]
    assert stamps == [SECOND_NS, 13 * SECOND_NS // 10]
    robot.expect_drop('superseded', 2)
    assert all(len(chunk.actions) for chunk in robot.chunks)  # nothing was revoked


def test_executor_is_free_during_inference(robot, policy, spin_until):
    robot.activate()
    policy.go.clear()
    robot.send(SECOND_NS)
    ticks = []
    robot.peer.create_timer(0.01, lambda: ticks.append(len(policy.observations)))
    spin_until(lambda: len(ticks) >= 5)
    assert not any(ticks)
    policy.go.set()
    assert len(robot.expect_chunk(SECOND_NS)) == 8


def test_reset_flushes_and_voids_what_is_in_work(robot, policy, spin_until):
    robot.activate()
    policy.go.clear()
    robot.send(SECOND_NS)
    spin_until(policy.begun.is_set)
    answer = robot.reset.call_async(Trigger.Request())
    spin_until(answer.done)
    assert answer.result().success
    assert json.loads(answer.result().message) == {'instruction': 'push the point'}
    policy.go.set()
    robot.expect_drop('superseded')
    assert robot.chunks == []
    robot.expect_alive(2 * SECOND_NS)
    assert policy.resets[-1] == 'reset'


def test_reset_is_refused_while_inactive(robot, spin_until):
    robot.node.trigger_configure()
    spin_until(robot.reset.service_is_ready)
    answer = robot.reset.call_async(Trigger.Request())
    spin_until(answer.done)
    assert not answer.result().success


def test_instruction_change_resets_the_policy_once(robot, policy):
    robot.activate().expect_alive(SECOND_NS)
    robot.tell('pull the point')
    robot.instruction.publish(String(data='pull the point'))
    robot.expect_alive(2 * SECOND_NS)
    robot.expect_alive(3 * SECOND_NS)
    assert policy.resets.count('instruction change') == 2  # the first one included
    assert policy.observations[-1].instruction == 'pull the point'


# Bad input


@pytest.mark.parametrize(
    'changes',
    [
        {'encoding': '32FC1'},
        {'width': 1000},
        {'step': 3},
        {'data': []},
        {'height': 0},
    ],
    ids=['encoding', 'size', 'step', 'empty', 'no rows'],
)
def test_bad_image(robot, changes):
    robot.activate()
    robot.send_state(SECOND_NS)
    robot.send_images(SECOND_NS, cameras=('agentview',))
    robot.send_images(SECOND_NS, cameras=('wrist',), **changes)
    drop = robot.expect_drop('bad_image')
    assert 'wrist' in drop.detail
    assert 'valid' in drop.detail
    assert len(robot.expect_chunk(SECOND_NS)) == 0
    robot.expect_alive(2 * SECOND_NS)


def test_nan_in_the_pose(robot):
    robot.activate()
    robot.send_state(SECOND_NS, x_m=float('nan'))
    robot.send_images(SECOND_NS)
    assert 'ee_position_m' in robot.expect_drop('bad_observation').detail
    assert len(robot.expect_chunk(SECOND_NS)) == 0
    robot.expect_alive(2 * SECOND_NS)


def test_missing_camera(robot, spin_for):
    robot.activate()
    for tenth in range(10, 17):
        robot.send_state(tenth * SECOND_NS // 10)
        robot.send_images(tenth * SECOND_NS // 10, cameras=('agentview',))
        spin_for(0.02)
    drop = robot.expect_drop('missing_camera', 6)  # all that had waited for it
    assert 'no image from wrist' in drop.detail
    assert len(robot.expect_chunk(stamp_to_ns(drop.header.stamp))) == 0
    robot.expect_alive(2 * SECOND_NS)


def test_no_instruction(robot):
    robot.activate(instruction='')
    robot.send(SECOND_NS)
    assert 'vla/instruction' in robot.expect_drop('no_instruction').detail
    assert len(robot.expect_chunk(SECOND_NS)) == 0


def test_empty_instruction_stops_the_robot(robot):
    robot.activate().expect_alive(SECOND_NS)
    robot.tell('  ')
    robot.expect_drop('empty_instruction')
    robot.send(2 * SECOND_NS)
    robot.expect_drop('no_instruction')
    robot.tell('push the point')
    robot.expect_alive(3 * SECOND_NS)


def test_instruction_too_long(robot):
    robot.activate('push ' * 20)
    robot.send(SECOND_NS)
    assert 'up to 60' in robot.expect_drop('bad_instruction').detail
    assert len(robot.expect_chunk(SECOND_NS)) == 0
    robot.tell('push the point')
    robot.expect_alive(2 * SECOND_NS)


def test_clock_going_backwards(robot, policy):
    robot.activate().expect_alive(5 * SECOND_NS)
    robot.send(SECOND_NS)
    assert 'before its predecessor' in robot.expect_drop('clock_backwards').detail
    robot.expect_alive(2 * SECOND_NS)
    assert policy.resets[-1] == 'clock went backwards'


def test_image_without_a_stamp_of_its_own(robot):
    robot.activate().expect_alive(SECOND_NS)
    robot.send(SECOND_NS)
    robot.expect_drop('repeated_stamp', 2)
    robot.expect_alive(2 * SECOND_NS)


def test_stale_image(executor, spin_until, policy):
    robot = Robot(executor, spin_until, policy, use_sim_time=False).activate()
    robot.send(SECOND_NS)  # half a century ago
    assert 'at most 500 ms' in robot.expect_drop('stale_image').detail
    assert len(robot.expect_chunk(SECOND_NS)) == 0


@pytest.mark.parametrize(
    ('fault', 'reason'),
    [
        (RuntimeError('CUDA error'), 'inference_fault'),
        (ObservationError('image is too small.'), 'bad_observation'),
    ],
)
def test_policy_that_raises(robot, policy, fault, reason):
    robot.activate()
    policy.fault = fault
    robot.send(SECOND_NS)
    assert str(fault) in robot.expect_drop(reason).detail
    assert len(robot.expect_chunk(SECOND_NS)) == 0
    policy.fault = None
    robot.expect_alive(2 * SECOND_NS)
    assert (policy.resets[-1] == 'fault') == (reason == 'inference_fault')


def test_policy_whose_reset_raises(robot, policy, monkeypatch):
    robot.activate()
    with monkeypatch.context() as broken:
        broken.setattr(policy, 'reset', lambda reason: {}[reason])
        robot.send(SECOND_NS)
        assert 'KeyError' in robot.expect_drop('inference_fault').detail
    assert len(robot.expect_chunk(SECOND_NS)) == 0
    robot.expect_alive(2 * SECOND_NS)


# Loading


def test_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_policy(PolicyParameters(checkpoint=str(tmp_path / 'nothing')))


def test_unnorm_key_is_refused_where_it_means_nothing(tmp_path):
    with pytest.raises(ConfigError, match='unnorm_key'):
        load_policy(PolicyParameters(unnorm_key='bridge_orig'))


def test_engine_that_was_never_built_names_the_command(tmp_path):
    with pytest.raises(EngineError) as caught:
        load_policy(PolicyParameters(backend='ort', engine_folder=str(tmp_path)))
    assert str(caught.value).endswith(
        'Build it with: vla-cache engine build --backend ort --precision fp32 --cache safe '
        f'--engine-folder {tmp_path}'
    )
    assert not list(tmp_path.iterdir())


def test_dense_policy_takes_the_engines_of_a_preset(tmp_path):
    parameters = PolicyParameters(backend='ort', cache_preset='off', engine_folder=str(tmp_path))
    with pytest.raises(EngineError, match='--cache safe'):
        load_policy(parameters)


def test_precision_that_a_backend_lacks_is_refused():
    with pytest.raises(UnknownNameError, match='precision of backend ort'):
        load_policy(PolicyParameters(backend='ort', precision='bf16'))
