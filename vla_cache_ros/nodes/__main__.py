"""`python -m vla_cache_ros.nodes NAME --ros-args ..`: one of the package's nodes, by name.

The bring-up manager starts its processes through this. With `--parent PID` the node is told to
stop as soon as that process is gone, however it went.
"""

import importlib
import sys

from vla_cache_ros.core.errors import UnknownNameError, VlaCacheError
from vla_cache_ros.nodes.child_processes import stop_with_parent


def main(words: list[str]) -> int:
    """Run the node that the words name.

    Returns:
        Its exit status; 2 when there is no such node.
    """
    if words[:1] == ['--parent']:
        stop_with_parent(int(words[1]))
        words = words[2:]
    from vla_cache_ros.nodes.parameter_tables.overview import NODES

    name = words[0] if words else ''
    if name not in NODES:
        raise UnknownNameError('node', name, NODES)
    module = importlib.import_module(f'vla_cache_ros.nodes.{name}')
    return module.main([sys.executable, *words[1:]])


if __name__ == '__main__':
    try:
        status = main(sys.argv[1:])
    except VlaCacheError as error:
        sys.stderr.write(f'error: {error}\n')
        status = 2
    sys.exit(status)
