"""JSON from files that may be damaged or hostile: one kind of error, and checked types."""

import json
from typing import Any, TypeVar

KindT = TypeVar('KindT')


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: It is no JSON, not UTF-8, or nested deeper than Python follows.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError('it is nested too deeply') from error


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        ValueError: As `parse_json`, or it is of another kind.
    """
    content = parse_json(text)
    need(content, dict, 'the content')
    return content


def need(value: Any, kind: type[KindT], what: str) -> KindT:
    """Check a value's type; true and false are no numbers.

    Raises:
        ValueError: It is another one.
    """
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f'{what} is a {type(value).__name__}; valid: {kind.__name__}')
    return value
