"""What a protocol is given, and the loop over a connection's messages that they share."""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from starlette.websockets import WebSocket, WebSocketDisconnect

from vla_cache_ros.serving.observations import Conventions
from vla_cache_ros.serving.sessions import PolicyHost

logger = logging.getLogger(__name__)

TRY_AGAIN_LATER = 1013
GOING_AWAY = 1001


@dataclass(frozen=True)
class Service:
    """A policy as a protocol serves it.

    Attributes:
        host: Its sessions.
        conventions: How clients send observations.
        name: What the model is called.
        chunk_size: T, actions per chunk.
        unnorm_key: Dataset whose statistics scale the actions; empty: there is only one.
        rotation: How OpenVLA's protocol writes rotations: 'axis_angle' or 'euler'.
    """

    host: PolicyHost
    conventions: Conventions
    name: str
    chunk_size: int
    unnorm_key: str = ''
    rotation: str = 'axis_angle'
    _numbers: itertools.count = field(default_factory=lambda: itertools.count(1), repr=False)

    def name_connection(self, websocket: WebSocket) -> str:
        """A name that no other connection has."""
        client = websocket.client
        return f'{client.host if client else "local"}#{next(self._numbers)}'


async def serve_messages(
    websocket: WebSocket,
    idle_s: float,
    answer: Callable[[bytes | str], Awaitable[None]],
) -> None:
    """Answer a connection's messages one after the other until the client goes.

    The next message is awaited while one is answered: a client that vanishes is noticed at once,
    and its step, if it has not begun, is never run.

    Args:
        websocket: Accepted.
        idle_s: Silence after which the connection is closed, seconds.
        answer: Sends what the protocol says, errors included.
    """
    message = asyncio.ensure_future(websocket.receive())
    answering: asyncio.Future[None] | None = None
    try:
        while True:
            done, _ = await asyncio.wait({message}, timeout=idle_s)
            if not done:
                await websocket.close(GOING_AWAY, f'silent for {idle_s:.0f} s')
                return
            received = message.result()
            if received['type'] == 'websocket.disconnect':
                return
            message = asyncio.ensure_future(websocket.receive())
            frame = received.get('bytes')
            content = received.get('text', '') if frame is None else frame
            answering = asyncio.ensure_future(answer(content))
            await asyncio.wait({message, answering}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done() and message.result()['type'] == 'websocket.disconnect':
                return
            await answering
    except (WebSocketDisconnect, OSError):
        return
    finally:
        for task in (message, answering):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task
