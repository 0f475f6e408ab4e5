"""Render docs/benchmarks.md, docs/reliability.md and the README's tables from their results.

    python benchmarks/make_tables.py [--check]

The results lie in benchmarks/results/*.json. No figure is typed by hand: what has no result has
no table. `--check` writes nothing and fails where a document is not what the results say.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import evaluation_tables
import reliability_tables
from evaluation_tables import table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / 'benchmarks' / 'results'
DOCUMENT = ROOT / 'docs' / 'benchmarks.md'
RELIABILITY = ROOT / 'docs' / 'reliability.md'
README = ROOT / 'README.md'
BLOCK = re.compile(r'(<!-- benchmarks:begin[^>]*-->\n).*?(<!-- benchmarks:end -->)', re.DOTALL)

HEAD = """# Benchmarks

Made from `benchmarks/results/*.json` by `python benchmarks/make_tables.py`; do not edit by hand.
Each section names the command that measured it and the machine that it ran on. Intervals are 95 %.
"""

RELIABILITY_HEAD = """# Reliability

Made from `benchmarks/results/*.json` by `python benchmarks/make_tables.py`; do not edit by hand.
Each section names the command that measured it and the machine that it ran on. The same faults
are tests (`tests/faults/`), with a fake simulator and a fake policy; what a robot does in them is
in [robot.md](robot.md).
"""

Result = Mapping[str, Any]

SATURATED = 0.9
"""Mean magnitude of action components in [-1, 1] above which most of them lie at an end."""


def step_latency(result: Result) -> list[str]:
    """Stages of a policy step, dense against cached, on the same frames."""
    dense, cached = result['stage_ms']['dense'], result['stage_ms']['cached']
    steps = result['step_ms']
    rows = [
        [stage, *_times(dense.get(stage, 0.0), cached.get(stage, 0.0))]
        for stage in dict.fromkeys((*dense, *cached))
    ]
    for label, key in (('**policy step, p50**', 'p50'), ('policy step, p95', 'p95')):
        rows.append([label, *_times(steps['dense'][key], steps['cached'][key])])
    lines = [
        f'## Time of a policy step, dense against cached ({result["cache"]})',
        '',
        *table(['median, ms', 'dense', 'cached', 'dense / cached'], rows),
        '',
        f'{result["frames"]} frames ({result["frames_from"]}), both policies on every frame in '
        f'alternating order, {result["dtype"]}, {result["threads"]} threads. Dense / cached '
        f'{result["ratio"]:.2f} [{result["ratio_low"]:.2f}, {result["ratio_high"]:.2f}] by '
        f'medians, {result["mean_ratio"]:.2f} by means (keyframes included); '
        f'{result["recompute_ratio"]:.0%} of the token-layers recomputed; cached steps by mode: '
        + ', '.join(f'{count} {mode}' for mode, count in result['modes'].items())
        + '.',
        '',
    ]
    if result['decision_ms'] is not None:
        lines += [
            f'Deciding (diff + selection with the schedule) takes {result["decision_ms"]:.2f} ms, '
            f'{result["decision_share_of_dense"]:.1%} of a dense step.',
            '',
        ]
    return lines


def demo(result: Result) -> list[str]:
    """Times in the composed ROS 2 graph, image capture to command."""
    arms = result['arms']
    rows: list[list[str]] = []
    for label, key in (
        ('policy step', 'step_ms'),
        ('publishing the chunk', 'publish_ms'),
        ('image capture to first command', 'latency_ms'),
        ('of it not inference', 'not_inference_ms'),
    ):
        rows.append([label, *(_quantiles(arms[arm][key]) for arm in ('dense', 'cached'))])
    rows.append(
        [
            'whole loop per control step, p50',
            *(_number(arms[arm]['loop_ms'], 'p50') for arm in ('dense', 'cached')),
        ]
    )
    for label, key in (('policy refresh, Hz', 'refresh_hz'), ('commands, Hz', 'command_hz')):
        rows.append([label, *(f'{arms[arm][key]:.1f}' for arm in ('dense', 'cached'))])
    ratios = ', '.join(
        f'{name.replace("_", " ")} {value:.2f}'
        for name, value in result['speed_up'].items()
        if value is not None
    )
    return [
        '## In the ROS 2 graph, one process',
        '',
        *table(['ms: p50 / p95 / p99', 'dense', f'cached ({result["cache"]})'], rows),
        '',
        f'`{result["task"]}`, {result["success"]["pairs"]} pairs on {_backend(result)}; '
        f'dense / cached: {ratios}. The '
        'whole loop holds the simulator and its rendering, which take most of the time here. In '
        'lockstep the simulator waits for each command, so the rates are what this machine '
        'sustains, not a deadline kept.',
        '',
    ]


def nested(title: str) -> Callable[[Result], list[str]]:
    """Make a renderer of results that are tables already: name -> row -> column -> figure."""

    def render(result: Result) -> list[str]:
        lines = [f'## {title}', '']
        for name, rows in result.items():
            if not _is_table(rows):
                continue
            columns = list(dict.fromkeys(column for row in rows.values() for column in row))
            lines += [
                *table(
                    [name.replace('_', ' '), *(column.replace('_', ' ') for column in columns)],
                    [
                        [label, *(_figure(row.get(column)) for column in columns)]
                        for label, row in rows.items()
                    ],
                ),
                '',
            ]
        return lines

    return render


def attention_rules(result: Result) -> list[str]:
    """Render what reuse costs under each attention rule."""
    lines = [
        '## Attention rules of the layout',
        '',
        "| rule | action loss | cached - dense, mean | p95 of a step's greatest | recomputed |",
        '|---|--:|--:|--:|--:|',
    ]
    for rule, row in result['rules'].items():
        lines.append(
            f'| `{rule}` | {row["action_loss"]:.3f} | {row["mean_difference"]:.4f} | '
            f'{row["p95_of_step_maximum"]:.2f} | {row["recompute_ratio"]:.0%} |'
        )
    cached = min(row['cached_steps'] for row in result['rules'].values())
    return [
        *lines,
        '',
        f'The committed weights, trained on for {result["steps"]} steps under each rule; '
        'differences of six action components in [-1, 1], over '
        f'{cached} cached steps of one recorded episode.',
        '',
    ]


def flops(result: Result) -> list[str]:
    """Published work of the decoders, what it implies, and whole steps at full size."""
    rows = []
    for row in result['published']:
        behind, reused = row.get('implied_tokens_behind'), row.get('reused_share')
        rows.append(
            [
                f'{row["model"]}, {row["arm"]}',
                str(row['tokens']),
                *(f'{row[key]:.3f}' for key in ('published_t', 'formula_t', 'counted_t')),
                f'{row["implied_tokens"]:.1f}',
                '' if behind is None else f'{behind:.1f}',
                '' if reused is None else f'{reused:.0%} of {row["vision_tokens"]}',
            ]
        )
    columns = [
        'decoder, tera multiply-adds',
        'tokens',
        'published',
        'formula',
        'counted (ours)',
        'tokens implied',
        'in layers 2-31',
        'vision tokens reused there',
    ]
    lines = [
        '## Work of the OpenVLA family',
        '',
        *table(columns, rows),
        '',
        'Formula: 4 n d² + 2 n² d + 3 n d m per layer, a multiply-add counting one. The published '
        'dense figures pin the token counts: means over instructions of different lengths, hence '
        'the fractions. Tokens implied: the equal count over all layers that the formula charges '
        'the published figure for; in layers 2-31: the same where layers 0 and 1 run everything, '
        'as the published prune layers 2, 6, 9, 11 have it. Counted: our decoder at full size '
        "under torch's FLOP counter, dense or with that many tokens from layer 2 on; rows that "
        'run attend to all slots, while the formula charges them for one another alone.',
        '',
    ]
    for model, step in result['steps'].items():
        lines += _step_parts(model, step)
    return [
        *lines,
        'Floor of a part: 2 multiply-adds over the peak, or weights and K/V over the bandwidth, '
        'whichever is longer; bfloat16, by the data sheets, computed and not measured. The parts '
        'run one after the other.',
        '',
    ]


def _step_parts(model: str, step: Result) -> list[str]:
    """Work and traffic of a step's parts, and the step's floor per device."""
    parts = step['parts']
    rows = [
        [name, f'{part["dense_t"]:.3f}', f'{part["cached_t"]:.3f}', f'{part["bytes_gb"]:.2f}']
        for name, part in parts.items()
    ]
    dense, cached, traffic = (
        sum(part[key] for part in parts.values()) for key in ('dense_t', 'cached_t', 'bytes_gb')
    )
    rows.append(['**whole step**', f'{dense:.3f}', f'{cached:.3f}', f'{traffic:.2f}'])
    floors = '; '.join(
        f'{device} {arms["dense"]:.1f} -> {arms["cached"]:.1f} ms'
        for device, arms in step['floor_ms'].items()
    )
    return [
        *table(
            [
                f'{model}, tera multiply-adds',
                'dense',
                'at the published reuse',
                'weights and K/V read, GB',
            ],
            rows,
        ),
        '',
        f'Dense / cached {dense / cached:.2f} by work. Floor of the step: {floors}.',
        '',
    ]


def action_agreement(result: Result) -> list[str]:
    """Differences of cached from dense actions, along each sweep."""
    rows = [
        [f'`{sweep}` {value}', f'{point["reused"]:.0%}', *_agreement_cells(point)]
        for sweep, points in result['curves'].items()
        for value, point in points.items()
    ]
    rows.append(['dense, noisy sensor', '', *_agreement_cells(result['noise'])])
    magnitude = result['dense_mean_magnitude']
    saturated = max(magnitude.values()) > SATURATED
    image = result['image']
    return [
        f'## Agreement of cached with dense actions: {result["model"]}',
        '',
        f'![Differences against the share that is reused](images/{image})',
        '',
        *table(
            [
                'setting',
                'reused',
                'translation: mean',
                'p95',
                'max',
                'rotation: mean',
                'p95',
                'max',
                'gripper flips',
            ],
            rows,
        ),
        '',
        f'{result["frames"]} policy steps, the first of each episode left out; '
        f'{len(result["frames_from"])} recorded episodes ({"; ".join(result["frames_from"])}). '
        'The sweeps start from `safe` without its other limits on the count; '
        '`difference_threshold` decides alone, without the similarity; '
        '`static_fraction_of_unchanged` reuses unchanged patches alone; `reuse_pressure` is '
        '`safe` as late refreshes raise it. The automatic off is '
        'disabled. Absolute differences of the whole chunk in action units, p95: of the greatest '
        'of each step. For comparison, dense actions have a mean magnitude of '
        f'{magnitude["translation"]:.3f} (translation) and {magnitude["rotation"]:.3f} '
        '(rotation), and the last row is the dense policy on the same frames with every pixel '
        f'off by up to {result["noise_levels"]} of 255 levels.'
        + (' Most components lie at an end of their range here, which hides differences.')
        * saturated,
        '',
    ]


def _agreement_cells(point: Result) -> list[str]:
    cells = [
        f'{point[part][statistic]:.4f}'
        for part in ('translation', 'rotation')
        for statistic in ('mean', 'p95_of_step_maximum', 'max')
    ]
    return [*cells, f'{point["gripper_flips"]:.1%}']


def vla_latency(result: Result) -> list[str]:
    """Stages of a step with random weights, with the floor where the device's peaks are known."""
    dense, cached = result['stage_ms']['dense'], result['stage_ms']['cached']
    steps, floor = result['step_ms'], result['floor_ms']
    rows = [
        [
            stage,
            *_times(dense.get(stage, 0.0), cached.get(stage, 0.0)),
            *_floor_cells(floor, stage),
        ]
        for stage in dict.fromkeys((*dense, *cached))
    ]
    rows.append(
        ['**policy step, p50**', *_times(steps['dense']['p50'], steps['cached']['p50']), '', '']
    )
    depth = result['tower_depth']
    towers = 'whole towers' if depth is None else f'towers of {depth} blocks, the last unused'
    work = result['tera_multiply_adds']
    total = {arm: sum(stages.values()) for arm, stages in work.items()}
    return [
        f'## Time of a step of {result["model"]}, random weights, {result["device"]}',
        '',
        f'![Stages of a step](images/{result["image"]})',
        '',
        *table(
            ['median, ms', 'dense', 'cached', 'dense / cached', 'floor, dense', 'floor, cached'],
            rows,
        ),
        '',
        f'Decoder of {result["layers"]} layers of {result["width"]}, {towers}, '
        f'{result["tokens"]} tokens, {result["dtype"]}, {result["threads"]} threads; preset '
        f'`{result["cache"]}` with every candidate reused from layer '
        f'{result["prune_layers"][0]} on: {result["recompute_ratio"]:.0%} of the token-layers '
        f'recomputed. {result["frames"]} steps ({result["frames_from"]}), both policies on every '
        f'frame in alternating order. Dense / cached {result["ratio"]:.2f} '
        f'[{result["ratio_low"]:.2f}, {result["ratio_high"]:.2f}] by medians; matrix products: '
        f'{total["dense"]:.3f} -> {total["cached"]:.3f} tera multiply-adds.',
        *([] if floor else ['No floor: the peaks of this device are not listed.']),
        '',
    ]


