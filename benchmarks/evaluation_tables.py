"""Sections of docs/benchmarks.md that come from episodes in closed loop.

Their results hold summaries as `vla_cache_ros.evaluation.summary` writes them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vla_cache_ros.evaluation.summary import DENSE, points_in_words

Result = Mapping[str, Any]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown table: first column left, the others right."""
    return [
        '| ' + ' | '.join(columns) + ' |',
        '|---|' + '--:|' * (len(columns) - 1),
        *('| ' + ' | '.join(row) + ' |' for row in rows),
    ]


def paired_success(result: Result) -> list[str]:
    """Success of every arm against the dense one, with the work that reuse saves."""
    summary = result['summary']
    return [
        _heading(summary),
        '',
        *paired_table(summary),
        '',
        *(f'- {pair["in_words"]}' for pair in summary['paired']),
        '',
        'Difference: arm minus dense with the 95 % score interval of paired rates (Tango 1998); '
        'bootstrap: pairs resampled within their tasks; McNemar: exact, two-sided. '
        f'Non-inferiority at a margin of {points_in_words(result["margin"])} is read from the '
        'lower bound, one-sided 2.5 %; pairs needed: for that claim with 80 % power, were there '
        'no difference and as many discordant pairs as seen.',
        '',
        *work_table(result),
        '',
        *([] if result['divergence'] else _load(result)),
        *_by_task(summary),
        *_failures(summary),
    ]


def paired_success_brief(result: Result) -> list[str]:
    """The README's part of `paired_success`."""
    summary = result['summary']
    return [
        _heading(summary),
        '',
        *paired_table(summary),
        '',
        *work_table(result),
        '',
    ]


def _heading(summary: Result) -> str:
    arms = dict.fromkeys(arm['arm'] for arm in summary['arms'] if arm['arm'] != DENSE)
    return f'## Success on the same initial states, dense against {", ".join(arms)}'


def paired_table(summary: Result) -> list[str]:
    """An arm per row, the dense one first."""
    pairs = {(pair['condition'], pair['arm']): pair for pair in summary['paired']}
    rows = [
        [
            f'`{arm["arm"]}`',
            rate(arm['success']),
            *_difference(pairs.get((arm['condition'], arm['arm']))),
        ]
        for arm in summary['arms']
    ]
    columns = [
        'arm',
        'success [95 %]',
        'minus dense, points',
        'bootstrap',
        'McNemar p',
        'only dense / only this',
        'non-inferior?',
        'loss ruled out, points',
        'pairs needed',
    ]
    return table(columns, rows)


def _difference(pair: Result | None) -> list[str]:
    if pair is None or pair['comparison'] is None:
        return [''] * 7
    found, test = pair['comparison'], pair['non_inferiority']
    return [
        f'{points(found["difference"])} [{points(found["low"])}, {points(found["high"])}]',
        f'[{points(found["bootstrap_low"])}, {points(found["bootstrap_high"])}]',
        f'{found["p_value"]:.2g}',
        f'{found["only_first"]} / {found["only_second"]}',
        test['verdict'],
        f'{100 * test["ruled_out"]:.1f}',
        f'{test["pairs_needed"]:,}',
    ]


def work_table(result: Result) -> list[str]:
    """What each arm computes, and how far its actions are from dense ones or how long it takes.

    Comparing with the dense chunk warms other memory between the timed steps, so a run shows
    either its divergence or its times.
    """
    columns = ['arm', 'vision-token work saved', 'token-layers recomputed']
    columns += (
        ['cached - dense: mean', 'max', 'gripper flips']
        if result['divergence']
        else ['policy step, ms: p50 / p95', 'policy per control step, ms']
    )
    more = _divergence_cells if result['divergence'] else _time_cells
    rows = [
        [
            f'`{arm["arm"]}`',
            percent(arm['vision_work_saved'], 1),
            percent(arm['recompute_ratio'], 1),
            *more(arm),
        ]
        for arm in result['summary']['arms']
    ]
    return table(columns, rows)


def _time_cells(arm: Result) -> list[str]:
    step, control = arm['step_ms'].get('all'), arm['control_step_ms']
    return [
        f'{step["p50"]:.1f} / {step["p95"]:.1f}' if step else '',
        f'{control["mean"]:.2f} [{control["low"]:.2f}, {control["high"]:.2f}]' if control else '',
    ]


def _divergence_cells(arm: Result) -> list[str]:
    if arm['divergence_mean'] is None:
        return [''] * 3
    return [
        f'{arm["divergence_mean"]:.4f}',
        f'{arm["divergence_max"]:.2f}',
        str(arm['gripper_flips']),
    ]


def robustness(result: Result) -> list[str]:
    """Success and vision work by condition, each cached arm against the dense one."""
    summary = result['summary']
    arms = {(arm['condition'], arm['arm']): arm for arm in summary['arms']}
    names = list(dict.fromkeys(arm['arm'] for arm in summary['arms']))
    pairs = {(pair['condition'], pair['arm']): pair for pair in summary['paired']}
    lines = [
        '## Robustness: disturbed episodes',
        '',
        f'![Success and vision work by condition](images/{result["image"]})',
        '',
    ]
    for name in (name for name in names if name != DENSE):
        columns = [
            f'`{name}` under',
            'dense',
            f'`{name}`',
            'minus dense, points',
            'only dense / only this',
            'McNemar p',
            'vision-token work done',
            'keyframes, of steps',
            'cached - dense: mean',
            'gripper flips',
        ]
        rows = [
            _robustness_row(
                condition,
                arms.get((condition, DENSE)),
                arms[condition, name],
                pairs.get((condition, name)),
            )
            for condition in result['conditions']
            if (condition, name) in arms
        ]
        lines += [*table(columns, rows), '']
    return [
        *lines,
        'Conditions: '
        + '; '.join(f'`{name}`: {about}' for name, about in result['conditions'].items())
        + '.',
        '',
        'Every arm sees the same disturbance from the same initial states. Where the cache '
        'notices it by itself, the work done rises; where it does not, the difference from dense '
        'actions does.',
        '',
        *_failures(summary),
    ]


