"""The committed SROS 2 policy is what the nodes declare, and grants nobody more than that."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest

from vla_cache_ros.nodes.parameter_tables.overview import NODES
from vla_cache_ros.nodes.security_policy import (
    CAMERAS,
    OPERATOR,
    Rights,
    all_rights,
    policy_xml,
)

pytestmark = pytest.mark.ros

COMMITTED = Path(__file__).resolve().parents[2] / 'config' / 'security' / 'policy.xml'
COMMAND = 'python -m vla_cache_ros.nodes.security_policy > config/security/policy.xml'
VERBS = {
    'topics': {'publish', 'subscribe'},
    'services': {'reply', 'request'},
    'actions': {'call', 'execute'},
}


@pytest.fixture(scope='module', autouse=True)
def _rclpy() -> Iterator[None]:
    import rclpy

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'OFF')  # no other graph's nodes
        rclpy.init()
        yield
        rclpy.try_shutdown()


@pytest.fixture(scope='module')
def rights(_rclpy: None) -> dict[str, Rights]:
    return all_rights('/', CAMERAS)


def allowed(node: str, kind: str, verb: str) -> set[str]:
    policy = ElementTree.parse(COMMITTED).getroot()
    rules = policy.findall(f'.//profile[@node="{node}"]/{kind}s[@{verb}="ALLOW"]/{kind}')
    return {str(rule.text) for rule in rules}


def test_the_committed_file_is_current(rights):
    assert policy_xml(rights, '/') == COMMITTED.read_text(encoding='utf-8'), f'run: {COMMAND}'


def test_the_committed_file_has_the_form_of_sros2():
    policy = ElementTree.parse(COMMITTED).getroot()
    assert (policy.tag, policy.attrib) == ('policy', {'version': '0.2.0'})
    assert [child.tag for child in policy] == ['enclaves']
    for enclave in policy[0]:
        assert enclave.tag == 'enclave'
        (profiles,) = enclave
        (profile,) = profiles
        assert (profiles.tag, profile.tag) == ('profiles', 'profile')
        assert enclave.attrib['path'] == f'/vla_cache/{profile.attrib["node"]}'
        for rule in profile:
            ((verb, answer),) = rule.attrib.items()
            assert verb in VERBS[rule.tag]
            assert answer == 'ALLOW'
            assert len(rule) > 0
            for name in rule:
                assert name.tag == rule.tag.removesuffix('s')
                assert str(name.text).startswith('/')


def test_every_node_has_its_own_enclave_but_the_one_that_injects_faults(rights):
    assert set(rights) == (set(NODES) - {'fault_injector'}) | {OPERATOR}


def test_patterns_are_the_recorders_alone(rights):
    for node, one in rights.items():
        patterns = {name for names in vars(one).values() for name in names if '*' in name}
        assert (patterns == set()) == (node != 'recorder'), (node, patterns)


@pytest.mark.parametrize(
    ('topic', 'publishers'),
    [
        ('/vla/action', {'command_guard'}),
        ('/vla/action_chunk', {'policy_node'}),
        ('/vla/committed', {'command_guard'}),
        ('/vla/status', {'command_guard'}),
        ('/servo_node/delta_twist_cmds', {'command_sink'}),
        ('/joint_trajectory_controller/joint_trajectory', {'command_sink'}),
        ('/command_guard/heartbeat', {'command_guard'}),
        ('/policy_node/heartbeat', {'policy_node'}),
        ('/vla/instruction', {'policy_node', 'sim_bridge', OPERATOR}),
        ('/vla/e_stop', {OPERATOR}),
        ('/clock', {'sim_bridge'}),
    ],
)
def test_who_may_publish_what_moves_the_robot(rights, topic, publishers):
    assert {node for node in rights if topic in allowed(node, 'topic', 'publish')} == publishers


@pytest.mark.parametrize(
    ('service', 'clients'),
    [
        ('/command_guard/e_stop', {OPERATOR}),
        ('/command_guard/release_e_stop', {OPERATOR}),
        ('/command_guard/set_parameters', {OPERATOR}),
        ('/command_guard/change_state', {OPERATOR, 'bringup_manager'}),
        ('/command_guard/reset', {OPERATOR, 'sim_bridge'}),
    ],
)
def test_who_may_call_what_frees_the_robot(rights, service, clients):
    assert {node for node in rights if service in allowed(node, 'service', 'request')} == clients


def test_another_namespace_and_other_cameras():
    rights = all_rights('/left', ('base',))
    text = policy_xml(rights, '/left')
    assert '<enclave path="/vla_cache/left/policy_node">' in text
    assert '/left/camera/base/image_raw</topic>' in text
    assert CAMERAS[0] not in text
    foreign = {
        name
        for node in ElementTree.fromstring(text.partition('\n')[2]).iter()
        if (name := str(node.text)).startswith('/') and not name.startswith('/left/')
    }
    assert foreign == {'/clock', '/diagnostics', '/parameter_events', '/rosout'}
