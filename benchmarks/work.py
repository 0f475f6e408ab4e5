"""What a step of the OpenVLA family must at least do, and how long a device needs for that.

The real modules run on the meta device, where nothing is computed, under torch's FLOP counter.
One part of a step does so many multiply-adds, and it reads its weights and K/V once per pass:

    floor = max(2 multiply-adds / peak, bytes / bandwidth)

Activations are left out, and so are norms, softmax and all that is no matrix product.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vla_cache_models.attendance import one_row, resolve_attendance
from vla_cache_models.decoder import Decoder, DecoderConfig
from vla_cache_models.flops import plan_flops
from vla_cache_models.prismatic.cogact import GUIDANCE_SCALE, CogActNetwork
from vla_cache_models.prismatic.ddim import DdimSchedule
from vla_cache_models.prismatic.dit import guided_noise
from vla_cache_models.prismatic.network import PrismaticVlm
from vla_cache_models.prismatic.openvla import ACTION_SIZE, OpenVlaNetwork
from vla_cache_models.prismatic.openvla_oft import (
    CHUNK_SIZE,
    PROPRIOCEPTION_SIZE,
    OpenVlaOftNetwork,
)
from vla_cache_ros.core.kv_cache import KVCache
from vla_cache_ros.core.layout import TokenLayout
from vla_cache_ros.core.plan import ReusePlan

BFLOAT16_BYTES = 2
FLOAT32_BYTES = 4  # CogACT's diffusion transformer


@dataclass(frozen=True)
class Work:
    """What a part of a step must at least do.

    Attributes:
        multiply_adds: Of its matrix products.
        bytes: Weights and K/V that it reads.
    """

    multiply_adds: int
    bytes: int


@dataclass(frozen=True)
class Peak:
    """A device by its vendor's data sheet.

    Attributes:
        flops_per_s: bfloat16 matrix products with float32 sums, without sparsity; a multiply-add
            counts two.
        bytes_per_s: Memory bandwidth.
    """

    flops_per_s: float
    bytes_per_s: float


PEAKS = {
    'NVIDIA GeForce RTX 4090': Peak(165.2e12, 1008e9),
    'NVIDIA A100-SXM4-80GB': Peak(312e12, 2039e9),
    'NVIDIA H100 80GB HBM3': Peak(989e12, 3350e9),
    'NVIDIA H200': Peak(989e12, 4800e9),
}
"""Devices by the name that torch.cuda.get_device_name gives; an unknown one has no floor."""


def floor_ms(work: Work, peak: Peak) -> float:
    """The least time for the work, milliseconds."""
    return 1e3 * max(2 * work.multiply_adds / peak.flops_per_s, work.bytes / peak.bytes_per_s)


def step_work(
    network: PrismaticVlm, layout: TokenLayout, plan: ReusePlan
) -> dict[str, dict[str, Work]]:
    """Stage of `VlaPolicy` -> part -> what it must do in bfloat16.

    Args:
        network: On the meta device.
        layout: The layout of the instruction.
        plan: Which tokens run in the decoder.
    """
    return {
        'vision': _vision(network, len(layout.cameras)),
        'decoder': {
            'decoder, prompt': Work(
                count_decoder(network.decoder, layout, plan),
                _weight_bytes(network.decoder) + _kv_bytes(network.decoder.config, layout),
            )
        },
        'head': _head(network, layout),
    }


def count_decoder(decoder: Decoder, layout: TokenLayout, plan: ReusePlan) -> int:
    """Multiply-adds of a decoder on the meta device under a plan."""
    config = decoder.config
    cache = _cache(config, layout.num_tokens)

    def run() -> None:
        for group, slots in zip(plan.groups, plan.recompute, strict=True):
            decoder(
                _meta(1, len(slots), config.width),
                torch.from_numpy(slots).to('meta'),
                resolve_attendance(layout, slots, 'meta'),
                cache,
                group.start,
                group.stop,
            )

    counted = _count(run)
    assert counted == plan_flops(config, layout, plan), 'vla_cache_models.flops has an error'
    return counted


def _vision(network: PrismaticVlm, cameras: int) -> dict[str, Work]:
    """Towers, one by one, and the projector, for all cameras together."""
    size, vision = network.config.towers[0].image_size_px, network.vision
    pictures = _meta(cameras, 3, size, size)
    parts = {
        config.timm_id.split('.')[0]: _part(
            tower, lambda features=tower.forward_features: features(pictures)
        )
        for config, tower in zip(network.config.towers, vision.towers, strict=True)
    }
    features = _meta(cameras, vision.grid**2, vision.width)
    parts['projector'] = _part(network.projector, lambda: network.projector(features))
    return parts


def _head(network: PrismaticVlm, layout: TokenLayout) -> Mapping[str, Work]:
    """What follows the decoder, by model."""
    if isinstance(network, OpenVlaNetwork):
        return _openvla_head(network, layout)
    if isinstance(network, OpenVlaOftNetwork):
        return _oft_head(network)
    assert isinstance(network, CogActNetwork)
    return _cogact_head(network)


def _openvla_head(network: OpenVlaNetwork, layout: TokenLayout) -> dict[str, Work]:
    """The tokens generated behind the first one, and the language head of all."""
    config = network.config.decoder
    cache = _cache(config, layout.num_tokens + ACTION_SIZE)
    row = _meta(1, 1, config.width)
    slots = range(layout.num_tokens, layout.num_tokens + ACTION_SIZE - 1)

    def generate() -> None:
        for slot in slots:
            network.decoder(row, torch.tensor([slot], device='meta'), one_row(slot), cache)

    read = _weight_bytes(network.decoder) + _kv_bytes(config, layout)
    return {
        f'decoder, {len(slots)} tokens one by one': Work(_count(generate), len(slots) * read),
        'language head': _part(network.lm_head, lambda: network.lm_head(row), ACTION_SIZE),
    }


def _oft_head(network: OpenVlaOftNetwork) -> dict[str, Work]:
    """The L1 head, with the projector of the robot's state."""
    rows = _meta(1, CHUNK_SIZE * ACTION_SIZE, network.config.decoder.width)
    projector, head = network.proprioception_projector, network.action_head

    def run() -> None:
        projector(_meta(1, PROPRIOCEPTION_SIZE))
        head(rows)

    return {'L1 head': _part(nn.ModuleList((projector, head)), run)}


