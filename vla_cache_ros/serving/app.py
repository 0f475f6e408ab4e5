"""The application, and the process that serves it."""

import asyncio
import contextlib
import importlib
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from types import ModuleType

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from vla_cache_ros.core.errors import ConfigError, UnknownNameError
from vla_cache_ros.serving.access import AccessControl, is_local
from vla_cache_ros.serving.limits import Limits
from vla_cache_ros.serving.service import Service

PROTOCOLS = {
    'vla-eval': 'vla_cache_ros.serving.vla_eval',
    'openpi': 'vla_cache_ros.serving.openpi',
    'openvla-rest': 'vla_cache_ros.serving.openvla_rest',
}
SHUTDOWN_S = 5
SPARE_CONNECTIONS = 32
"""Connections above the sessions: for /health, and for those who are told that it is full."""
KEEPALIVE_IDLE_S, KEEPALIVE_EVERY_S, KEEPALIVE_PROBES = 30, 10, 3


def protocol_module(protocol: str) -> ModuleType:
    """The module of a protocol.

    Raises:
        UnknownNameError: There is no such protocol.
    """
    if protocol not in PROTOCOLS:
        raise UnknownNameError('protocol', protocol, PROTOCOLS)
    return importlib.import_module(PROTOCOLS[protocol])


def make_app(protocol: str, service: Service, token: str = '') -> Starlette:
    """Build the application of one protocol.

    Args:
        protocol: One of PROTOCOLS.
        service: What is served.
        token: What clients must bring; empty: nothing.

    Raises:
        UnknownNameError: There is no such protocol.
    """
    host = service.host

    async def health(request: Request) -> Response:
        return JSONResponse(
            {
                'status': 'ok',
                'protocol': protocol,
                'model': service.name,
                'chunk_size': service.chunk_size,
                'cameras': list(service.conventions.cameras),
                'images': service.conventions.images,
                **host.status(),
            }
        )

    async def alive(request: Request) -> Response:
        return PlainTextResponse('OK\n')

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        sweeper = asyncio.create_task(_sweep(service))
        yield
        sweeper.cancel()
        host.stop()

    return Starlette(
        routes=[
            Route('/health', health),
            Route('/healthz', alive),
            *protocol_module(protocol).routes(service),
        ],
        middleware=[Middleware(AccessControl, token=token)],
        lifespan=lifespan,
    )


def open_socket(host: str, port: int, token: str) -> socket.socket:
    """Bind the address.

    Args:
        host: Address or name.
        port: 0 takes any free one.
        token: What clients must bring.

    Raises:
        ConfigError: Others than this machine would reach it without a token, or the address
            cannot be bound.
    """
    if not is_local(host) and not token:
        raise ConfigError(
            f'{host} can be reached by other machines, so clients need a token: give --token or '
            'set VLA_CACHE_TOKEN; or listen on 127.0.0.1.'
        )
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family, reuse_port=False)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f'cannot listen on {host}:{port}: {error}. Stop what uses the port, or take another '
            'one; --port 0 takes any free one.'
        ) from error
    _set_options(listener)
    return listener


def make_server(
    app: Starlette, limits: Limits, on_start: Callable[[], None] = lambda: None
) -> uvicorn.Server:
    """Make the server. `run([listener])` serves until SIGINT, SIGTERM or its `should_exit`.

    Args:
        app: From `make_app`.
        limits: Of the app's service.
        on_start: Called when clients can connect.
    """
    config = uvicorn.Config(
        app,
        ws='websockets-sansio',
        ws_max_size=limits.message_bytes,
        # A client that renders does not answer pings in time; the kernel's keepalive finds those
        # whose machine has gone.
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        limit_concurrency=limits.sessions + SPARE_CONNECTIONS,
        timeout_graceful_shutdown=SHUTDOWN_S,
        log_config=None,
        log_level='warning',
        server_header=False,
    )
    return _Server(config, on_start)


class _Server(uvicorn.Server):
    """Ends with a normal return on a signal; uvicorn's own would raise it again."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # signals belong to the main thread
            return
        before = {s: signal.signal(s, self.handle_exit) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


async def _sweep(service: Service) -> None:
    """End sessions that have been silent for too long."""
    while True:
        await asyncio.sleep(service.host.limits.idle_s / 4)
        service.host.close_idle()


def _set_options(listener: socket.socket) -> None:
    """Set what connections inherit.

    Answers go out at once: asyncio sees to that for sockets of its own making alone, and waiting
    for the client's acknowledgement costs 40 ms. The kernel asks silent clients whether they live.
    """
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ('TCP_KEEPIDLE', KEEPALIVE_IDLE_S),
        ('TCP_KEEPINTVL', KEEPALIVE_EVERY_S),
        ('TCP_KEEPCNT', KEEPALIVE_PROBES),
    ):
        if hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
