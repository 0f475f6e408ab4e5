"""Who may speak to the server."""

import base64
import binascii
import hmac
import ipaddress

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

OPEN_PATHS = ('/healthz',)
"""Answered without a token: they say nothing but that the server lives."""

TOKEN_SCHEMES = ('bearer', 'api-key')


class AccessControl:
    """Lets in those who bring the token, and no browser.

    The token comes in the header Authorization: 'Bearer TOKEN', openpi's 'Api-Key TOKEN', or as
    the password of a URL, ws://any:TOKEN@host, for clients that send no headers of their own.

    A page in somebody's browser may reach servers on localhost, but always says where it comes
    from, in the header Origin. Harnesses never send one.
    """

    def __init__(self, app: ASGIApp, token: str = '') -> None:
        """Wrap an app.

        Args:
            app: What is guarded.
            token: What clients must bring; empty: nothing.
        """
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope['type'] == 'lifespan':
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if 'origin' in headers:
            await _refuse(403, 'requests of web pages are refused', scope, receive, send)
        elif self._token and scope['path'] not in OPEN_PATHS and not self._knows(headers):
            reason = 'a token is needed: the header Authorization, Bearer TOKEN'
            await _refuse(401, reason, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _knows(self, headers: Headers) -> bool:
        given = token_of(headers.get('authorization', ''))
        return hmac.compare_digest(given.encode(), self._token)


def token_of(authorization: str) -> str:
    """The token in the header's value; empty where there is none."""
    scheme, _, value = authorization.partition(' ')
    value = value.strip()
    if scheme.lower() in TOKEN_SCHEMES:
        return value
    if scheme.lower() == 'basic':
        try:
            _, _, password = base64.b64decode(value, validate=True).decode().partition(':')
        except (binascii.Error, ValueError):
            return ''
        return password
    return ''


def is_local(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == 'localhost':
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _refuse(status: int, reason: str, scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse with a status; a WebSocket is refused before it is opened."""
    headers = {'WWW-Authenticate': 'Bearer'} if status == 401 else None
    if scope['type'] == 'http' or 'websocket.http.response' in scope.get('extensions', {}):
        await PlainTextResponse(reason + '\n', status, headers)(scope, receive, send)
    else:
        await send({'type': 'websocket.close', 'code': 1008, 'reason': reason})
