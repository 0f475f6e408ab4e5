"""A stand-in for `tensorrt` and `tensorrt_rtx` that runs a graph's module at bound addresses.

It keeps what the real packages demand (a profile before shapes, addresses of everything before a
run) and records every call, so that binding and running are tested without a GPU.
"""

import contextlib
import ctypes
import enum
import importlib.machinery
import math
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest
import torch

from vla_cache_models.decoder import Decoder, DecoderConfig
from vla_cache_ros.core.layout import CameraSpan, TokenLayout
from vla_cache_trt.backends import capture, nvidia
from vla_cache_trt.backends.nvidia import network_tensors
from vla_cache_trt.engine import BUCKET, Graph
from vla_cache_trt.graphs import decoder_group

PLAN = b'a plan'
SLOTS = 24
BUCKETS = (4, 9, 23)


def small_graph(dtype: torch.dtype = torch.float32, device: str = 'cpu') -> Graph:
    """Two decoder layers with the relevance layer."""
    torch.manual_seed(0)
    layout = TokenLayout((CameraSpan('left', 1, 4, 4),), (17, 22), (22, 23), 23, 'all', False)
    decoder = Decoder(DecoderConfig(64, 2, 4, 4, 64)).eval().to(device, dtype)
    return decoder_group(decoder, 0, 2, SLOTS, layout, 1)


