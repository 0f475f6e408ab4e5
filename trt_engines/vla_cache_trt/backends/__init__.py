"""The engine backends that this project knows, and what each of them lacks on this machine.

Each backend is a module of this package with

    compile_graph(graph, onnx, folder, precision, buckets, on_progress)   writes its artifact
    load_engine(graph, onnx, folder, precision, buckets, device)          an `Engine` from it

Nothing heavy is imported at the top: a probe finds the module's spec first and imports only what
is there, and `backend_module` imports the one backend that is asked for.
"""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType

from vla_cache_ros.core.errors import ConfigError, EngineError, UnknownNameError

SAME = {'fp32': 'float32', 'bf16': 'bfloat16', 'fp16': 'float16'}
"""Precision -> number format of the graphs, where a backend computes in what it is given."""


@dataclass(frozen=True)
class Backend:
    """One way to execute a decoder group.

    Attributes:
        name: The backend's name on the command line.
        title: What it is, in words.
        module: The Python module that it needs.
        distributions: Distributions that may provide the module, likeliest first.
        get_command: The command that installs it.
        runner: The module of this package that runs it.
        precisions: What it can compute in -> number format of the graphs it is given: K/V and the
            graphs' borders have that format.
        devices: Kinds of torch devices that it runs on.
        needs_onnx: Whether it compiles exported graphs; else it runs the torch modules.
        ahead_of_time: Whether it builds without the device that will run the engine.
        quick: Whether building takes seconds, so that commands may do it without being told.
        find_device: Returns the device it would run on, or an empty string where there is none;
            called only when the module is installed.
        device_needed: What to say when there is no device.
    """

    name: str
    title: str
    module: str
    distributions: tuple[str, ...]
    get_command: str
    runner: str
    precisions: Mapping[str, str]
    devices: tuple[str, ...]
    needs_onnx: bool
    find_device: Callable[[], str]
    ahead_of_time: bool = False
    quick: bool = False
    device_needed: str = ''


@dataclass(frozen=True)
class BackendStatus:
    """What a probe found.

    Attributes:
        name: The backend's name.
        title: What it is, in words.
        installed: Whether its module is there.
        version: The module's version; empty where it is not installed.
        device: The device it would run on; empty where there is none.
        runs_policy: Whether the policy runs on it, on this machine.
        lacks: What is missing for the policy to run on it here; empty where nothing is.
        get_command: The command that installs the module; empty where it is installed.
    """

    name: str
    title: str
    installed: bool
    version: str
    device: str
    runs_policy: bool
    lacks: tuple[str, ...]
    get_command: str


def _torch_device() -> str:
    torch = importlib.import_module('torch')
    return _cuda_device() or f'CPU, {torch.get_num_threads()} threads'


def _cuda_device() -> str:
    torch = importlib.import_module('torch')
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else ''


def _ort_device() -> str:
    return ', '.join(importlib.import_module('onnxruntime').get_available_providers())


def _openvino_device() -> str:
    return ', '.join(importlib.import_module('openvino').Core().available_devices)


def _nvidia_device() -> str:
    """Name the GPU without importing the engine: its import says nothing about a driver."""
    return _cuda_device() if importlib.util.find_spec('torch') is not None else ''


GPU_NEEDED = 'an NVIDIA GPU with its driver, seen by a CUDA build of torch'

BACKENDS: tuple[Backend, ...] = (
    Backend(
        name='torch',
        title='PyTorch, eager (the reference)',
        module='torch',
        distributions=('torch',),
        get_command='pip install torch==2.13.0',
        runner='torch_eager',
        precisions=SAME,
        devices=('cpu', 'cuda'),
        needs_onnx=False,
        quick=True,
        find_device=_torch_device,
    ),
    Backend(
        name='torch_cuda_graph',
        title='PyTorch under CUDA graphs',
        module='torch',
        distributions=('torch',),
        get_command='pip install torch==2.13.0',
        runner='cuda_graph',
        precisions=SAME,
        devices=('cuda',),
        needs_onnx=False,
        quick=True,
        find_device=_cuda_device,
        device_needed=GPU_NEEDED,
    ),
    Backend(
        name='ort',
        title='ONNX Runtime',
        module='onnxruntime',
        distributions=('onnxruntime', 'onnxruntime-gpu'),
        get_command='pip install onnxruntime',
        runner='ort',
        precisions={'fp32': 'float32', 'fp16': 'float16', 'int8': 'float32'},
        devices=('cpu',),
        needs_onnx=True,
        quick=True,
        find_device=_ort_device,
    ),
    Backend(
        name='openvino',
        title='OpenVINO',
        module='openvino',
        distributions=('openvino',),
        get_command='pip install openvino',
        runner='openvino',
        precisions={'fp32': 'float32', 'bf16': 'float32', 'int8': 'float32'},
        devices=('cpu',),
        needs_onnx=True,
        quick=True,
        find_device=_openvino_device,
    ),
    Backend(
        name='tensorrt',
        title='TensorRT',
        module='tensorrt',
        distributions=('tensorrt', 'tensorrt-cu13', 'tensorrt-cu12'),
        get_command='pip install tensorrt --extra-index-url https://pypi.nvidia.com',
        runner='tensorrt',
        precisions=SAME,
        devices=('cuda',),
        needs_onnx=True,
        find_device=_nvidia_device,
        device_needed=GPU_NEEDED,
    ),
    Backend(
        name='tensorrt_rtx',
        title='TensorRT for RTX',
        module='tensorrt_rtx',
        distributions=('tensorrt-rtx-cu13', 'tensorrt-rtx-cu12', 'tensorrt-rtx'),
        get_command='pip install tensorrt-rtx-cu13==1.7.1.116',
        runner='tensorrt_rtx',
        precisions=SAME,
        devices=('cuda',),
        needs_onnx=True,
        ahead_of_time=True,
        find_device=_nvidia_device,
        device_needed=GPU_NEEDED,
    ),
)


