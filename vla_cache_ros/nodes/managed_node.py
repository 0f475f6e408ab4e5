"""What every lifecycle node of the package does alike: own, free, report, and show that it lives.

A node says what it needs in four verbs: `allocate` (configure), `start` (activate), `stop`
(deactivate, shutdown, error) and `release` (cleanup, shutdown, error). Whatever it creates
through `publisher`, `subscription`, `service`, `timer` or `own` is destroyed after `release`, the
newest first, so that no transition can forget one.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from rclpy.subscription import Subscription
from vla_cache_interfaces.msg import Heartbeat

from vla_cache_ros.core.errors import VlaCacheError
from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.parameters import ManagedParameters
from vla_cache_ros.nodes.running import autostart, steady_timer

EntityT = TypeVar('EntityT')


class ManagedNode(LifecycleNode):
    """A lifecycle node under supervision.

    Publishes:
        ~/heartbeat (vla_cache_interfaces/Heartbeat), in every state, from the executor's thread:
            a node that hangs falls silent like one that died.
    """

    def __init__(self, node_name: str, **node_arguments: Any) -> None:
        """Create the node; a subclass declares its parameters, then calls `supervise`.

        Args:
            node_name: Name of the node.
            **node_arguments: Passed on to rclpy's Node.
        """
        super().__init__(node_name, **node_arguments)
        self._owned: list[Callable[[], Any]] = []

    def supervise(self, parameters: ManagedParameters) -> None:
        """Begin the heartbeat; with autostart, configure and activate once spinning."""
        self._heartbeat = self.create_publisher(Heartbeat, '~/heartbeat', qos.heartbeat())
        steady_timer(self, parameters.heartbeat_period_s, self._beat)
        if parameters.autostart:
            autostart(self)

    @property
    def lifecycle_state(self) -> str:
        """Label of the present state: unconfigured, inactive, active, finalized."""
        return self._state_machine.current_state[1]

    # What a subclass implements

    def allocate(self) -> None:
        """Read the parameters; make what the node needs.

        Raises:
            VlaCacheError: What it needs cannot be had; configure then fails with that message.
        """
        raise NotImplementedError

    def start(self) -> None:
        """Begin to act; publishers are active already.

        Raises:
            VlaCacheError: It cannot; activate then fails with that message.
        """

    def stop(self) -> None:
        """Take the safety action and stop acting; publishers still are active. Idempotent."""

    def release(self) -> None:
        """Free what `allocate` made and does not own as an entity. Idempotent."""

    # Ownership

    def own(self, entity: EntityT, destroy: Callable[[EntityT], Any]) -> EntityT:
        """Have something destroyed at the end of the configuration."""
        self._owned.append(lambda: destroy(entity))
        return entity

    def publisher(self, kind: type, topic: str, profile: QoSProfile) -> Publisher:
        """Create a managed publisher: silent while the node is not active."""
        made: Any = qos.publish(self, kind, topic, profile)
        return self.own(made, self.destroy_lifecycle_publisher)

    def subscription(
        self, kind: type, topic: str, callback: Callable[[Any], None], profile: QoSProfile
    ) -> Subscription:
        """Create a subscription."""
        made = qos.subscribe(self, kind, topic, callback, profile)
        return self.own(made, self.destroy_subscription)

    def service(self, kind: type, name: str, callback: Callable[[Any, Any], Any]) -> Any:
        """Create a service."""
        return self.own(self.create_service(kind, name, callback), self.destroy_service)

    def timer(self, period_s: float, callback: Callable[[], None], steady: bool = True) -> Any:
        """Create a timer, on the wall's steady clock or on the node's own."""
        if steady:
            made = steady_timer(self, period_s, callback)
        else:
            made = self.create_timer(period_s, callback)
        return self.own(made, self.destroy_timer)

    # Transitions

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Allocate; what failed leaves nothing behind, and may be tried again."""
        if not self._try('configure', self.allocate):
            self._free()
            return TransitionCallbackReturn.FAILURE
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start acting."""
        result = super().on_activate(state)
        if not self._try('activate', self.start):
            super().on_deactivate(state)
            return TransitionCallbackReturn.FAILURE
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Take the safety action, then fall silent."""
        self.stop()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything that configure made."""
        self._free()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Take the safety action where it is due, and free everything, from whatever state."""
        if state.label == 'active':
            self.stop()
        self._free()
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything and go back to unconfigured, from where configure may be tried again.

        Whatever fails here, nothing is left that could act: no timer, no active publisher.
        """
        self._try_each(self.stop, self._free)
        super().on_error(state)
        return TransitionCallbackReturn.SUCCESS

    def destroy_node(self) -> None:
        """Free everything, then destroy the node, from the midst of a transition as well."""
        at_rest = self.lifecycle_state in ('unconfigured', 'inactive', 'finalized')
        self._try_each(*([] if at_rest else [self.stop]), self._free)
        super().destroy_node()

    def _try(self, transition: str, work: Callable[[], None]) -> bool:
        """Do a transition's work; what cannot be done is logged and makes it fail."""
        try:
            work()
        except VlaCacheError as error:
            self.get_logger().error(f'{transition} failed: {error}')
            return False
        except Exception as error:
            self.get_logger().error(f'{transition} failed: {type(error).__name__}: {error}')
            raise  # rclpy then calls on_error
        return True

    def _try_each(self, *steps: Callable[[], Any]) -> None:
        """Take every step, whatever one of them raises."""
        for step in steps:
            try:
                step()
            except Exception as error:
                self.get_logger().error(f'clean-up goes on after {type(error).__name__}: {error}')

    def _free(self) -> None:
        owned, self._owned = self._owned, []
        self._try_each(self.release, *reversed(owned))

    def _beat(self) -> None:
        beat = Heartbeat(node=self.get_name(), state=self.lifecycle_state)
        beat.header.stamp = self.get_clock().now().to_msg()
        self._heartbeat.publish(beat)
