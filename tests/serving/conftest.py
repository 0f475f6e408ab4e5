"""Lets the tests here import `serving_fakes`, and openpi's client from its folder."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
CLIENTS = Path(sys.prefix, 'clients')


@pytest.fixture
def openpi_client():
    """openpi's own client class."""
    if not (CLIENTS / 'openpi_client').is_dir():
        pytest.fail(f'openpi-client is not in {CLIENTS}; get it with: make setup-dev')
    sys.path.append(str(CLIENTS))
    try:
        from openpi_client.websocket_client_policy import WebsocketClientPolicy
    finally:
        sys.path.remove(str(CLIENTS))
    return WebsocketClientPolicy


@pytest.fixture
def serve():
    """Start servers in threads of this process; they end with the test."""
    from serving_fakes import ServerThread

    servers = []

    def start(protocol, make_policy=None, **options):
        servers.append(ServerThread(protocol, make_policy, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
