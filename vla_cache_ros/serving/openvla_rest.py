"""OpenVLA's REST protocol: POST /act with an observation in JSON, actions back.

    {'image', 'instruction', 'unnorm_key'}                   -> one action, [7]
    {'full_image', 'wrist_image', 'state', 'instruction'}    -> a chunk, a list of [7] (OFT)

Arrays travel as json_numpy writes them, {'__numpy__': base64, 'dtype', 'shape'}. A client that
cannot do so sends everything as text in {'encoded': ..} and gets text. The published server
answers every failure with the JSON text "error", and so does this one; the reason is in the
header X-Error.

Actions are as in the checkpoint's data, as published clients expect them: the gripper is 1 open, 0
closed:  g = (1 - g_ours) / 2.

HTTP has no connections. The header X-Session-Id names the session, else the client's address;
POST /reset, another instruction or an arm that was put elsewhere begins an episode.
"""

import asyncio
import base64
import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from vla_cache_ros.core.errors import FrameError, ObservationError, ServingError, VlaCacheError
from vla_cache_ros.core.types import Observation
from vla_cache_ros.serving.arrays import make_array
from vla_cache_ros.serving.observations import Conventions
from vla_cache_ros.serving.service import Service
from vla_cache_ros.serving.sessions import Session

PUBLISHED_IMAGES = 'upright'
ROTATIONS = ('axis_angle', 'euler')
SESSION_HEADER = 'x-session-id'
MAX_SESSION_NAME = 128
BAD_REQUEST, TOO_LARGE, UNAVAILABLE = 400, 413, 503


def decode_request(body: bytes) -> tuple[dict[str, Any], bool]:
    """Read a request; its arrays are made.

    Returns:
        The payload, and whether it came as text within JSON.

    Raises:
        FrameError: It is not a request of this protocol.
    """
    payload = _parse(body)
    encoded = isinstance(payload, dict) and 'encoded' in payload
    if encoded:
        if len(payload) != 1 or not isinstance(payload['encoded'], str):
            raise FrameError("'encoded' stands alone, and is JSON text.")
        payload = _parse(payload['encoded'])
    if not isinstance(payload, dict):
        raise FrameError(f'the request is {type(payload).__name__}; valid: a JSON object.')
    return payload, encoded


def encode_actions(actions: NDArray[np.floating], encoded: bool) -> bytes:
    """Write one action [7] as an array, or a chunk [T, 7] as a list of arrays.

    Args:
        actions: In the data's convention.
        encoded: Whether the client wants text within JSON.
    """
    wire = _to_wire(actions) if actions.ndim == 1 else [_to_wire(action) for action in actions]
    text = json.dumps(wire)
    return json.dumps(text if encoded else wire).encode()


def to_observation(
    payload: Mapping[str, Any], conventions: Conventions, unnorm_key: str = ''
) -> Observation:
    """Read a request's payload, OpenVLA's or OFT's.

    Args:
        payload: Decoded.
        conventions: How the client sends observations.
        unnorm_key: The dataset of this server; a request may name that one alone.

    Raises:
        ObservationError: Something is missing or cannot be used.
    """
    asked = payload.get('unnorm_key')
    if asked is not None and asked != unnorm_key:
        valid = repr(unnorm_key) if unnorm_key else 'none, for it was started without --unnorm-key'
        raise ObservationError(
            f'unnorm_key {asked!r:.60} is not what this server scales actions by: {valid}.'
        )
    first = 'full_image' if wants_chunk(payload) else 'image'
    # OFT takes whatever has 'wrist' in its name.
    wrist = next((key for key in payload if 'wrist' in key), 'wrist_image')
    keys = {'agentview': first, 'wrist': wrist}
    return conventions.observation(payload, keys, 'state', 'instruction')


def wants_chunk(payload: Mapping[str, Any]) -> bool:
    """Whether it is OFT's request, which is answered by a whole chunk."""
    return 'full_image' in payload


def to_data_convention(
    actions: NDArray[np.float32], rotation: str = 'axis_angle'
) -> NDArray[np.float64]:
    """Turn actions [.., 7] into the checkpoint's data's convention.

    Args:
        actions: See ActionChunk.
        rotation: 'axis_angle' (LIBERO), or 'euler': roll, pitch, yaw (Bridge, Google robot).
    """
    wire = actions.astype(np.float64)
    wire[..., 6] = (1.0 - wire[..., 6]) / 2.0
    if rotation == 'euler':
        wire[..., 3:6] = to_euler(wire[..., 3:6])
    return wire


