"""What docs/security.md claims of the source: no pickle, no shell, nothing beyond localhost."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ('vla_cache_ros', 'models', 'sim', 'trt_engines', 'benchmarks')
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob('*.py'))]
SOURCES += [ROOT / 'setup.py']

# File -> why it may call torch.load with weights_only=False.
PICKLED = {'sim/vla_cache_sim/libero_assets.py': 'initial states inside the pinned LIBERO package'}
# File -> what it listens on.
LISTENERS = {'vla_cache_ros/serving/app.py': 'vla-cache serve, localhost unless a token is set'}


def where(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding='utf-8'))))


def calls() -> Iterator[tuple[Path, str, ast.Call]]:
    """(file, dotted name, call) of every call in the sources."""
    for path in SOURCES:
        for node in tree(path):
            if isinstance(node, ast.Call):
                yield path, dotted(node.func), node


def dotted(node: ast.expr) -> str:
    """A name with its owners; of an expression, what follows it."""
    if isinstance(node, ast.Attribute):
        return f'{dotted(node.value)}.{node.attr}'
    return node.id if isinstance(node, ast.Name) else ''


def at(path: Path, node: ast.expr) -> str:
    return f'{where(path)}:{node.lineno}: {ast.unparse(node)[:80]}'


def keyword(call: ast.Call, name: str) -> str:
    """Source of a keyword argument; empty where it is not given."""
    return next((ast.unparse(given.value) for given in call.keywords if given.arg == name), '')


@cache
def imports(path: Path) -> set[str]:
    modules: set[str] = set()
    for node in tree(path):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module.partition('.')[0])
    return modules


def test_there_is_something_to_check():
    assert len(SOURCES) > 150
    assert {where(path) for path in SOURCES} >= {*PICKLED, *LISTENERS}


def test_nothing_is_unpickled():
    unsafe = {'pickle', 'cPickle', '_pickle', 'dill', 'cloudpickle', 'joblib', 'shelve', 'marshal'}
    assert not [where(path) for path in SOURCES if imports(path) & unsafe]
    wrong: list[str] = []
    pickled: set[str] = set()
    for path, name, call in calls():
        if name == 'torch.load' and keyword(call, 'weights_only') != 'True':
            pickled.add(where(path))
        if name in ('np.load', 'numpy.load') and keyword(call, 'allow_pickle') != 'False':
            wrong.append(at(path, call))
    assert not wrong
    assert pickled == set(PICKLED)


def test_nothing_runs_a_shell_or_text_as_code():
    banned = {'os.system', 'os.popen', 'eval', 'exec', '__import__', 'subprocess.getoutput'}
    assert not [
        at(path, call)
        for path, name, call in calls()
        if name in banned
        or name.startswith('os.spawn')
        or keyword(call, 'shell') not in ('', 'False')
    ]


def test_yaml_is_data_only():
    safe = ('yaml.safe_load', 'yaml.safe_load_all')
    assert not [
        at(path, call)
        for path, name, call in calls()
        if name.startswith('yaml.') and 'load' in name and name not in safe
    ]


def test_only_what_is_named_listens():
    servers = re.compile(
        r'(^|\.)(bind|create_server|start_server|serve_forever|HTTPServer|TCPServer|Listener)$'
    )
    listening = {
        where(path)
        for path, name, _ in calls()
        if servers.search(name) and imports(path) & {'socket', 'asyncio', 'http', 'socketserver'}
    }
    assert listening == set(LISTENERS)


def test_addresses_default_to_this_machine():
    wrong: list[str] = []
    for path in SOURCES:
        for node in tree(path):
            if isinstance(node, ast.Constant) and node.value in ('0.0.0.0', '::'):
                wrong.append(at(path, node))
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) in ('host', 'address'):
                default = ast.unparse(node.value) if node.value is not None else ''
                if default not in ('', "''", "'127.0.0.1'", "'localhost'"):
                    wrong.append(f'{where(path)}:{node.lineno}')
    assert not wrong


def test_the_server_refuses_other_machines_without_a_token():
    from vla_cache_ros.core.errors import ConfigError
    from vla_cache_ros.serving.app import open_socket

    with pytest.raises(ConfigError, match='token'):
        open_socket('0.0.0.0', 0, '')


def test_the_make_file_keeps_discovery_on_this_machine():
    text = (ROOT / 'Makefile').read_text(encoding='utf-8')
    assert 'ROS_AUTOMATIC_DISCOVERY_RANGE:-LOCALHOST' in text