def backend_names() -> tuple[str, ...]:
    """Names of all known backends, the reference first."""
    return tuple(backend.name for backend in BACKENDS)


def probe(name: str) -> BackendStatus:
    """Find out what one backend lacks on this machine.

    Args:
        name: One of `backend_names()`.

    Raises:
        UnknownNameError: There is no such backend.
    """
    return _probe(find_backend(name))


def find_backend(name: str) -> Backend:
    """The backend of that name.

    Raises:
        UnknownNameError: There is no such backend.
    """
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    raise UnknownNameError('backend', name, backend_names())


def backend_module(name: str, *, to_run: bool = True) -> ModuleType:
    """Import the module that compiles for, and runs on, a backend.

    Args:
        name: One of `backend_names()`.
        to_run: Whether an engine is to run here; else one is to be built, for which some need no
            device.

    Raises:
        UnknownNameError: There is no such backend.
        EngineError: It lacks something on this machine; the message says what, and how to get it.
    """
    backend = find_backend(name)
    status = _probe(backend)
    builds = status.installed and backend.ahead_of_time and not to_run
    if not status.runs_policy and not builds:
        lacking = '; '.join(status.lacks)
        way_out = f' Get it with: {status.get_command}.' if status.get_command else ''
        if status.installed and backend.ahead_of_time:
            way_out += (
                ' An engine for the GPU of another machine is built here with '
                '--compute-capability, e.g. 8.9.'
            )
        others = ', '.join(other.name for other in probe_all() if other.runs_policy)
        raise EngineError(
            f'backend {name} cannot run here; it lacks: {lacking}.{way_out} '
            f'Backends that run here: {others or "none"}.'
        )
    return importlib.import_module(f'vla_cache_trt.backends.{backend.runner}')


def graph_dtype(name: str, precision: str) -> str:
    """Number format of the graphs that a backend takes to compute in a precision.

    Raises:
        UnknownNameError: There is no such backend, or it does not compute in that precision.
    """
    backend = find_backend(name)
    if precision not in backend.precisions:
        raise UnknownNameError(f'precision of backend {name}', precision, backend.precisions)
    return backend.precisions[precision]


def settle_precision(name: str, precision: str, dtype: str, default_dtype: str) -> tuple[str, str]:
    """The precision that a backend computes in, and the dtype of the model that it is given.

    Args:
        name: The backend's name.
        precision: As asked for; empty: as dtype.
        dtype: As asked for.
        default_dtype: What dtype is where nobody asked: then the precision decides.

    Raises:
        UnknownNameError: There is no such backend, or it does not compute in that precision.
        ConfigError: Precision and dtype contradict each other.
    """
    precisions = find_backend(name).precisions
    if precision:
        needed = graph_dtype(name, precision)
        if dtype not in (needed, default_dtype):
            raise ConfigError(
                f'backend {name} takes a {needed} model to compute in {precision}; leave out '
                f'dtype {dtype}, or the precision.'
            )
        return precision, needed
    for same, graphs in SAME.items():
        if graphs == dtype and precisions.get(same) == dtype:
            return same, dtype
    raise ConfigError(
        f'backend {name} does not compute in {dtype}; name one of its precisions: '
        f'{", ".join(precisions)}.'
    )


def version_of(name: str) -> str:
    """A backend's version; 'none' where it is not installed."""
    backend = find_backend(name)
    installed = importlib.util.find_spec(backend.module) is not None
    return _version(backend) if installed else 'none'


def probe_all() -> tuple[BackendStatus, ...]:
    """Probe every known backend, in the table's order."""
    return tuple(_probe(backend) for backend in BACKENDS)


def _probe(backend: Backend) -> BackendStatus:
    installed = importlib.util.find_spec(backend.module) is not None
    device, lacks = '', []
    if not installed:
        lacks.append(f'the Python module {backend.module}')
    else:
        try:
            device = backend.find_device()
        except Exception as error:  # a broken engine must not break the listing
            lacks.append(f'{backend.module} does not load: {type(error).__name__}: {error}')
        else:
            if not device:
                lacks.append(backend.device_needed or 'a device to run on')
    return BackendStatus(
        name=backend.name,
        title=backend.title,
        installed=installed,
        version=_version(backend) if installed else '',
        device=device,
        runs_policy=not lacks,
        lacks=tuple(lacks),
        get_command='' if installed else backend.get_command,
    )


def _version(backend: Backend) -> str:
    for distribution in backend.distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return 'unknown'