def _floor_cells(floor: Result | None, stage: str) -> list[str]:
    if floor is None or stage not in floor['dense']:
        return ['', '']
    return [f'{floor[arm][stage]:.2f}' for arm in ('dense', 'cached')]


def bucket_waste(result: Result) -> list[str]:
    """What rounding K up to a bucket costs, by the number of buckets."""
    lines = ['## Buckets of the engines', '']
    columns = ['buckets', 'rows of padding', 'share of the rows that run', 'runs at each bucket']
    for name, model in result['models'].items():
        means = ', '.join(
            f'{tokens:.0f} under `{preset}`' for preset, tokens in model['mean_tokens'].items()
        )
        rows = [
            _waste_row(', '.join(map(str, row['buckets'])), row)
            for row in model['by_count'].values()
        ]
        rows += [
            _waste_row(f'**default**, `{preset}` alone', row)
            for preset, row in model['presets'].items()
        ]
        lines += [
            *table([f'{name}: {columns[0]}', *columns[1:]], rows),
            '',
            f'{model["runs"]} layers run, {means} on average; the longest sequence recorded has '
            f'{model["recorded"]} tokens, the longest possible one {model["longest"]}. Default: '
            f'{", ".join(map(str, model["default"]))}.',
            '',
        ]
    return [
        *lines,
        'Each set is the best one of its size for the recorded history, found by dynamic '
        'programming: multiples of 16, the longest possible sequence last. The history holds '
        'every layer of every step of all recorded episodes under the presets `safe` and `paper` '
        f'({"; ".join(result["frames_from"])}). The OpenVLA family has random weights here; its '
        'presets also run with all candidates reused, since entropies of random attention say '
        'nothing about the schedule.',
        '',
    ]


