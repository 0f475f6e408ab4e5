"""The instruction in force: told by topic or by service, and known to whoever joins later."""

from collections.abc import Callable

from std_msgs.msg import String
from vla_cache_interfaces.srv import SetInstruction

from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.managed_node import ManagedNode

EMPTY = 'the instruction is empty; valid: a sentence such as "pick up the milk".'


class TaskInput:
    """The task that the policy is given.

    Attributes:
        instruction: The task in words; empty: none.
        subscriptions: vla/instruction.
    """

    def __init__(self, node: ManagedNode, on_change: Callable[[], None]) -> None:
        """Subscribe and serve.

        Args:
            node: Owns topic and service.
            on_change: Told after the instruction has changed, and of each empty one.
        """
        self.instruction = ''
        self._on_change = on_change
        self._announced = ''
        self.subscriptions = [
            node.subscription(String, 'vla/instruction', self._on_message, qos.latched())
        ]
        # Not a managed publisher: the task may be set before the node is active.
        self._publisher = node.own(
            node.create_publisher(String, 'vla/instruction', qos.latched()), node.destroy_publisher
        )
        node.service(SetInstruction, '~/set_instruction', self._on_set)

    def _on_message(self, message: String) -> None:
        self._take_over(message.data.strip())

    def _on_set(
        self, request: SetInstruction.Request, response: SetInstruction.Response
    ) -> SetInstruction.Response:
        """Take over an instruction and announce it; an empty one is refused."""
        instruction = request.instruction.strip()
        if instruction:
            self._announce(instruction)
            self._take_over(instruction)
        else:
            response.message = EMPTY
        response.success = bool(instruction)
        response.instruction = self.instruction
        return response

    def _take_over(self, instruction: str) -> None:
        if self._announced and instruction != self._announced:
            self._announce(instruction)  # or a late joiner would hear our old one after the new
        if instruction != self.instruction or not instruction:
            self.instruction = instruction
            self._on_change()

    def _announce(self, instruction: str) -> None:
        self._announced = instruction
        self._publisher.publish(String(data=instruction))
