"""The engine backends that this project knows, and what each of them lacks on this machine.

In this version only `torch` executes the policy. The others are looked for, so that a user sees
what the machine could run, but none of them is called before its graph export exists.

Nothing heavy is imported at the top: a probe finds the module's spec first and imports only what
is there.
"""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

from vla_cache_ros.core.errors import UnknownNameError

NOT_EXECUTED = 'not wired to the policy in this version'


@dataclass(frozen=True)
class Backend:
    """One way to execute a decoder group.

    Attributes:
        name: The backend's name on the command line.
        title: What it is, in words.
        module: The Python module that it needs.
        distributions: Distributions that may provide the module, likeliest first.
        get_command: The command that installs it.
        executes_policy: Whether this version runs the policy on it.
        find_device: Returns the device it would run on, or an empty string where there is none;
            called only when the module is installed.
        device_needed: What to say when there is no device.
    """

    name: str
    title: str
    module: str
    distributions: tuple[str, ...]
    get_command: str
    executes_policy: bool
    find_device: Callable[[], str]
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
        runs_policy: Whether this version runs the policy on it, on this machine.
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
        executes_policy=True,
        find_device=_torch_device,
    ),
    Backend(
        name='torch_cuda_graph',
        title='PyTorch under CUDA graphs',
        module='torch',
        distributions=('torch',),
        get_command='pip install torch==2.13.0',
        executes_policy=False,
        find_device=_cuda_device,
        device_needed=GPU_NEEDED,
    ),
    Backend(
        name='ort',
        title='ONNX Runtime',
        module='onnxruntime',
        distributions=('onnxruntime', 'onnxruntime-gpu'),
        get_command='pip install onnxruntime',
        executes_policy=False,
        find_device=_ort_device,
    ),
    Backend(
        name='openvino',
        title='OpenVINO',
        module='openvino',
        distributions=('openvino',),
        get_command='pip install openvino',
        executes_policy=False,
        find_device=_openvino_device,
    ),
    Backend(
        name='tensorrt',
        title='TensorRT',
        module='tensorrt',
        distributions=('tensorrt', 'tensorrt-cu13', 'tensorrt-cu12'),
        get_command='pip install tensorrt --extra-index-url https://pypi.nvidia.com',
        executes_policy=False,
        find_device=_nvidia_device,
        device_needed=GPU_NEEDED,
    ),
    Backend(
        name='tensorrt_rtx',
        title='TensorRT for RTX',
        module='tensorrt_rtx',
        distributions=('tensorrt-rtx-cu13', 'tensorrt-rtx-cu12', 'tensorrt-rtx'),
        get_command='pip install tensorrt-rtx-cu13==1.7.1.116',
        executes_policy=False,
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
    for backend in BACKENDS:
        if backend.name == name:
            return _probe(backend)
    raise UnknownNameError('backend', name, backend_names())


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
    if not backend.executes_policy:
        lacks.append(NOT_EXECUTED)
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
