"""Under SROS 2 the manager's processes have rights of their own, not the manager's."""

import pytest

from vla_cache_ros.nodes.child_processes import passed_on, sibling_enclave

COMMAND = ['bringup_manager', '--ros-args', '-r', '__ns:=/left', '-p', 'autostart:=true']


@pytest.mark.parametrize('flag', ['-e', '--enclave'])
def test_a_child_has_the_enclave_beside_the_managers(flag):
    command = [*COMMAND, flag, '/vla_cache/left/bringup_manager', '--log-level', 'warn']
    assert sibling_enclave(command, 'policy_node') == ['--enclave', '/vla_cache/left/policy_node']
    assert passed_on(command) == ['-r', '__ns:=/left', '--log-level', 'warn']


def test_without_an_enclave_a_child_has_none():
    assert sibling_enclave(COMMAND, 'policy_node') == []
    assert sibling_enclave([*COMMAND, '--enclave'], 'policy_node') == []