def small_cache(graph: Graph) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V that earlier steps left behind; the dummy slot holds finite numbers."""
    assert graph.spec.cache is not None
    generator = torch.Generator().manual_seed(1)
    like = next(graph.module.parameters())
    k, v = (
        torch.randn(graph.spec.cache.at(0), generator=generator).to(like.device, like.dtype)
        for _ in range(2)
    )
    return k, v


def fill(inputs: dict[str, torch.Tensor], rows: int, seed: int) -> None:
    """A step of `rows` real rows in the first buffers, padding behind them."""
    generator = torch.Generator().manual_seed(seed)
    hidden, slots, mask = inputs['hidden'], inputs['slots'], inputs['mask']
    hidden.copy_(torch.randn(hidden.shape, generator=generator))
    slots.fill_(SLOTS - 1)
    slots[:rows] = (
        torch.randperm(SLOTS - 1, generator=generator)[:rows].sort().values.to(slots.device)
    )
    mask.fill_(False)
    mask[:rows, : SLOTS - 1] = True
    mask[rows:, SLOTS - 1] = True
    inputs['text_rows'].zero_()
    inputs['text_weights'].zero_()
    inputs['text_weights'][0] = 1


class _Mode(enum.IntFlag):
    STRONGLY_TYPED = 1
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    OLD_CUDA_DRIVER = 4
    OLD_CUDA_RUNTIME = 8
    INSUFFICIENT_GPU_MEMORY = 16
    MALFORMED_ENGINE = 32
    CUDA_ERROR = 64


class _Layer:
    type = 'attention'


class _AttentionLayer(_Layer):
    @property
    def attention(self) -> '_AttentionLayer':
        return self


class _Tensor(SimpleNamespace):
    """Of a network."""


class FakeTensorRt(ModuleType):
    """One of the two packages, for one graph.

    Attributes:
        calls: What was called, in order, with its arguments.
        inputs: Of the network that the parser makes; edit them to spoil the file.
        parses: Whether the parser reads files.
        loads: Whether plans can be deserialised, and run.
        computes: Whether runs compute anything.
        diagnostics: Of a plan that cannot.
        contexts: Those created.
    """

    def __init__(self, name: str, graph: Graph, version: str = '11.4.0') -> None:
        super().__init__(name)
        self.__version__ = version
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.graph = graph
        self.calls: list[tuple] = []
        self.profiles: list[dict] = []
        self.contexts: list[FakeContext] = []
        self.parses = self.loads = self.computes = True
        self.diagnostics = 0
        self.DataType = SimpleNamespace(
            **{name: name for name in ('FLOAT', 'HALF', 'BF16', 'INT64', 'BOOL', 'UINT8')}
        )
        names = {torch.float32: 'FLOAT', torch.int64: 'INT64', torch.bool: 'BOOL'}
        self.inputs, self.outputs = (
            [
                _Tensor(
                    name=tensor.name,
                    shape=tuple(-1 if size == BUCKET else size for size in tensor.shape),
                    dtype=names[tensor.dtype],
                )
                for tensor in tensors
            ]
            for tensors in network_tensors(graph.spec)
        )
        self.layers = [_Layer()]
        self.LayerType = SimpleNamespace(ATTENTION_INPUT='attention')
        self.IAttentionInputLayer = _AttentionLayer
        self.BuilderFlag = SimpleNamespace(TF32='TF32')
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=0)
        self.EngineInvalidityDiagnostics = _Mode
        self.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED='user')
        self.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE='whole')
        self.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER='eager')
        self.ILogger = type('ILogger', (), {'ERROR': 1, 'INTERNAL_ERROR': 0})
        self.IProgressMonitor = type('IProgressMonitor', (), {})

    def names(self) -> list[str]:
        """Calls without their arguments."""
        return [call[0] for call in self.calls]

    # The package's own functions, named as there.
    def Builder(self, log) -> 'FakeBuilder':  # noqa: N802
        return FakeBuilder(self)

    def OnnxParser(self, network, log) -> SimpleNamespace:  # noqa: N802
        error = SimpleNamespace(desc=lambda: 'no such operator')
        return SimpleNamespace(
            parse_from_file=lambda path: self.parses,
            num_errors=1,
            get_error=lambda index: error,
        )

    def Runtime(self, log) -> SimpleNamespace:  # noqa: N802
        def deserialize(plan) -> FakeEngine | None:
            if self.loads and bytes(plan) == PLAN:
                return FakeEngine(self)
            log.log(1, 'the plan is no good')
            return None

        return SimpleNamespace(
            deserialize_cuda_engine=deserialize,
            get_engine_validity=lambda plan: (None, self.diagnostics),
        )


class FakeBuilder:
    def __init__(self, trt: FakeTensorRt) -> None:
        self.trt = trt

    def create_network(self, flags: int) -> SimpleNamespace:
        assert flags == 1
        trt = self.trt
        return SimpleNamespace(
            num_inputs=len(trt.inputs),
            get_input=lambda index: trt.inputs[index],
            num_outputs=len(trt.outputs),
            get_output=lambda index: trt.outputs[index],
            num_layers=len(trt.layers),
            get_layer=lambda index: trt.layers[index],
        )

    def create_builder_config(self) -> SimpleNamespace:
        calls = self.trt.calls
        return SimpleNamespace(
            clear_flag=lambda flag: calls.append(('clear_flag', flag)),
            add_optimization_profile=self.trt.profiles.append,
            create_timing_cache=lambda data: (
                calls.append(('create_timing_cache', bytes(data)))
                or SimpleNamespace(serialize=lambda: data + b'+')
            ),
            set_timing_cache=lambda cache, ignore_mismatch: None,
            progress_monitor=None,
        )

    def create_optimization_profile(self) -> dict:
        class Profile(dict):
            def set_shape(self, name, least, optimal, greatest) -> None:
                self[name] = (least, optimal, greatest)

        return Profile()

    def build_serialized_network(self, network, config) -> bytes | None:
        self.trt.calls.append(('build', config))
        monitor = config.progress_monitor
        monitor.phase_start('all', None, 2)
        monitor.phase_start('inner', 'all', 2)
        for name, step in (('inner', 0), ('inner', 1), ('all', 0), ('all', 1)):
            if not monitor.step_complete(name, step):
                return None
            if (name, step) == ('inner', 1):
                monitor.phase_finish('inner')
        return PLAN if self.trt.parses else None


class FakeEngine:
    def __init__(self, trt: FakeTensorRt) -> None:
        self.trt = trt
        self.tensors = [*trt.inputs, *trt.outputs]
        self.num_io_tensors = len(self.tensors)
        self.num_optimization_profiles = max(1, len(trt.profiles))
        self.device_memory_size_v2 = 1000

    def get_tensor_name(self, index: int) -> str:
        return self.tensors[index].name

    def create_runtime_config(self) -> SimpleNamespace:
        calls = self.trt.calls
        cache = SimpleNamespace(
            deserialize=lambda data: calls.append(('kernels', bytes(data))),
            serialize=lambda: b'kernels',
        )
        return SimpleNamespace(create_runtime_cache=lambda: cache, set_runtime_cache=lambda c: c)

    def create_execution_context(self, strategy=None, runtime_config=None) -> 'FakeContext':
        context = FakeContext(self.trt, strategy, runtime_config)
        self.trt.contexts.append(context)
        return context


class FakeContext:
    """Runs the graph's module on whatever lies at its addresses."""

    def __init__(self, trt: FakeTensorRt, strategy, runtime_config) -> None:
        self.trt, self.strategy, self.runtime_config = trt, strategy, runtime_config
        self.profile = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch = 0

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert not self.shapes
        self.profile = index
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= 1000
        self.scratch = address

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, greatest = self.trt.profiles[self.profile][name]
        inside = all(a <= b <= c for a, b, c in zip(least, shape, greatest, strict=True))
        self.shapes[name] = tuple(shape)
        return inside

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.trt.calls.append(('set_tensor_address', name))
        self.addresses[name] = address
        return True

    @torch.no_grad()
    def execute_async_v3(self, stream: int) -> bool:
        self.trt.calls.append(('execute', self.shapes['slots'][0], stream))
        if not self.trt.computes or not self.trt.loads:
            return self.trt.loads
        inputs, outputs = network_tensors(self.trt.graph.spec)
        bucket = self.shapes['slots'][0]
        given = [_tensor_at(self.addresses[t.name], t.at(bucket), t.dtype) for t in inputs]
        for tensor, computed in zip(outputs, self.trt.graph.module(*given), strict=True):
            _tensor_at(self.addresses[tensor.name], tensor.at(bucket), tensor.dtype).copy_(
                computed
            )
        return True


