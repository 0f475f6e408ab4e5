"""What TensorRT and TensorRT for RTX have in common: their Python packages are nearly alike.

    ONNX -> strongly typed network -> optimisation profiles -> plan file -> engine -> contexts

Networks are strongly typed: an engine computes in the number formats that the graph was exported
with. A plan is written beside its final name and renamed, so that a crash leaves none that is
half written.
"""

import importlib
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_cache_ros.core.errors import EngineError
from vla_cache_trt.backends.common import row_spec
from vla_cache_trt.backends.nvidia_callbacks import PROGRESS_STEPS, make_logger, make_monitor
from vla_cache_trt.engine import BUCKET, Graph, GraphSpec, TensorSpec

PLAN = 'plan.engine'
ALIGNMENT_BYTES = 256
"""Of every address that a context is given."""

_DATA_TYPES = {
    torch.float32: 'FLOAT',
    torch.float16: 'HALF',
    torch.bfloat16: 'BF16',
    torch.int64: 'INT64',
    torch.bool: 'BOOL',
    torch.uint8: 'UINT8',
}
_INVALIDITY = {
    'VERSION_MISMATCH': 'it was built by another version',
    'UNSUPPORTED_CC': 'it was built for another GPU (compute capability)',
    'OLD_CUDA_DRIVER': 'the NVIDIA driver is too old; update it',
    'OLD_CUDA_RUNTIME': 'the CUDA runtime is too old',
    'INSUFFICIENT_GPU_MEMORY': 'the GPU has too little memory',
    'MALFORMED_ENGINE': 'the file is damaged',
    'CUDA_ERROR': 'CUDA failed',
}


@dataclass(frozen=True)
class Package:
    """One of the two packages.

    Attributes:
        name: The backend's name.
        title: What it is called.
        module: Its Python module.
        oldest: First version that has what is used here.
        install: How to get it.
    """

    name: str
    title: str
    module: str
    oldest: tuple[int, ...]
    install: str


class PlanEngine:
    """A loaded plan; each package binds it in its own way."""

    def __init__(
        self,
        trt: Any,
        runtime: Any,
        engine: Any,
        spec: GraphSpec,
        buckets: tuple[int, ...],
        device: torch.device,
    ) -> None:
        """Take what was loaded.

        Args:
            trt: The package.
            runtime: Lives as long as the engine.
            engine: Its profiles are in the order of the buckets.
            spec: Of the graph.
            buckets: Of the engine.
            device: The GPU.
        """
        self.trt, self.engine, self.device = trt, engine, device
        self.spec = spec
        self.buckets = buckets
        self._runtime = runtime


def load_package(package: Package) -> Any:
    """Import the package.

    Raises:
        EngineError: It is not installed, its libraries are missing, or it is too old.
    """
    try:
        trt = importlib.import_module(package.module)
    except ModuleNotFoundError as error:
        raise EngineError(
            f'{package.title} is not installed ({error}). {package.install}'
        ) from error
    except (ImportError, OSError) as error:
        # The registry's wheel may hold Python bindings alone.
        raise EngineError(
            f'{package.title} is installed without its libraries ({error}). {package.install}'
        ) from error
    found = version(trt)
    if _numbers(found) < package.oldest:
        raise EngineError(
            f'{package.title} is {found}; {".".join(map(str, package.oldest))} or later is '
            f'needed. {package.install}'
        )
    return trt


def version(trt: Any) -> str:
    """The package's version."""
    return str(getattr(trt, '__version__', '0'))


def gpu_capability(device: torch.device | str = 'cuda') -> str:
    """Compute capability of a GPU, e.g. '8.9'; empty where torch sees none."""
    if not torch.cuda.is_available():
        return ''
    return '.'.join(map(str, torch.cuda.get_device_capability(device)))


