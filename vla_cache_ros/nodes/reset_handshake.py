"""The handshake before an episode's first frame: every peer has reset, and knows the task."""

import json
import time
from collections.abc import Callable, Sequence

from rclpy.node import Node
from rclpy.task import Future
from std_srvs.srv import Trigger

from vla_cache_ros.nodes.running import steady_timer

_POLL_PERIOD_S = 0.002


class ResetHandshake:
    """Calls reset services until each of them has succeeded.

    Topics alone would leave the order open: a first frame could overtake the new instruction. A
    peer may answer with JSON {"instruction": ..}; it is then asked again until that is the new
    one. When the time is up, the episode starts all the same, with a warning.
    """

    def __init__(
        self,
        node: Node,
        services: Sequence[str],
        *,
        peers_present: Callable[[], bool],
        timeout_s: float,
        done: Callable[[], None],
    ) -> None:
        """Create the clients.

        Args:
            node: The node that asks.
            services: Names of std_srvs/Trigger services.
            peers_present: Says whether every topic has found its other end.
            timeout_s: Wall time after which to go on without the peers.
            done: Called in the executor's thread when all have answered, or the time is up.
        """
        self._node = node
        self._peers_present = peers_present
        self._timeout_s = timeout_s
        self._done = done
        self._clients = {name: node.create_client(Trigger, name) for name in services}
        self._answers: dict[str, Future] = {}
        self._instruction = ''
        self._deadline_s = 0.0
        self._timer = steady_timer(node, _POLL_PERIOD_S, self._poll)
        self._timer.cancel()

    def start(self, instruction: str) -> None:
        """Ask every peer to reset for a new instruction."""
        self.cancel()
        self._instruction = instruction
        self._deadline_s = time.monotonic() + self._timeout_s
        self._timer.reset()

    def cancel(self) -> None:
        """Stop asking."""
        self._timer.cancel()
        self._answers = {}

    def destroy(self) -> None:
        """Destroy the clients and the timer."""
        self.cancel()
        self._node.destroy_timer(self._timer)
        for client in self._clients.values():
            self._node.destroy_client(client)

    def _poll(self) -> None:
        present = self._peers_present()
        waiting = [name for name in self._clients if not (present and self._has_reset(name))]
        if waiting or not present:
            if time.monotonic() < self._deadline_s:
                return
            self._node.get_logger().warning(
                f'episode starts without {", ".join(waiting) or "readers of its topics"} after '
                f'{self._timeout_s:g} s; are those nodes up and active?'
            )
        self.cancel()
        self._done()

    def _has_reset(self, name: str) -> bool:
        """Whether a peer has reset and knows the instruction; if not, ask (again)."""
        answer = self._answers.get(name)
        if answer is None or (answer.done() and not self._is_settled(answer)):
            if self._clients[name].service_is_ready():
                self._answers[name] = self._clients[name].call_async(Trigger.Request())
            return False
        return answer.done()

    def _is_settled(self, answer: Future) -> bool:
        response = answer.result()
        if response is None or not response.success:
            return False
        try:
            content = json.loads(response.message)
        except ValueError:
            return True  # a peer that says nothing about the instruction
        if not isinstance(content, dict) or 'instruction' not in content:
            return True
        return content['instruction'] == self._instruction.strip()
