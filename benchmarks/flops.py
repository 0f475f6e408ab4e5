"""Work of the OpenVLA family at full size: published, by the published formula, and counted.

    python benchmarks/flops.py

Takes seconds and little memory: nothing is computed, see work.py. One FLOP is one multiply-add, as
in the published figures. Writes benchmarks/results/flops.json; `python benchmarks/make_tables.py`
renders it.
"""

import json
import math
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from work import PEAKS, count_decoder, floor_ms, step_work

from vla_cache_models.flops import implied_tokens, implied_tokens_behind, published_flops
from vla_cache_models.prismatic.build import empty_network
from vla_cache_models.prismatic.config import LLAMA_2_7B, PrismaticConfig
from vla_cache_models.prismatic.layouts import cogact_layout, oft_layout, openvla_layout
from vla_cache_models.prismatic.network import PrismaticVlm
from vla_cache_models.prismatic.openvla_oft import ACTION_SIZE, CHUNK_SIZE
from vla_cache_ros.cli.report.machine import describe_versions
from vla_cache_ros.core.layout import TokenLayout
from vla_cache_ros.core.plan import LayerGroup, ReusePlan

RESULTS = Path(__file__).parent / 'results'

GRID = 16
FIRST_PRUNE_LAYER = 2


@dataclass(frozen=True)
class Published:
    """Figures of the VLA-Cache paper, tera multiply-adds of the decoder.

    Attributes:
        label: Model and, where there are several, the benchmark.
        name: The model's name in this package.
        layout: Prompt length -> the model's layout.
        dense: Without the cache.
        cached: Under VLA-Cache.
    """

    label: str
    name: str
    layout: Callable[[int], TokenLayout]
    dense: float
    cached: float


def _openvla(prompt_length: int) -> TokenLayout:
    return openvla_layout(('primary',), GRID, prompt_length)


def _oft(prompt_length: int) -> TokenLayout:
    return oft_layout(('primary', 'wrist'), GRID, prompt_length, CHUNK_SIZE * ACTION_SIZE)


def _cogact(prompt_length: int) -> TokenLayout:
    return cogact_layout(('primary',), GRID, prompt_length)


PUBLISHED = (
    Published('OpenVLA', 'openvla', _openvla, 1.864, 1.355),
    Published('OpenVLA-OFT', 'openvla_oft', _oft, 4.013, 3.097),
    Published('CogACT, visual matching', 'cogact', _cogact, 1.847, 1.496),
    Published('CogACT, variant aggregation', 'cogact', _cogact, 1.807, 1.493),
)
WHOLE_STEPS = PUBLISHED[:3]


def layout_of_length(layout: Callable[[int], TokenLayout], tokens: int) -> TokenLayout:
    """The layout whose prompt is as long as N asks for."""
    return layout(2 + tokens - layout(2).num_tokens)


def pruned_plan(layout: TokenLayout, active: int) -> ReusePlan:
    """Everything runs in the first layers, then `active` tokens run."""
    every = np.arange(layout.num_tokens)
    start = layout.vision[0]
    kept = np.delete(every, np.s_[start : start + layout.num_tokens - active])
    groups = (LayerGroup(0, FIRST_PRUNE_LAYER), LayerGroup(FIRST_PRUNE_LAYER, LLAMA_2_7B.layers))
    status = np.zeros(layout.num_vision, dtype=np.uint8)
    return ReusePlan(layout.num_tokens, groups, (every, kept), status, status.astype(np.int32))


def tokens_per_layer(plan: ReusePlan) -> list[int]:
    """Active tokens of each layer."""
    return [
        len(slots)
        for group, slots in zip(plan.groups, plan.recompute, strict=True)
        for _ in range(group.start, group.stop)
    ]


def implied_plans(figures: Published) -> tuple[TokenLayout, dict[str, ReusePlan]]:
    """The layout that the dense figure implies, and the plans that both figures imply."""
    every = implied_tokens(LLAMA_2_7B, 1e12 * figures.dense)
    active = implied_tokens_behind(LLAMA_2_7B, 1e12 * figures.cached, every, FIRST_PRUNE_LAYER)
    layout = layout_of_length(figures.layout, math.ceil(every))
    plans = {
        'dense': pruned_plan(layout, layout.num_tokens),
        'cached': pruned_plan(layout, round(active)),
    }
    return layout, plans


def decoder_rows(figures: Published, network: PrismaticVlm) -> list[dict[str, Any]]:
    """A dense and a cached row: the published figure, what it implies, and our own count."""
    layout, plans = implied_plans(figures)
    every = implied_tokens(LLAMA_2_7B, 1e12 * figures.dense)
    rows = [
        {
            'model': figures.label,
            'arm': arm,
            'tokens': layout.num_tokens,
            'vision_tokens': layout.num_vision,
            'published_t': published,
            'formula_t': published_flops(LLAMA_2_7B, tokens_per_layer(plans[arm])) / 1e12,
            'counted_t': count_decoder(network.decoder, layout, plans[arm]) / 1e12,
            'implied_tokens': implied_tokens(LLAMA_2_7B, 1e12 * published),
        }
        for arm, published in (('dense', figures.dense), ('cached', figures.cached))
    ]
    active = implied_tokens_behind(LLAMA_2_7B, 1e12 * figures.cached, every, FIRST_PRUNE_LAYER)
    rows[1] |= {
        'implied_tokens_behind': active,
        'reused_share': (every - active) / layout.num_vision,
    }
    return rows


def whole_step(figures: Published, network: PrismaticVlm) -> dict[str, Any]:
    """Work and traffic of a whole step, dense and at the published reuse, and its floors."""
    layout, plans = implied_plans(figures)
    dense, cached = (
        {
            part: work
            for parts in step_work(network, layout, plan).values()
            for part, work in parts.items()
        }
        for plan in plans.values()
    )
    return {
        'tokens': layout.num_tokens,
        'parts': {
            part: {
                'dense_t': work.multiply_adds / 1e12,
                'cached_t': cached[part].multiply_adds / 1e12,
                'bytes_gb': work.bytes / 1e9,
            }
            for part, work in dense.items()
        },
        'floor_ms': {
            device: {
                'dense': sum(floor_ms(work, peak) for work in dense.values()),
                'cached': sum(floor_ms(work, peak) for work in cached.values()),
            }
            for device, peak in PEAKS.items()
        },
    }


def main() -> None:
    """Count and write the results."""
    config = PrismaticConfig()
    networks = {name: empty_network(name, config) for name in {item.name for item in PUBLISHED}}
    result = {
        'command': f'python benchmarks/flops.py {shlex.join(sys.argv[1:])}'.strip(),
        'published': [
            row for figures in PUBLISHED for row in decoder_rows(figures, networks[figures.name])
        ],
        'steps': {
            figures.label.split(',')[0]: whole_step(figures, networks[figures.name])
            for figures in WHOLE_STEPS
        },
        'versions': describe_versions(),
    }
    out = RESULTS / 'flops.json'
    out.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')
    print(f'wrote {out}')


if __name__ == '__main__':
    main()
