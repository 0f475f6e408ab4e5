"""A backend on a real GPU against the module in PyTorch on the same GPU."""

from pathlib import Path
from types import ModuleType

import torch

from tests.trt.fake_tensorrt import BUCKETS, fill, small_cache, small_graph
from vla_cache_trt.backends import torch_eager

PRECISIONS = {'float32': 'fp32', 'float16': 'fp16', 'bfloat16': 'bf16'}
TOLERANCE = {'float32': 1e-4, 'float16': 2e-2, 'bfloat16': 1.5e-1}
STEPS = ((23, 23), (4, 1), (9, 9), (4, 4), (23, 10), (9, 5))
"""(bucket, rows that are no padding)."""


def assert_same_as_torch(
    backend: ModuleType, dtype: str, folder: Path, *, exact: bool = False
) -> None:
    """Build, bind and run; outputs and the whole cache must agree after every step."""
    graph = small_graph(getattr(torch, dtype), 'cuda')
    precision = PRECISIONS[dtype]
    onnx = folder / 'graph.onnx'
    if not exact:
        from vla_cache_trt.export import export_onnx

        export_onnx(graph, onnx)
    backend.compile_graph(graph, onnx, folder, precision, BUCKETS, lambda done, total: None)
    engine = backend.load_engine(graph, onnx, folder, precision, BUCKETS, 'cuda')
    reference = torch_eager.load_engine(graph, None, folder, precision, BUCKETS, 'cuda')
    caches = [small_cache(graph) for _ in range(2)]
    bound = engine.bind(*caches[0])
    wanted_bound = reference.bind(*caches[1])
    tolerance = 0.0 if exact else TOLERANCE[dtype]
    for step, (bucket, rows) in enumerate(STEPS):
        for each in (bound, wanted_bound):
            fill(dict(each.inputs(bucket)), rows, seed=step)
        found, wanted = bound.run(bucket), wanted_bound.run(bucket)
        torch.cuda.synchronize()
        real = {'hidden_out': slice(0, rows)}
        for name in wanted:
            part = (slice(None), real[name]) if name in real else (slice(None),)
            torch.testing.assert_close(
                found[name][part], wanted[name][part], atol=tolerance, rtol=tolerance
            )
        for ours, theirs in zip(*caches, strict=True):
            torch.testing.assert_close(
                ours[:, :, :, :-1], theirs[:, :, :, :-1], atol=tolerance, rtol=tolerance
            )