def _waste_row(label: str, row: Result) -> list[str]:
    hits = ', '.join(f'{bucket}: {share:.0%}' for bucket, share in row['hits'].items())
    return [label, f'{row["mean_padding"]:.1f}', f'{row["share_of_work"]:.1%}', hits]


def engine_step(result: Result) -> list[str]:
    """Steps on every engine, dense against cached, and where the rest goes."""
    cases, ceiling = result['cases'], result['ceiling']
    work = result['giga_multiply_adds']
    one = next(iter(cases.values()))
    return [
        f'## Engines: time of a step, {result["about"]}',
        '',
        f'![Steps per engine](images/{result["image"]})',
        '',
        *_engine_table(cases, ceiling),
        '',
        f'{result["parameters"] / 1e6:.0f} million parameters, {result["tokens"]} tokens, prune '
        f'layers {", ".join(map(str, result["prune_layers"]))}, buckets '
        f'{", ".join(map(str, result["buckets"]))}, {result["threads"]} threads; '
        f'{one["recompute_ratio"]:.0%} of the token-layers recomputed. {one["frames"]} steps '
        f'({"; ".join(result["frames_from"])}), all policies on every frame in rotating order. '
        f'Ceiling: dense / cached {ceiling:.2f} by work ({work["dense"]:.2f} -> '
        f'{work["cached"]:.2f} giga multiply-adds). torch: PyTorch eager, without engines.',
        '',
        *_engine_stages(cases),
        *_engine_losses(cases),
    ]


