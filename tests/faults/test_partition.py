"""A network that parts policy and robot while the arm moves."""

import os

import pytest
from node_graph.faults import cut_off
from node_graph.partition import NamespacePartition, RelayPartition, namespaces
from node_graph.processes import node_processes

pytestmark = [pytest.mark.ros, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _own_domain(monkeypatch):
    """Apart from the graph of the other tests, which is still up."""
    monkeypatch.setenv('ROS_DOMAIN_ID', str((int(os.environ['ROS_DOMAIN_ID']) + 25) % 101))


def assert_arm_stops_and_goes_on(robot, partition):
    row = robot.suffer(cut_off(partition))
    robot.assert_in_time(row)
    assert 'policy_lost' in row['reasons']


def test_a_cut_between_two_domains_stops_the_arm(tmp_path, parted):
    with node_processes(tmp_path) as processes:
        partition = RelayPartition(processes)
        assert_arm_stops_and_goes_on(parted(processes, partition.place), partition)


def test_a_cut_cable_between_network_namespaces_stops_the_arm(tmp_path, parted):
    """Where namespaces are not permitted, the relay's cut stands in for the cable's."""
    with namespaces() as cable, node_processes(tmp_path) as processes:
        partition = cable or RelayPartition(processes)
        assert_arm_stops_and_goes_on(parted(processes, partition.place), partition)


def test_what_creates_namespaces_says_so_where_it_may_not(monkeypatch):
    def refuse(_):
        raise PermissionError('not here')

    monkeypatch.setattr(NamespacePartition, 'create', refuse)
    with namespaces() as cable:
        assert cable is None