class FakeStream:
    """A CUDA stream, or an event."""

    cuda_stream = 77

    def __init__(self, *args) -> None: ...

    def record(self, stream: 'FakeStream') -> None: ...

    def wait_event(self, event: 'FakeStream') -> None: ...

    def synchronize(self) -> None: ...


class FakeRecorder:
    """Runs work where the real one captures it; remembers how often."""

    recorded = 0

    def __init__(self, device: torch.device) -> None: ...

    def record(self, work):
        type(self).recorded += 1
        for _ in range(capture.WARM_UP_RUNS + 1):
            work()
        return work


def install(monkeypatch: pytest.MonkeyPatch, trt: FakeTensorRt) -> FakeTensorRt:
    """Put a fake package and a fake GPU, whose memory is the CPU's, in their places."""
    monkeypatch.setitem(__import__('sys').modules, trt.__name__, trt)
    fake_gpu(monkeypatch)
    return trt


def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU whose memory is the CPU's."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: (8, 9))
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda device=None: FakeStream())
    monkeypatch.setattr(torch.cuda, 'Stream', FakeStream)
    monkeypatch.setattr(torch.cuda, 'Event', FakeStream)
    monkeypatch.setattr(torch.cuda, 'device', _nothing)
    monkeypatch.setattr(torch.cuda, 'stream', _nothing)
    monkeypatch.setattr(FakeRecorder, 'recorded', 0)
    monkeypatch.setattr(capture, 'Recorder', FakeRecorder)
    monkeypatch.setattr(nvidia, 'ALIGNMENT_BYTES', 1)


@contextlib.contextmanager
def _nothing(*args) -> Iterator[None]:
    yield


def _tensor_at(address: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    memory = (ctypes.c_char * (math.prod(shape) * dtype.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