def engine_step_brief(result: Result) -> list[str]:
    """The README's part of `engine_step`."""
    return [
        f'## Engines: time of a step, {result["about"]}',
        '',
        *_engine_table(result['cases'], result['ceiling']),
        '',
        f'{result["parameters"] / 1e6:.0f} million parameters, {result["tokens"]} tokens, CPU, '
        f'{result["threads"]} threads. The ceiling is dense / cached by work, '
        f'{result["ceiling"]:.2f}.',
        '',
    ]


def _engine_table(cases: Mapping[str, Result], ceiling: float) -> list[str]:
    """A row per case, dense against cached."""
    eager = cases.get('torch fp32', {}).get('step_ms')
    rows = []
    for case, found in cases.items():
        dense, cached = (found['step_ms'][arm]['p50'] for arm in ('dense', 'cached'))
        rows.append(
            [
                f'{case} ({found["version"]})',
                f'{dense:.1f}',
                f'{cached:.1f}',
                f'{found["ratio"]:.2f} [{found["ratio_low"]:.2f}, {found["ratio_high"]:.2f}]',
                f'{found["ratio"] / ceiling:.0%}',
                *(
                    f'{eager[arm]["p50"] / found["step_ms"][arm]["p50"]:.2f}' if eager else ''
                    for arm in ('dense', 'cached')
                ),
                f'{found["decision_ms"]:.2f} = '
                f'{found["decision_ms"] / found["step_ms"]["cached"]["p50"]:.1%}',
            ]
        )
    columns = [
        'median, ms',
        'dense',
        'cached',
        'dense / cached',
        'of the ceiling',
        'torch fp32 / this, dense',
        'cached',
        'deciding, of a cached step',
    ]
    return table(columns, rows)


