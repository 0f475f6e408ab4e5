"""openpi's protocol: msgpack over a WebSocket, one observation in, one action chunk out.

    server    metadata, as soon as the client has connected
    client    observation: image, wrist image, state, prompt
    server    {'actions': [T, 7], 'server_timing': {..}}, or a text message: an error
    ..

An array travels as {b'__ndarray__': True, b'data', b'dtype', b'shape'}. The protocol has no word
for an episode's start: a new connection, another prompt, an arm that was put elsewhere, or the
key 'reset' in an observation begins one.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket

from vla_cache_ros.core.errors import FrameError, ServingError, VlaCacheError
from vla_cache_ros.core.types import Observation
from vla_cache_ros.serving.arrays import make_array, pack, unpack
from vla_cache_ros.serving.observations import Conventions
from vla_cache_ros.serving.service import TRY_AGAIN_LATER, Service, serve_messages

PUBLISHED_IMAGES = 'mirrored'
CAMERA_KEYS = {'agentview': 'observation/image', 'wrist': 'observation/wrist_image'}
STATE_KEY = 'observation/state'
PROMPT_KEY = 'prompt'
RESET_KEY = 'reset'


def decode_message(frame: bytes | str) -> dict[str, Any]:
    """Unpack an observation; its arrays are made.

    Raises:
        FrameError: It is not an observation of this protocol.
    """
    if isinstance(frame, str):
        raise FrameError('a text message; an observation is binary, a msgpack map.')
    message = unpack(frame, _from_wire)
    if not isinstance(message, dict):
        raise FrameError(f'the message is {type(message).__name__}; valid: a map.')
    return message


def encode_message(message: Mapping[str, Any]) -> bytes:
    """Pack an answer or the metadata."""
    return pack(message, _to_wire)


def to_observation(message: Mapping[str, Any], conventions: Conventions) -> Observation:
    """Read an unpacked observation.

    Raises:
        ObservationError: Something is missing or cannot be used.
    """
    return conventions.observation(message, CAMERA_KEYS, STATE_KEY, PROMPT_KEY)


def routes(service: Service) -> list[BaseRoute]:
    """The one WebSocket, at the root."""

    async def connect(websocket: WebSocket) -> None:
        await websocket.accept()
        await _serve(websocket, service)

    return [WebSocketRoute('/', connect)]


async def _serve(websocket: WebSocket, service: Service) -> None:
    host = service.host
    try:
        session = await host.open(service.name_connection(websocket))
    except ServingError as error:
        await websocket.send_text(str(error))
        await websocket.close(TRY_AGAIN_LATER)
        return
    before_ms: float | None = None

    async def answer(frame: bytes | str) -> None:
        nonlocal before_ms
        begin = time.perf_counter()
        try:
            message = await asyncio.to_thread(decode_message, frame)
            observation = to_observation(message, service.conventions)
            if message.get(RESET_KEY):
                await host.start_episode(session)
            chunk = await host.chunk(session, observation)
        except VlaCacheError as error:
            await websocket.send_text(str(error))
            return
        timing = {'infer_ms': chunk.infer_ms}
        if before_ms is not None:
            timing['prev_total_ms'] = before_ms
        await websocket.send_bytes(
            encode_message(
                {
                    'actions': chunk.actions,
                    'server_timing': timing,
                    'vla_cache': chunk.details(),
                }
            )
        )
        before_ms = 1e3 * (time.perf_counter() - begin)

    try:
        await websocket.send_bytes(encode_message(_metadata(service)))
        await serve_messages(websocket, host.limits.idle_s, answer)
    finally:
        host.close(session)


def _metadata(service: Service) -> dict[str, Any]:
    return {
        'model': service.name,
        'chunk_size': service.chunk_size,
        'cameras': list(service.conventions.cameras),
        'images': service.conventions.images,
    }


def _from_wire(value: dict[Any, Any]) -> Any:
    if b'__ndarray__' in value:
        return make_array(value.get(b'data'), value.get(b'dtype'), value.get(b'shape'))
    if b'__npgeneric__' in value:
        number = value.get(b'data')
        if not isinstance(number, bool | int | float | str):
            raise FrameError(f"a number's value is {type(number).__name__}.")
        return number
    return value


def _to_wire(value: object) -> Any:
    if isinstance(value, np.ndarray):
        return {
            b'__ndarray__': True,
            b'data': value.tobytes(),
            b'dtype': value.dtype.str,
            b'shape': list(value.shape),
        }
    raise TypeError(f'{type(value).__name__} has no form in this protocol')