def to_euler(rotation_vector: NDArray[np.floating]) -> NDArray[np.float64]:
    """Roll, pitch, yaw of rotation vectors [.., 3]:  R = Rz(yaw) Ry(pitch) Rx(roll)."""
    angle = np.linalg.norm(rotation_vector, axis=-1, keepdims=True)
    x, y, z = np.moveaxis(0.5 * np.sinc(angle / (2 * np.pi)) * rotation_vector, -1, 0)
    w = np.cos(angle[..., 0] / 2)
    roll = np.arctan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
    pitch = np.arcsin(np.clip(2 * (w * y - z * x), -1, 1))
    yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    return np.stack((roll, pitch, yaw), axis=-1)


def routes(service: Service) -> list[BaseRoute]:
    """POST /act and POST /reset."""

    async def act(request: Request) -> Response:
        return await _guarded(_act, request, service)

    async def reset(request: Request) -> Response:
        return await _guarded(_reset, request, service)

    return [Route('/act', act, methods=['POST']), Route('/reset', reset, methods=['POST'])]


class _TooLargeError(VlaCacheError):
    """The request is longer than the server reads."""


async def _guarded(handler: Any, request: Request, service: Service) -> Response:
    """Answer failures as the published server does, with a status and a reason."""
    try:
        return await handler(request, service)
    except ClientDisconnect:
        return Response(status_code=BAD_REQUEST)
    except VlaCacheError as error:
        status = BAD_REQUEST
        if isinstance(error, _TooLargeError):
            status = TOO_LARGE
        elif isinstance(error, ServingError):
            status = UNAVAILABLE
        return JSONResponse('error', status, {'X-Error': _as_header(str(error))})


async def _act(request: Request, service: Service) -> Response:
    begin = time.perf_counter()
    body = await _read(request, service.host.limits.message_bytes)
    payload, encoded = await asyncio.to_thread(decode_request, body)
    observation = to_observation(payload, service.conventions, service.unnorm_key)
    session = await _session(request, service)
    run = service.host.chunk if wants_chunk(payload) else service.host.action
    answer = await run(session, observation)
    actions = to_data_convention(answer.actions, service.rotation)
    total_ms = 1e3 * (time.perf_counter() - begin)
    return Response(
        encode_actions(actions, encoded),
        media_type='application/json',
        headers={
            'Server-Timing': f'infer;dur={answer.infer_ms:.3f}, total;dur={total_ms:.3f}',
            'X-Vla-Cache': json.dumps(answer.details()),
        },
    )


async def _reset(request: Request, service: Service) -> Response:
    session = service.host.find(_session_name(request))
    if session is not None:
        await service.host.start_episode(session)
    return JSONResponse('ok')


async def _session(request: Request, service: Service) -> Session:
    """The session that the request belongs to, opened when it is the first."""
    host, name = service.host, _session_name(request)
    session = host.find(name)
    if session is None:
        host.close_idle()
        session = await host.find_or_open(name)
    return session


def _session_name(request: Request) -> str:
    name = request.headers.get(SESSION_HEADER)
    if name is None:
        return f'address {request.client.host if request.client else "local"}'
    if not 0 < len(name) <= MAX_SESSION_NAME or not name.isprintable():
        raise FrameError(f'X-Session-Id: 1 to {MAX_SESSION_NAME} printable characters.')
    return f'id {name}'


def _as_header(text: str) -> str:
    words = ' '.join(text.split()).encode('ascii', 'replace').decode()
    return ''.join(letter if letter.isprintable() else '?' for letter in words)[:1000]


async def _read(request: Request, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > max_bytes:
            raise _TooLargeError(f'the request is longer than {max_bytes} bytes.')
        parts.append(part)
    return b''.join(parts)


def _parse(text: bytes | str) -> Any:
    try:
        return json.loads(text, object_hook=_from_wire)
    except FrameError:
        raise
    except (ValueError, RecursionError) as error:
        raise FrameError(f'the request is not JSON: {error}'[:300]) from error


def _from_wire(value: dict[str, Any]) -> Any:
    if '__numpy__' not in value:
        return value
    text = value['__numpy__']
    if not isinstance(text, str):
        raise FrameError("'__numpy__' must be base64 text.")
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise FrameError(f"'__numpy__' is not base64: {error}") from error
    array = make_array(data, value.get('dtype'), value.get('shape'))
    return array if array.ndim else array.item()


def _to_wire(array: NDArray[np.floating]) -> dict[str, Any]:
    return {
        '__numpy__': base64.b64encode(array.tobytes()).decode(),
        'dtype': array.dtype.str,
        'shape': list(array.shape),
    }