def _engine_stages(cases: Mapping[str, Result]) -> list[str]:
    """Stages of the fastest case beside those of PyTorch."""
    fastest = min(cases, key=lambda case: cases[case]['step_ms']['cached']['p50'])
    stages = cases[fastest]['stage_ms']
    rows = [
        [stage, *_times(stages['dense'].get(stage, 0.0), stages['cached'].get(stage, 0.0))]
        for stage in dict.fromkeys((*stages['dense'], *stages['cached']))
    ]
    return [
        *table([f'{fastest}: median, ms', 'dense', 'cached', 'dense / cached'], rows),
        '',
    ]


def _engine_losses(cases: Mapping[str, Result]) -> list[str]:
    """What keeps cached steps from dense / ceiling."""
    compiled = {case: found['losses'] for case, found in cases.items() if 'losses' in found}
    if not compiled:
        return []
    names = {
        'dense_over_ceiling': 'dense / ceiling',
        'beyond': '**beyond it**',
        'padding': 'padding rows',
        'row_copies': 'writing K/V rows',
        'around_the_decoder_engine': "filling the decoder's inputs",
        'decision': 'deciding',
        'between_stages': 'between the stages',
        'preprocess': 'preprocessing, the same in both',
        'engine_less_efficient_on_fewer_rows': 'the rest',
    }
    rows = [
        [label, *(f'{losses[name]:.1f}' for losses in compiled.values())]
        for name, label in names.items()
    ]
    return [
        *table(['cached step, ms', *compiled], rows),
        '',
        'Dense / ceiling: what a cached step would take if it were as efficient as a dense one. '
        'The rest: graphs that are less efficient on fewer rows, and noise.',
        '',
    ]


def engine_parity(result: Result) -> list[str]:
    """Differences of every engine from PyTorch in float32."""
    lines = ['## Engines: parity with PyTorch in float32', '']
    for name, model in result['models'].items():
        rows = []
        for case, found in model['cases'].items():
            for arm in ('dense', 'cached'):
                figures = found[arm]
                relevance = figures.get('relevance_cosine')
                rows.append(
                    [
                        f'{case}, {arm}',
                        _figure(figures['motion_max']),
                        _figure(figures['motion_mean']),
                        f'{figures["gripper"]:.0%}',
                        _figure(figures['hidden_max']),
                        f'{figures["hidden_cosine"]:.6f}',
                        '' if relevance is None else f'{relevance:.6f}',
                        'missed'
                        if any(miss.startswith(arm) for miss in found['missed'])
                        else 'ok',
                    ]
                )
        columns = [
            f'{name}: policy',
            'action, max',
            'mean',
            'gripper agrees',
            'hidden, max',
            'cosine, least',
            'relevance: cosine, least',
            'thresholds',
        ]
        cases = model['cases']
        counts = [point['rows'] for point in next(iter(cases.values()))['decoder']]
        lines += [
            *table(columns, rows),
            '',
            *table(
                [f'{name}: decoder at K =', *cases],
                [
                    [
                        str(count),
                        *(
                            _figure(found['decoder'][index]['hidden_max'])
                            for found in cases.values()
                        ),
                    ]
                    for index, count in enumerate(counts)
                ]
                + [
                    [
                        'least cosine',
                        *(
                            f'{min(point["hidden_cosine"] for point in found["decoder"]):.6f}'
                            for found in cases.values()
                        ),
                    ]
                ],
            ),
            '',
            f'{model["about"][0].upper()}{model["about"][1:]}; {model["frames"]} frames '
            f'({"; ".join(model["frames_from"])}); buckets '
            f'{", ".join(map(str, model["buckets"]))}. Mean magnitude of an action '
            f'{model["action_magnitude"]:.3f}.',
            '',
        ]
    return [
        *lines,
        'Policy: PyTorch plans, the engine runs the same plans; differences of the six motion '
        'axes of all actions, and of the hidden states behind the last layer. Decoder: greatest '
        'difference of the normalised hidden states for random rows against a random cache. '
        'Thresholds are those of `vla-cache engine verify`.',
        '',
    ]


