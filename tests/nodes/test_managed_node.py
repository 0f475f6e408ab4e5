"""Transitions in which something fails: nothing is left that could still act."""

import pytest
from rclpy.node import Node
from std_msgs.msg import String

from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.managed_node import ManagedNode
from vla_cache_ros.nodes.parameters import ManagedParameters, declare

pytestmark = pytest.mark.ros


class FaultyNode(ManagedNode):
    """Speaks by a timer, and fails where it is told to."""

    def __init__(self, *faults: str) -> None:
        super().__init__('faulty_node')
        self.faults = faults
        self.supervise(declare(self, ManagedParameters))

    def allocate(self) -> None:
        self.said = self.publisher(String, 'said', qos.report())
        self.own(None, lambda _: self._fail('own'))
        self.timer(0.01, lambda: self.said.publish(String(data='moves')))

    def stop(self) -> None:
        self._fail('stop')

    def release(self) -> None:
        self._fail('release')

    def _fail(self, where: str) -> None:
        if where in self.faults:
            raise RuntimeError(f'a fault in {where}')


@pytest.mark.parametrize('end', ['deactivate', 'shutdown', 'destroy'])
def test_after_a_fault_in_every_step_of_the_end_nothing_acts_any_more(
    executor, spin_until, spin_for, end
):
    said: list[str] = []
    listener = Node('listener')
    executor.add_node(listener)
    listener.create_subscription(String, 'said', lambda m: said.append(m.data), 10)
    node = FaultyNode('stop', 'own', 'release')
    executor.add_node(node)
    node.trigger_configure()
    node.trigger_activate()
    spin_until(lambda: said)
    if end == 'destroy':
        executor.remove_node(node)
        node.destroy_node()
    else:
        getattr(node, f'trigger_{end}')()
        assert node.lifecycle_state == 'unconfigured'
    spin_for(0.05)
    said.clear()
    spin_for(0.2)
    assert not said
    assert not node._owned