def network_tensors(spec: GraphSpec) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Inputs and outputs of a graph as its network has them, K/V included."""
    inputs, outputs = list(spec.inputs), list(spec.outputs)
    if spec.cache is not None:
        rows = row_spec(spec.cache)
        inputs += [TensorSpec(name, spec.cache.shape, spec.cache.dtype) for name in 'kv']
        outputs += [TensorSpec(f'{name}_rows', rows.shape, rows.dtype) for name in 'kv']
    return inputs, outputs


def build_plan(
    package: Package,
    trt: Any,
    graph: Graph,
    onnx: Path,
    folder: Path,
    buckets: tuple[int, ...],
    configure: Callable[[Any], None],
    on_progress: Callable[[int, int], None],
    target: str,
    timings: Path | None = None,
) -> None:
    """Build a graph's plan file.

    Args:
        package: What builds it.
        trt: Its module.
        graph: The graph.
        onnx: Its ONNX file.
        folder: Gets the plan.
        buckets: Sizes of K; each becomes a profile of its own that holds no other size.
        configure: Sets what only this package has, on the builder's configuration.
        on_progress: Called with steps done and steps in all.
        target: What it is built for, for the message.
        timings: File that keeps the times of kernels for the next graph; None: none is kept.

    Raises:
        EngineError: The ONNX file cannot be read, is not this graph's, or cannot be built.
    """
    log = make_logger(trt)
    log.errors.clear()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(package, trt, network, onnx, log)
    _check_network(package, trt, network, graph.spec, onnx)
    _allow_decomposed_attention(trt, network)

    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means fp32, as in PyTorch
    configure(config)
    if graph.spec.is_bucketed:
        for bucket in buckets:
            config.add_optimization_profile(_profile(builder, graph.spec, bucket))
    cache = None
    if timings is not None:
        cache = config.create_timing_cache(timings.read_bytes() if timings.is_file() else b'')
        config.set_timing_cache(cache, ignore_mismatch=False)
    monitor = make_monitor(trt, on_progress)
    config.progress_monitor = monitor

    plan = builder.build_serialized_network(network, config)
    if monitor.stopped_by is not None:
        raise monitor.stopped_by
    if plan is None:
        raise EngineError(
            f'{package.title} {version(trt)} cannot build {graph.spec.name} for {target}: '
            f'{log.last()}. Another precision, or an export with `--opset 20`, may build.'
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / PLAN, plan)
    if timings is not None and cache is not None:
        write_atomically(timings, cache.serialize())
    on_progress(PROGRESS_STEPS, PROGRESS_STEPS)


def write_atomically(path: Path, data: Any) -> None:
    """Write beside the final name and rename: a reader sees the old file or the new one."""
    partial = path.with_name(f'{path.name}.partial')
    with partial.open('wb') as file:
        file.write(memoryview(data))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_plan(
    package: Package,
    trt: Any,
    graph: Graph,
    folder: Path,
    buckets: tuple[int, ...],
    command: str,
) -> tuple[Any, Any]:
    """Deserialise a graph's plan.

    Args:
        package: What runs it.
        trt: Its module.
        graph: The graph that it must be of.
        folder: Holds the plan.
        buckets: Sizes of K that it must have been built for.
        command: What rebuilds it.

    Returns:
        Runtime and engine; the runtime must live as long.

    Raises:
        EngineError: The plan is missing, damaged, of another version, GPU or graph.
    """
    path = folder / PLAN
    if not path.is_file():
        raise EngineError(f'{path} is missing. Build it with: {command}')
    size = path.stat().st_size
    if not size:
        raise EngineError(f'{path} is empty. Rebuild it with: {command}')
    log = make_logger(trt)
    log.errors.clear()
    runtime = trt.Runtime(log)
    # Mapped, not read: the weights of a large engine need no second copy in memory.
    with path.open('rb') as file:
        plan = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(
            f'{package.title} {version(trt)} refuses {path} ({size} bytes) on this GPU '
            f'(compute capability {gpu_capability() or "unknown"}): '
            f'{_why_invalid(trt, runtime, plan) or log.last()}. Rebuild it here with: {command}'
        )
    names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    inputs, outputs = network_tensors(graph.spec)
    expected = {tensor.name for tensor in (*inputs, *outputs)}
    if names != expected:
        raise EngineError(
            f'{path} is not an engine of {graph.spec.name}: it has {_listed(names)}, wanted '
            f'{_listed(expected)}. Rebuild it with: {command}'
        )
    if engine.num_optimization_profiles != len(buckets):
        raise EngineError(
            f'{path} has {engine.num_optimization_profiles} profiles for {len(buckets)} buckets '
            f'{list(buckets)}. Rebuild it with: {command}'
        )
    return runtime, engine


def bind_context(
    context: Any,
    spec: GraphSpec,
    bucket: int,
    profile: int,
    tensors: dict[str, Tensor],
    stream: torch.cuda.Stream,
) -> None:
    """Give a context its profile, shapes and addresses, once and for all.

    Args:
        context: An execution context; None where there was no memory for one.
        spec: Of the graph.
        bucket: K.
        profile: Index of the profile of that K.
        tensors: Everything that goes in and comes out, by name.
        stream: Does what the choice of a profile needs; is waited for.

    Raises:
        EngineError: There is no context, or it refuses an address or a shape.
    """
    if context is None:
        raise EngineError(
            f'{spec.name}: no execution context for bucket {bucket}; the GPU may lack memory: '
            'use fewer buckets.'
        )
    context.set_optimization_profile_async(profile, stream.cuda_stream)
    stream.synchronize()
    inputs, _ = network_tensors(spec)
    for tensor in inputs:
        if BUCKET in tensor.shape and not context.set_input_shape(tensor.name, tensor.at(bucket)):
            raise EngineError(
                f'the engine of {spec.name} refuses {tensor.name} {list(tensor.at(bucket))}: it '
                'was built for other buckets; rebuild it with `vla-cache engine build`.'
            )
    for name, tensor in tensors.items():
        address = tensor.data_ptr()
        if address % ALIGNMENT_BYTES:
            raise EngineError(
                f'{name} of {spec.name} starts at {address:#x}, which {ALIGNMENT_BYTES} does not '
                'divide: this cut of the layers does not fit TensorRT; choose other prune layers.'
            )
        if not context.set_tensor_address(name, address):
            raise EngineError(
                f'the engine of {spec.name} has no {name}; rebuild it with '
                '`vla-cache engine build`.'
            )


def execute(trt: Any, context: Any, spec: GraphSpec, stream: int) -> None:
    """Enqueue one run.

    Args:
        trt: The package.
        context: Bound, see `bind_context`.
        spec: Of the graph.
        stream: Handle of the CUDA stream.

    Raises:
        EngineError: The context refuses.
    """
    if not context.execute_async_v3(stream):
        raise EngineError(f'the engine of {spec.name} failed to run: {make_logger(trt).last()}.')


def _parse(package: Package, trt: Any, network: Any, onnx: Path, log: Any) -> None:
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(str(onnx)):
        return
    errors = '; '.join(parser.get_error(index).desc() for index in range(parser.num_errors))
    raise EngineError(
        f'{package.title} {version(trt)} cannot read {onnx}: {errors or log.last()}. If the file '
        'is damaged, write it again with `vla-cache engine export`; an older version needs '
        '`--opset 20`.'
    )


def _check_network(package: Package, trt: Any, network: Any, spec: GraphSpec, onnx: Path) -> None:
    """A file that was edited, or is of another model, must not become an engine."""
    inputs, outputs = network_tensors(spec)
    found_inputs = [network.get_input(index) for index in range(network.num_inputs)]
    found_outputs = [network.get_output(index) for index in range(network.num_outputs)]
    for kind, wanted, found in (
        ('input', inputs, found_inputs),
        ('output', outputs, found_outputs),
    ):
        by_name = {tensor.name: tensor for tensor in found}
        if by_name.keys() != {tensor.name for tensor in wanted}:
            raise EngineError(
                f'{onnx} is not {spec.name}: its {kind}s are {_listed(by_name)}, wanted '
                f'{_listed(tensor.name for tensor in wanted)}. Write it again with '
                '`vla-cache engine export`.'
            )
        for tensor in wanted:
            has = by_name[tensor.name]
            if not _fits(trt, tensor, has):
                raise EngineError(
                    f'{onnx} is not {spec.name} as {package.title} is to run it: {kind} '
                    f'{tensor.name} is {has.dtype} {list(has.shape)}, wanted {tensor.dtype} '
                    f'{list(tensor.shape)}. Write it again with `vla-cache engine export`.'
                )


def _fits(trt: Any, wanted: TensorSpec, found: Any) -> bool:
    shape = tuple(found.shape)
    same_type = found.dtype == getattr(trt.DataType, _DATA_TYPES[wanted.dtype])
    # The parser may leave an output's size open where it follows from the inputs'.
    same_shape = len(shape) == len(wanted.shape) and all(
        has == -1 or has == size for has, size in zip(shape, wanted.shape, strict=True)
    )
    return same_type and same_shape


def _allow_decomposed_attention(trt: Any, network: Any) -> None:
    """Let Attention become several kernels where there is no fused one, as in fp32."""
    attention = getattr(trt.LayerType, 'ATTENTION_INPUT', None)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if attention is not None and layer.type == attention:
            layer.__class__ = trt.IAttentionInputLayer  # how the bindings cast a layer
            layer.attention.decomposable = True


def _profile(builder: Any, spec: GraphSpec, bucket: int) -> Any:
    profile = builder.create_optimization_profile()
    for tensor in spec.inputs:
        if BUCKET in tensor.shape:
            shape = tensor.at(bucket)
            profile.set_shape(tensor.name, shape, shape, shape)
    return profile


def _why_invalid(trt: Any, runtime: Any, plan: Any) -> str:
    """The package's own diagnosis, in words; empty where it has none."""
    if not hasattr(runtime, 'get_engine_validity'):
        return ''
    _, diagnostics = runtime.get_engine_validity(plan)
    reasons = [
        words
        for name, words in _INVALIDITY.items()
        if int(diagnostics) & int(getattr(trt.EngineInvalidityDiagnostics, name))
    ]
    return '; '.join(reasons)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split('.') if part.isdigit())


def _listed(names: Any) -> str:
    return ', '.join(sorted(names)) or 'none'