def batching(result: Result) -> list[str]:
    """Time per session and step of a batch against one by one, and what padding costs."""
    columns = [
        'preset',
        'sessions',
        'one by one, CPU ms',
        'together',
        'times faster',
        'by the clock',
        'forwards',
        'recomputed alone',
        'together',
        'from dense alone',
        'together',
        'rounding',
    ]
    rows = [
        [
            preset,
            str(case['sessions']),
            f'{case["alone_cpu_ms"]["p50"]:.1f}',
            f'{case["together_cpu_ms"]["p50"]:.1f}',
            f'{case["cpu_speedup"]:.2f}',
            f'{case["speedup"]:.2f}',
            f'{case["forwards"]:.1f}',
            f'{100 * case["recomputed_alone"]:.1f} %',
            f'{100 * case["recomputed_together"]:.1f} %',
            f'{case["divergence_alone"]:.4f}',
            f'{case["divergence_together"]:.4f}',
            f'{case["rounding_max"]:.0e}',
        ]
        for preset, cases in result['presets'].items()
        for case in cases
    ]
    return [
        '## Several sessions in one forward',
        '',
        *table(columns, rows),
        '',
        f'The small VLA, {result["frames"]} frames of each of {len(result["frames_from"])} '
        f'recorded episodes, {result["threads"]} threads, load average {result["load_1min"]:.0f}; '
        'median CPU time of a step per session. One session is the same computation both ways: '
        'its ratios are noise. A batch holds steps whose plans recompute at most '
        f'{result["work_spread"]} times the least of them, padded to equal counts: recomputed are '
        'the token-layers alone and together. From dense: mean distance of the six motion axes '
        "from the dense policy's actions. Rounding: greatest difference between a batch and the "
        'same plans one by one.',
        '',
    ]


RENDERERS: dict[str, Callable[[Result], list[str]]] = {
    'paired_success': evaluation_tables.paired_success,
    'paired_success_paper': evaluation_tables.paired_success,
    'baselines': evaluation_tables.baselines,
    'robustness': evaluation_tables.robustness,
    'harness_throughput': evaluation_tables.harness_throughput,
    'step_latency_safe': step_latency,
    'step_latency_paper': step_latency,
    'demo': demo,
    'patch_compare': nested('Patch comparison and decision'),
    'middleware': nested('Middleware'),
    'attention_rules': attention_rules,
    'batching': batching,
    'action_agreement': action_agreement,
    'action_agreement_openvla_oft': action_agreement,
    'action_agreement_cogact': action_agreement,
    'flops': flops,
    **{
        f'vla_latency_{model}_{device}': vla_latency
        for model in ('openvla', 'openvla_oft', 'cogact')
        for device in ('cpu', 'gpu')
    },
    'bucket_waste': bucket_waste,
    'engine_step_small': engine_step,
    'engine_step_oft_300m': engine_step,
    'engine_step_oft_300m_published': engine_step,
    'engine_parity': engine_parity,
}
"""Result file -> its section of docs/benchmarks.md, in the document's order."""