def _robustness_row(
    condition: str, dense: Result | None, cached: Result, pair: Result | None
) -> list[str]:
    found = pair['comparison'] if pair else None
    steps = cached['policy_steps']
    keyframes = steps - cached['modes'].get('cached', 0)
    compared = cached['divergence_mean'] is not None
    return [
        condition,
        rate(dense['success']) if dense else '',
        rate(cached['success']),
        f'{points(found["difference"])} [{points(found["low"])}, {points(found["high"])}]'
        if found
        else '',
        f'{found["only_first"]} / {found["only_second"]}' if found else '',
        f'{found["p_value"]:.2g}' if found else '',
        percent(cached['vision_recompute_ratio'], 1),
        percent(keyframes / steps, 1) if steps else '',
        f'{cached["divergence_mean"]:.4f}' if compared else '',
        str(cached['gripper_flips']) if compared else '',
    ]


def baselines(result: Result) -> list[str]:
    """The cache beside what users would do instead."""
    summary, found = result['summary'], result['open_loop']
    capped = found['steps'] == found['chunk_size'] and found['equal'] > found['steps']
    return [
        '## Baselines: success against milliseconds',
        '',
        f'![Success against policy time per control step](images/{result["image"]})',
        '',
        *work_table(result),
        '',
        *paired_table(summary),
        '',
        '`random` reuses as many tokens as `safe` would, drawn at random; `static_only` knows no '
        f'task relevance. `off@{found["steps"]}` is dense with {found["steps"]} instead of '
        f'{found["executed"]} actions of each chunk executed: fewer refreshes at the compute of '
        f'`{result["equal_to"]}`, whose policy time per control step is {found["share"]:.0%} of '
        f'the dense one ({found["executed"]} / {found["share"]:.2f} = {found["equal"]:.1f}'
        + (f'; a chunk has only {found["chunk_size"]})' if capped else ')')
        + '. Intervals of the figure: Wilson upward, bootstrap over episodes within their tasks '
        'sideways.',
        '',
        *_load(result),
        *_failures(summary),
    ]


def harness_throughput(result: Result) -> list[str]:
    """Episodes per hour and the harness's own cost by number of workers."""
    columns = [
        'workers',
        'episodes',
        'episodes per hour',
        'without start-up',
        'control steps per second',
        'harness per control step, ms: median / p95',
        "harness's share of an episode",
        "policy's share",
    ]
    rows = [
        [
            str(run['workers']),
            str(run['episodes']),
            f'{run["episodes_per_hour"]:.0f}',
            ''
            if run['steady_episodes_per_hour'] is None
            else f'{run["steady_episodes_per_hour"]:.0f}',
            f'{run["control_steps_per_s"]:.1f}',
            f'{run["overhead_ms"]:.3f} / {run["overhead_ms_p95"]:.3f}',
            percent(run['harness_share'], 2),
            percent(run['policy_share'], 1),
        ]
        for run in result['runs'].values()
    ]
    return [
        '## Harness: episodes per hour',
        '',
        *table(columns, rows),
        '',
        'The same episodes, from nothing each time; one thread per worker. Without start-up: from '
        'the first episode of every worker on. The rest of an episode is the simulator with its '
        'rendering.',
        '',
    ]


def _by_task(summary: Result) -> list[str]:
    """Success per task, an arm per column."""
    arms = list(dict.fromkeys(task['arm'] for task in summary['tasks']))
    tasks: dict[str, dict[str, Result]] = {}
    for task in summary['tasks']:
        tasks.setdefault(task['task'], {})[task['arm']] = task['success']
    rows = [
        [name, *(rate(rates[arm]) if arm in rates else '' for arm in arms)]
        for name, rates in tasks.items()
    ]
    return [*table(['task', *(f'`{arm}`' for arm in arms)], rows), '']


def _load(result: Result) -> list[str]:
    """What the times were measured under."""
    workers = result['workers']
    return [
        f'Times: {result["backend"]}, one thread, {workers} '
        f'{"worker" if workers == 1 else "workers"} on {result["machine"]["cores"]} cores, with '
        'their simulators; step times alone are in the sections on latency.',
        '',
    ]


def _failures(summary: Result) -> list[str]:
    errors = summary['simulator_errors']
    return [f'{errors} episodes failed in the simulator: not counted.', ''] if errors else []


def rate(success: Result) -> str:
    """'41/50 = 82 % [69, 90]'."""
    if not success['trials']:
        return '-'
    return (
        f'{success["successes"]}/{success["trials"]} = {100 * success["value"]:.1f} % '
        f'[{100 * success["low"]:.1f}, {100 * success["high"]:.1f}]'
    )


def points(share: float) -> str:
    """A difference of shares in points, zero without a sign."""
    text = f'{100 * share:+.1f}'
    return '0.0' if text in ('+0.0', '-0.0') else text


def percent(share: float | None, digits: int = 0) -> str:
    """A share, where it is known."""
    return '' if share is None else f'{100 * share:.{digits}f} %'
