"""Ways in which files are damaged: cut, flipped, replaced, and JSON that is of another kind."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

DEEP_JSON = b'[' * 100_000
"""Nested beyond what Python's reader follows."""

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(['float32', 'F32', '../../etc/passwd', 1e308, -1, 0]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@st.composite
def damaged_bytes(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file's content, damaged."""
    data = bytearray(whole)
    kind = draw(st.sampled_from(('cut', 'flip', 'overwrite', 'insert', 'remove', 'noise')))
    at = draw(st.integers(0, max(0, len(data) - 1)))
    if kind == 'cut':
        del data[at:]
    elif kind == 'flip':
        for place in draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=8)):
            data[place] ^= draw(st.integers(1, 255))
    elif kind == 'overwrite':
        noise = draw(st.binary(min_size=1, max_size=40))
        data[at : at + len(noise)] = noise
    elif kind == 'insert':
        data[at:at] = draw(st.binary(min_size=1, max_size=40))
    elif kind == 'remove':
        del data[at : at + draw(st.integers(1, 200))]
    else:
        data[:] = draw(st.binary(max_size=200))
    return bytes(data)


@st.composite
def changed_json(draw: st.DrawFn, content: Any) -> Any:
    """A JSON value of which one part is replaced or missing."""
    content = copy.deepcopy(content)
    if not isinstance(content, dict | list) or not content or draw(st.integers(0, 9)) == 0:
        return draw(json_values)
    key = draw(
        st.sampled_from(list(content) if isinstance(content, dict) else [*range(len(content))])
    )
    if draw(st.integers(0, 4)) == 0:
        del content[key]
    else:
        content[key] = draw(changed_json(content[key]))
    return content


@st.composite
def damaged_json(draw: st.DrawFn, whole: bytes) -> bytes:
    """A JSON file's content (or that of one JSON value per line), damaged in bytes or meaning."""
    if draw(st.integers(0, 3)) == 0:
        return draw(damaged_bytes(whole))
    lines = whole.splitlines()
    if len(lines) > 1 and lines[0].rstrip().endswith(b'}'):  # JSON lines
        at = draw(st.integers(0, len(lines) - 1))
        lines[at] = json.dumps(draw(changed_json(json.loads(lines[at])))).encode()
        return b'\n'.join(lines) + b'\n'
    return json.dumps(draw(changed_json(json.loads(whole)))).encode()
