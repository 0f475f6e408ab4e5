"""What a policy server and its clients exchange, whatever carries it."""

import traceback
from dataclasses import dataclass
from typing import Any

from vla_cache_ros.core.errors import (
    ConfigError,
    InstructionError,
    ObservationError,
    VlaCacheError,
)
from vla_cache_ros.core.layout import TokenLayout


class PolicyServerError(VlaCacheError):
    """The policy server did not answer a request."""


class PolicyServerBusyError(PolicyServerError):
    """The server has as much to do as it takes on; the same request may succeed later."""


class SessionLostError(PolicyServerError):
    """The session, and with it the episode's cache, is gone; the episode must be run again."""


@dataclass(frozen=True)
class SessionInfo:
    """What a client needs to know of its session's policy; see core.protocols.Policy."""

    session: str
    chunk_size: int
    camera_names: tuple[str, ...]
    image_size_px: int
    layout: TokenLayout
    execute_steps: int


@dataclass(frozen=True)
class Failure:
    """What was raised, as a transport carries it: exceptions need not survive pickling.

    Attributes:
        kind: The error's class name where a client tells it apart, else 'VlaCacheError', or
            'bug' for anything that was not raised on purpose.
        message: Its text; of a bug the traceback.
    """

    kind: str
    message: str

    @classmethod
    def of(cls, error: BaseException) -> 'Failure':
        """Describe an exception."""
        if not isinstance(error, VlaCacheError):
            return cls('bug', ''.join(traceback.format_exception(error)))
        name = type(error).__name__
        return cls(name if name in _KINDS else 'VlaCacheError', str(error))

    def exception(self) -> Exception:
        """The exception to raise on the client's side."""
        if self.kind == 'bug':
            return RuntimeError(f'the policy failed on its server:\n{self.message}')
        return _KINDS[self.kind](self.message)


_KINDS: dict[str, type[VlaCacheError]] = {
    kind.__name__: kind
    for kind in (
        VlaCacheError,
        ConfigError,
        ObservationError,
        InstructionError,
        PolicyServerError,
        PolicyServerBusyError,
        SessionLostError,
    )
}


def unpack(reply: Any) -> Any:
    """A transported reply's value.

    Raises:
        VlaCacheError: The reply is a failure that was raised on purpose.
        RuntimeError: The reply is any other failure.
    """
    if isinstance(reply, Failure):
        raise reply.exception()
    return reply
