"""A session of a policy server as a policy, for whoever runs episodes."""

import time
from collections.abc import Callable
from typing import Any, Protocol

from vla_cache_ros.core.layout import TokenLayout
from vla_cache_ros.core.types import ActionChunk, Observation
from vla_cache_ros.evaluation.policy_messages import (
    PolicyServerBusyError,
    SessionInfo,
    SessionLostError,
)


class PolicyConnection(Protocol):
    """A client's way to a server; `PolicyServer` is one within a process."""

    def open(self, preset: str) -> SessionInfo:
        """Start a session."""
        ...

    def reset(self, session: str, reason: str = 'reset') -> None:
        """Start the session's next episode."""
        ...

    def act(self, session: str, observation: Observation) -> ActionChunk:
        """Compute the session's next chunk."""
        ...

    def close(self, session: str) -> None:
        """End the session."""
        ...


class RemotePolicy:
    """A session of a policy server behind core.protocols.Policy."""

    def __init__(
        self,
        connection: PolicyConnection,
        preset: str,
        *,
        patience_s: float = 120.0,
        retry_s: float = 0.1,
    ) -> None:
        """Open a session.

        Args:
            connection: The way to the server.
            preset: Reuse preset.
            patience_s: How long to go on asking a server that is busy.
            retry_s: Pause between two attempts.
        """
        self._connection = connection
        self._preset = preset
        self._patience_s = patience_s
        self._retry_s = retry_s
        self._info = self._insist(lambda: connection.open(preset))

    @property
    def chunk_size(self) -> int:
        """T, actions per chunk."""
        return self._info.chunk_size

    @property
    def camera_names(self) -> tuple[str, ...]:
        """The cameras that an observation must hold."""
        return self._info.camera_names

    @property
    def image_size_px(self) -> int:
        """Side of the camera images that the training data had."""
        return self._info.image_size_px

    @property
    def layout(self) -> TokenLayout:
        """The model's token layout before there is an instruction."""
        return self._info.layout

    @property
    def execute_steps(self) -> int:
        """Actions of each chunk to execute before the next refresh."""
        return self._info.execute_steps

    def reset(self, reason: str = 'reset') -> None:
        """Start an episode; where the session is gone, in a new one."""
        try:
            self._connection.reset(self._info.session, reason)
        except SessionLostError:
            self._info = self._insist(lambda: self._connection.open(self._preset))

    def act(self, observation: Observation) -> ActionChunk:
        """Compute the next chunk.

        Raises:
            SessionLostError: The episode's cache is gone.
            PolicyServerBusyError: The server stayed busy.
            VlaCacheError: What the policy raised.
        """
        return self._insist(lambda: self._connection.act(self._info.session, observation))

    def close(self) -> None:
        """End the session."""
        self._connection.close(self._info.session)

    def _insist(self, call: Callable[[], Any]) -> Any:
        """Ask again while the server is busy."""
        until = time.monotonic() + self._patience_s
        while True:
            try:
                return call()
            except PolicyServerBusyError:
                if time.monotonic() > until:
                    raise
                time.sleep(self._retry_s)
