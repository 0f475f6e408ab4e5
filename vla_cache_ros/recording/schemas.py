"""Definitions of message types as recordings hold them: the .msg file and those it builds on."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from vla_cache_ros.core.errors import RecordingError

SEPARATOR = '=' * 80
"""Line between two definitions of one schema, as MCAP's encoding 'ros2msg' wants it."""

BUILT_IN = frozenset(
    {'bool', 'byte', 'char', 'string', 'wstring', 'float32', 'float64'}
    | {f'{sign}int{bits}' for sign in ('', 'u') for bits in (8, 16, 32, 64)}
)

_KIND = re.compile(r'^([a-z][a-z0-9_]*)/msg/([A-Z][A-Za-z0-9]*)$')
_FIELD = re.compile(r'^([A-Za-z][A-Za-z0-9_/]*)(?:<=\d+)?(?:\[[<=\d]*\])?\s+[a-z]')


def definition(kind: str, find: Callable[[str, str], str] | None = None) -> str:
    """Write out a message type with every type that it is made of.

    Args:
        kind: As the graph names it, e.g. 'sensor_msgs/msg/Image'.
        find: Package and name -> text of the .msg file; default: by the ament index.

    Raises:
        RecordingError: The name is no message type, or a definition is missing.
    """
    find = find or installed
    texts: dict[tuple[str, str], str] = {}
    waiting = [_split(kind)]
    while waiting:
        package, name = waiting.pop(0)
        if (package, name) in texts:
            continue
        texts[package, name] = text = find(package, name)
        waiting += dependencies(package, text)
    first, *rest = texts
    parts = [texts[first].rstrip('\n')]
    parts += [f'{SEPARATOR}\nMSG: {key[0]}/{key[1]}\n' + texts[key].rstrip('\n') for key in rest]
    return '\n'.join(parts) + '\n'


def dependencies(package: str, text: str) -> Iterator[tuple[str, str]]:
    """Yield package and name of each message type that a definition has fields of."""
    for line in text.splitlines():
        field = _FIELD.match(line.partition('#')[0].strip())
        if field is None or field[1] in BUILT_IN:
            continue
        words = field[1].split('/')
        yield (package if len(words) == 1 else words[0]), words[-1]


def installed(package: str, name: str) -> str:
    """Read a .msg file of an installed package.

    Raises:
        RecordingError: No prefix of the ament index holds it.
    """
    prefixes = [entry for entry in os.environ.get('AMENT_PREFIX_PATH', '').split(':') if entry]
    for prefix in prefixes:
        path = Path(prefix, 'share', package, 'msg', f'{name}.msg')
        if path.is_file():
            return path.read_text(encoding='utf-8')
    raise RecordingError(
        f'the definition of {package}/msg/{name} is not installed; looked for '
        f'share/{package}/msg/{name}.msg below {", ".join(prefixes) or "no prefix at all"} '
        '(AMENT_PREFIX_PATH). Source the workspace that brings it.'
    )


def _split(kind: str) -> tuple[str, str]:
    found = _KIND.match(kind)
    if found is None:
        raise RecordingError(
            f'{kind!r} is no message type; valid: PACKAGE/msg/NAME, e.g. sensor_msgs/msg/Image.'
        )
    return found[1], found[2]
