"""`vla-cache serve`: the policy over the network, for other people's harnesses."""

import contextlib
import logging
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from vla_cache_ros.cli.checkpoints import CheckpointPolicies, PolicyOptions
from vla_cache_ros.core.errors import UnknownNameError
from vla_cache_ros.core.protocols import Policy

if TYPE_CHECKING:
    from vla_cache_ros.serving.service import Service

TOKEN_VARIABLE = 'VLA_CACHE_TOKEN'
WITHOUT_STATE = ('openvla', 'cogact')
"""Models that do not read the arm's state."""

EXAMPLES = {
    'openpi': (
        'from openpi_client.websocket_client_policy import WebsocketClientPolicy\n'
        "WebsocketClientPolicy('{host}', {port}{key}).infer(observation)['actions']"
    ),
    'vla-eval': 'vla-eval run -c libero.yaml --no-docker --server-url ws://{user}{host}:{port}',
    'openvla-rest': (
        "requests.post('http://{host}:{port}/act'{header}, json={{'image': image, "
        "'instruction': words}}).json()"
    ),
}


@dataclass(frozen=True)
class ServeConfig(PolicyOptions):
    """Options of `vla-cache serve`."""

    protocol: Literal['vla-eval', 'openpi', 'openvla-rest'] = 'openpi'
    """What clients speak."""
    cache: str = 'safe'
    """Reuse preset: off, paper, safe, .."""
    host: str = '127.0.0.1'
    """Address to listen on; others than this machine's own need a token."""
    port: int = 8000
    """TCP port; 0 takes any free one."""
    token: str = ''
    """What clients must bring in the header Authorization; default: $VLA_CACHE_TOKEN, which other
    users of the machine cannot read off the process list."""
    images: str = ''
    """How clients hold their images: upright, mirrored (LIBERO's published clients: OpenGL's rows
    rotated by 180 degrees), bottom_up; default: as the protocol's published clients do."""
    rotation: Literal['axis_angle', 'euler'] = 'axis_angle'
    """How openvla-rest writes rotations; euler for clients of Bridge and Google robot models."""
    execute_steps: int | None = None
    """Actions executed of each chunk where the server gives one at a time (vla-eval,
    openvla-rest); default: the policy's own."""
    max_sessions: int = 8
    """Robots at once; each has a cache of its own."""
    max_message_mib: float = 16.0
    """Longest message, MiB."""
    max_image_px: int = 2048
    """Longest side of a camera image."""
    max_rate_hz: float = 200.0
    """Messages per second of one robot; faster ones are slowed down."""
    idle_s: float = 600.0
    """Silence after which a session is ended, seconds."""
    auto_off: bool = True
    """The reuse may switch itself off where it does not pay."""


def run_serve(config: ServeConfig) -> int:
    """Load the policy and serve it until Ctrl-C.

    Raises:
        ConfigError: The address cannot be bound, a token is missing, or a limit is not positive.
        UnknownNameError: There is no such preset or way to hold images.
        VlaCacheError: The policy cannot be loaded.
    """
    from rich.console import Console

    from vla_cache_ros.serving.app import make_app, make_server, open_socket

    console = Console(stderr=True)
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(name)s: %(message)s')
    token = config.token or os.environ.get(TOKEN_VARIABLE, '')
    with contextlib.closing(open_socket(config.host, config.port, token)) as listener:
        service = _make_service(config)
        port = listener.getsockname()[1]

        def say() -> None:
            scheme = 'http' if config.protocol == 'openvla-rest' else 'ws'
            console.print(
                f'serving {service.name} ({config.cache}) by {config.protocol} on '
                f'{scheme}://{config.host}:{port}, state: http://{config.host}:{port}/health\n'
                f'{_example(config, port, token)}\nCtrl-C ends.',
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

        app = make_app(config.protocol, service, token)
        make_server(app, service.host.limits, say).run([listener])
    console.print('ended', markup=False)
    return 0


def _make_service(config: ServeConfig) -> 'Service':
    from vla_cache_ros.serving.app import protocol_module
    from vla_cache_ros.serving.limits import Limits
    from vla_cache_ros.serving.observations import ORIENTATIONS, Conventions
    from vla_cache_ros.serving.service import Service
    from vla_cache_ros.serving.sessions import PolicyHost

    images = config.images or protocol_module(config.protocol).PUBLISHED_IMAGES
    if images not in ORIENTATIONS:
        raise UnknownNameError('way to hold images', images, ORIENTATIONS)
    limits = Limits(
        message_bytes=int(config.max_message_mib * (1 << 20)),
        image_side_px=config.max_image_px,
        sessions=config.max_sessions,
        rate_hz=config.max_rate_hz,
        idle_s=config.idle_s,
    )
    policies = replace(CheckpointPolicies.chosen(config, config.cache), auto_off=config.auto_off)

    def make_policy() -> Policy:
        return policies(config.cache)

    host = PolicyHost(make_policy, limits, config.execute_steps)
    first = make_policy()  # weights and engines are loaded before a client waits for them
    model = policies.model()
    return Service(
        host,
        Conventions(
            tuple(first.camera_names),
            images,
            needs_state=model.name not in WITHOUT_STATE,
            image_side_px=config.max_image_px,
        ),
        model.name,
        first.chunk_size,
        config.unnorm_key,
        config.rotation,
    )


def _example(config: ServeConfig, port: int, token: str) -> str:
    """How a client begins; the token itself is not shown."""
    known = {
        'key': ", api_key='TOKEN'" if token else '',
        'user': 'any:TOKEN@' if token else '',
        'header': ", headers={'Authorization': 'Bearer TOKEN'}" if token else '',
    }
    return EXAMPLES[config.protocol].format(host=config.host, port=port, **known)
