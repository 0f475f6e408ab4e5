"""vla-eval's protocol: typed msgpack messages over a WebSocket, one action per observation.

    client  hello           server  hello: what the policy needs and gives
    client  episode_start   (no answer; the cache is flushed)
    client  observation     server  action, or error
    ..
    client  episode_end     (no answer)

A message is {'type', 'payload', 'seq', 'timestamp'}; an answer has the seq of its question. Arrays
travel as {'__ndarray__': True, 'data', 'dtype', 'shape'}, pictures as PNG or JPEG. The client asks
at every control step; most answers come from the chunk that an earlier one began.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket

from vla_cache_ros import __version__
from vla_cache_ros.core.errors import FrameError, ObservationError, ServingError, VlaCacheError
from vla_cache_ros.core.types import Observation
from vla_cache_ros.serving.arrays import decode_picture, make_array, pack, unpack
from vla_cache_ros.serving.observations import Conventions
from vla_cache_ros.serving.service import TRY_AGAIN_LATER, Service, serve_messages

PUBLISHED_IMAGES = 'mirrored'
PROTOCOL_VERSION = 1
TYPES = ('hello', 'observation', 'action', 'episode_start', 'episode_end', 'error')
# What its benchmarks call the first camera; LIBERO's names are ours.
FIRST_CAMERA_NAMES = ('agentview', 'primary')

ACTION_SPEC = {
    'position': {'name': 'position', 'dims': 3, 'format': 'delta_xyz', 'range': [-1, 1]},
    'rotation': {'name': 'rotation', 'dims': 3, 'format': 'axis_angle', 'range': [-3.15, 3.15]},
    'gripper': {
        'name': 'gripper',
        'dims': 1,
        'format': 'binary_close_positive',
        'range': [-1, 1],
    },
}
IMAGE_SPEC = {'name': 'image', 'dims': 0, 'format': 'rgb_hwc_uint8'}
STATE_SPEC = {'name': 'state', 'dims': 8, 'format': 'eef_pos3_axisangle3_gripper2'}
WORDS_SPEC = {'name': 'language', 'dims': 0, 'format': 'language'}


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        type: One of TYPES.
        payload: What it says.
        seq: The client's number for it.
    """

    type: str
    payload: Mapping[str, Any]
    seq: int = 0


def decode_message(frame: bytes | str, max_side_px: int = 2048) -> Message:
    """Unpack a message; its arrays and pictures are made.

    Raises:
        FrameError: It is not a message of this protocol.
    """
    if isinstance(frame, str):
        raise FrameError('a text message; messages are binary, msgpack maps.')

    def from_wire(value: dict[Any, Any]) -> Any:
        if '__image__' in value and value.get('format') != 'raw':
            return decode_picture(value.get('data'), max_side_px)
        if '__image__' in value or '__ndarray__' in value:
            return make_array(value.get('data'), value.get('dtype'), value.get('shape'))
        return value

    message = unpack(frame, from_wire)
    if not isinstance(message, dict):
        raise FrameError(f'the message is {type(message).__name__}; valid: a map.')
    kind, payload, seq = (message.get(key) for key in ('type', 'payload', 'seq'))
    if not isinstance(kind, str) or kind not in TYPES:
        raise FrameError(f'unknown message type {kind!r:.40}; valid: {", ".join(TYPES)}.')
    if not isinstance(payload, dict) or type(seq) is not int:
        raise FrameError(f"a {kind} message needs a map 'payload' and an integer 'seq'.")
    return Message(kind, payload, seq)


def encode_message(message: Message) -> bytes:
    """Pack a message with the present time."""
    return pack(
        {
            'type': message.type,
            'payload': message.payload,
            'seq': message.seq,
            'timestamp': time.time(),
        },
        _to_wire,
    )


def to_observation(payload: Mapping[str, Any], conventions: Conventions) -> Observation:
    """Read an observation message's payload.

    Raises:
        ObservationError: Something is missing or cannot be used.
    """
    images = payload.get('images')
    if not isinstance(images, Mapping):
        raise ObservationError("'images' must map camera names to images.")
    wire = {f'images/{name}': image for name, image in images.items()}
    wire['states'] = payload.get('states', payload.get('state'))
    wire['task_description'] = payload.get('task_description')
    keys = {name: f'images/{name}' for name in conventions.cameras}
    first = next((name for name in FIRST_CAMERA_NAMES if name in images), 'agentview')
    keys['agentview'] = f'images/{first}'
    return conventions.observation(wire, keys, 'states', 'task_description')


def hello(service: Service) -> dict[str, Any]:
    """What the server says of itself; vla-eval sets its benchmark up accordingly."""
    conventions = service.conventions
    wanted = {name: IMAGE_SPEC for name in conventions.cameras}
    # Without the switch, rotations beyond pi would lose the quaternion's sign.
    parameters = {'quat_no_antipodal': True}
    if 'wrist' in conventions.cameras:
        parameters['send_wrist_image'] = True
    if conventions.needs_state:
        wanted['state'] = STATE_SPEC
        parameters['send_state'] = True
    return {
        'harness_version': f'vla_cache_ros {__version__}',
        'protocol_version': PROTOCOL_VERSION,
        'model_server': service.name,
        'capabilities': {},
        'observation_params': parameters,
        'action_spec': ACTION_SPEC,
        'observation_spec': {**wanted, 'language': WORDS_SPEC},
    }


def routes(service: Service) -> list[BaseRoute]:
    """The one WebSocket, at the root."""

    async def connect(websocket: WebSocket) -> None:
        await websocket.accept()
        await _serve(websocket, service)

    return [WebSocketRoute('/', connect)]


async def _serve(websocket: WebSocket, service: Service) -> None:
    host, conventions = service.host, service.conventions

    async def send(kind: str, payload: Mapping[str, Any], seq: int) -> None:
        await websocket.send_bytes(encode_message(Message(kind, payload, seq)))

    try:
        session = await host.open(service.name_connection(websocket))
    except ServingError as error:
        await send('error', {'error': str(error)}, 0)
        await websocket.close(TRY_AGAIN_LATER)
        return

    async def respond(message: Message) -> None:
        if message.type == 'hello':
            _check_version(message.payload)
            await send('hello', hello(service), message.seq)
        elif message.type == 'episode_start':
            await host.start_episode(session)
        elif message.type == 'observation':
            observation = to_observation(message.payload, conventions)
            answer = await host.action(session, observation)
            payload = {'actions': answer.actions, 'vla_cache': answer.details()}
            await send('action', payload, message.seq)
        elif message.type == 'action':
            raise FrameError("an 'action' comes from the server, not from a client.")

    async def answer(frame: bytes | str) -> None:
        seq = 0
        try:
            message = await asyncio.to_thread(decode_message, frame, conventions.image_side_px)
            seq = message.seq
            await respond(message)
        except VlaCacheError as error:
            await send('error', {'error': str(error)}, seq)

    try:
        await serve_messages(websocket, host.limits.idle_s, answer)
    finally:
        host.close(session)


def _check_version(payload: Mapping[str, Any]) -> None:
    version = payload.get('protocol_version', PROTOCOL_VERSION)
    if version != PROTOCOL_VERSION:
        raise FrameError(
            f'the client speaks version {version!r:.20} of the protocol; this server speaks '
            f'{PROTOCOL_VERSION}.'
        )


def _to_wire(value: object) -> Any:
    if isinstance(value, np.ndarray):
        return {
            '__ndarray__': True,
            'data': value.tobytes(),
            'dtype': value.dtype.str,
            'shape': list(value.shape),
        }
    raise TypeError(f'{type(value).__name__} has no form in this protocol')