DEFAULT_COMMANDS = {
    name: f'python benchmarks/{name}.py --json > benchmarks/results/{name}.json'
    for name in ('patch_compare', 'middleware')
}
README_SECTIONS: dict[str, Callable[[Result], list[str]]] = {
    'paired_success': evaluation_tables.paired_success_brief,
    'step_latency_safe': step_latency,
    'demo': demo,
    'engine_step_oft_300m': engine_step_brief,
}
"""Result file -> its section in the README."""


def render_section(name: str, result: Result) -> list[str]:
    """Render a result with its command and machine."""
    command = result.get('command', DEFAULT_COMMANDS.get(name, ''))
    render = {**RENDERERS, **reliability_tables.RENDERERS}[name]
    return [*render(result), *_provenance(command, result.get('machine', {}))]


def render_document(results: Mapping[str, Result]) -> str:
    """Render docs/benchmarks.md."""
    lines = [HEAD]
    for name in RENDERERS:
        if name in results:
            lines += render_section(name, results[name])
    return '\n'.join(lines).rstrip() + '\n'


def render_reliability(results: Mapping[str, Result]) -> str:
    """Render docs/reliability.md."""
    lines = [RELIABILITY_HEAD]
    for name in reliability_tables.RENDERERS:
        if name in results:
            lines += render_section(name, results[name])
    return '\n'.join(lines).rstrip() + '\n'


def render_readme(text: str, results: Mapping[str, Result]) -> str:
    """Replace the README's block of tables."""
    lines: list[str] = []
    for name, render in README_SECTIONS.items():
        if name in results:
            lines += [line.replace('## ', '### ', 1) for line in render(results[name])]
    if not BLOCK.search(text):
        raise SystemExit('README.md has no <!-- benchmarks:begin --> .. end block')
    block = '\n'.join(lines).strip()
    return BLOCK.sub(lambda match: f'{match[1]}{block}\n{match[2]}', text)


def load_results() -> dict[str, Result]:
    """Read every result file; one without a renderer is an error."""
    results: dict[str, Result] = {}
    for path in sorted(RESULTS.glob('*.json')):
        if path.stem not in (known := {**RENDERERS, **reliability_tables.RENDERERS}):
            raise SystemExit(f'{path} has no renderer; known: {", ".join(known)}')
        results[path.stem] = json.loads(path.read_text(encoding='utf-8'))
    return results


def main() -> None:
    """Write or check the documents."""
    results = load_results()
    wanted = {
        DOCUMENT: render_document(results),
        RELIABILITY: render_reliability(results),
        README: render_readme(README.read_text(encoding='utf-8'), results),
    }
    stale = [
        path
        for path, text in wanted.items()
        if not path.exists() or path.read_text(encoding='utf-8') != text
    ]
    if '--check' in sys.argv[1:]:
        for path in stale:
            print(f'{path.relative_to(ROOT)} is stale; run python benchmarks/make_tables.py')
        sys.exit(bool(stale))
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[path], encoding='utf-8')
        print(f'wrote {path.relative_to(ROOT)}')


def _provenance(command: str, machine: Mapping[str, Any]) -> list[str]:
    described = ', '.join(f'{key} {value}' for key, value in machine.items())
    lines = [f'`{command}`  '] if command else []
    return [*lines, f'Machine: {described}.' if described else '', '']


def _times(dense: float, cached: float) -> tuple[str, str, str]:
    ratio = f'{dense / cached:.2f}' if min(dense, cached) > 0.05 else ''
    return f'{dense:.2f}', f'{cached:.2f}', ratio


def _backend(result: Result) -> str:
    """What the policy ran on, in words."""
    config = result['config']
    return ' '.join(
        filter(None, (config.get('backend', 'torch'), config.get('precision') or config['dtype']))
    )


def _quantiles(times: Mapping[str, float] | None) -> str:
    if times is None:
        return '-'
    return ' / '.join(f'{times[key]:.2f}' for key in ('p50', 'p95', 'p99'))


def _number(times: Mapping[str, float] | None, key: str) -> str:
    return '-' if times is None else f'{times[key]:.1f}'


def _is_table(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(row, Mapping) for row in value.values())
    )


def _figure(value: object) -> str:
    if value is None:
        return ''
    if isinstance(value, bool | str | int):
        return str(value)
    if isinstance(value, float):
        return f'{value:.1e}' if 0 < abs(value) < 1e-3 else f'{value:.3g}'
    return json.dumps(value)


if __name__ == '__main__':
    main()