def _cogact_head(network: CogActNetwork) -> dict[str, Work]:
    """All sampling steps of the diffusion transformer, conditioned and unconditioned."""
    dit, steps = network.action_model, len(DdimSchedule().timesteps)
    x = _meta(1, dit.config.chunk_size, dit.config.action_size)
    condition = _meta(1, 1, dit.config.condition_width)
    time = torch.zeros(1, dtype=torch.int64, device='meta')

    def run() -> None:
        guided_noise(dit, x, time, condition, GUIDANCE_SCALE)

    return {f'DiT, {steps} steps': _part(dit, run, steps, FLOAT32_BYTES)}


def _part(
    module: nn.Module,
    run: Callable[[], object],
    passes: int = 1,
    bytes_per_number: int = BFLOAT16_BYTES,
) -> Work:
    """A module that reads its weights in each of its passes; `run` is one of them."""
    return Work(passes * _count(run), passes * _weight_bytes(module, bytes_per_number))


def _count(run: Callable[[], object]) -> int:
    """Multiply-adds of what `run` does."""
    counter = FlopCounterMode(display=False)
    # The plain attention: torch's table of countable operations lacks some of the fused kernels.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:
        run()
    return counter.get_total_flops() // 2


def _meta(*shape: int) -> Tensor:
    """A tensor that has a shape alone."""
    return torch.empty(shape, device='meta')


def _cache(config: DecoderConfig, num_tokens: int) -> KVCache:
    return KVCache(config.layers, config.kv_heads, num_tokens, config.head_dim, device='meta')


def _weight_bytes(module: nn.Module, bytes_per_number: int = BFLOAT16_BYTES) -> int:
    return bytes_per_number * sum(weight.numel() for weight in module.parameters())


def _kv_bytes(config: DecoderConfig, layout: TokenLayout) -> int:
    numbers = 2 * config.layers * config.kv_heads * config.head_dim * layout.num_tokens
    return BFLOAT16_BYTES * numbers
