"""Sections of docs/reliability.md."""

from collections.abc import Callable, Mapping
from typing import Any

from evaluation_tables import table

Result = Mapping[str, Any]

DUE = {
    'null': 'null action in {ms:.0f} ms',
    'zero': 'zero twist in {ms:.0f} ms',
    'stale': 'null action in {ms:.0f} ms',
    'on': 'no command too old',
}


def faults(result: Result) -> list[str]:
    """What each fault did."""
    rows = result['faults']
    injections = sum(row['injections'] for row in rows.values())
    kept = sum(row['kept'] for row in rows.values())
    return [
        '## Faults',
        '',
        f'{injections} injections at random phases; every promise held in {kept} of them. '
        f'Commands every {result["period_ms"]:.0f} ms; a command may be at most '
        f'{result["limit_ms"]:.0f} ms older than its image.',
        '',
        *table(
            [
                'fault',
                'promise',
                'held',
                'first null action, ms',
                'last twist that moves, ms',
                'null actions while it lasts',
                'recovery, ms',
                'oldest command, ms',
                'too old',
                'repeated',
            ],
            [_fault_row(name, row) for name, row in rows.items()],
        ),
        '',
        'Times: median / greatest, from the fault, or for recovery from its end, on '
        'CLOCK_MONOTONIC of one machine. Oldest command: stamp of the command minus stamp of the '
        'image behind it. After a kill, recovery holds the start of the process. A twist moves on '
        'for the rest of its control step.',
        '',
        *_outcomes(rows),
        '',
    ]


def _fault_row(name: str, row: Result) -> list[str]:
    return [
        name,
        DUE[row['due']].format(ms=row['due_ms'] or 0),
        f'{row["kept"]} of {row["injections"]}',
        _times(row['first_null_ms']),
        _times(row['moving_ms']),
        f'{row["nulls"]} of {row["commands"]}',
        _times(row['recovery_ms']),
        f'{row["oldest_ms"]:.0f}',
        str(row['too_old']),
        str(row['repeated']),
    ]


def _outcomes(rows: Mapping[str, Result]) -> list[str]:
    """A line per fault: what was said about it."""
    lines = []
    for name, row in rows.items():
        reasons = ', '.join(f'{reason} {count}' for reason, count in row['reasons'].items())
        said = f'said: {reasons}' if reasons else 'nothing was said'
        moved = row['commands'] - row['nulls']
        if not row['commands']:
            outcome = 'no commands'
        elif not row['nulls']:
            outcome = 'the arm went on'
        elif moved:
            outcome = 'the arm stopped'
        else:
            outcome = 'the arm stopped at once'
        note = f'; {row["note"]}' if row['note'] else ''
        lines.append(f'- {name}: {outcome}; {said}{note}.')
    return lines


def _times(times: Mapping[str, float] | None) -> str:
    return '-' if times is None else f'{times["p50"]:.0f} / {times["max"]:.0f}'


def soak(result: Result) -> list[str]:
    """What a long run left behind."""
    frames = result['frames']
    dropped = sum(frames['dropped'].values())
    reasons = ', '.join(f'{count} {reason}' for reason, count in frames['dropped'].items())
    episodes = ', '.join(f'{count} {how}' for how, count in result['episodes'].items())
    nulls = result['null_actions']
    return [
        f'## Soak: {result["minutes"]:.0f} minutes in the loop',
        '',
        f'![Memory and latency over time](images/{result["image"]})',
        '',
        *table(
            [
                f'from minute {result["growth_from_minute"]:.1f} on',
                'memory, MiB: first -> last third',
                'growth',
                'files',
                'threads',
                'CPU, cores',
            ],
            [_growth_row(node, row) for node, row in result['growth'].items()],
        ),
        '',
        *table(
            ['image to command', 'commands', 'p50, ms', 'p99, ms', 'max, ms'],
            [
                [
                    f'minutes {row["from_minute"]:.1f} to {row["to_minute"]:.1f}',
                    str(row['count']),
                    *(f'{row[key]:.1f}' for key in ('p50_ms', 'p99_ms', 'max_ms')),
                ]
                for row in result['latency']
            ],
        ),
        '',
        f'Frames: {frames["sent"]} sent = {frames["processed"]} processed + {dropped} reported '
        f'dropped{f" ({reasons})" if reasons else ""} + {frames["lost_in_transport"]} unaccounted '
        f'for. Commands: {result["commands"]}, of which {sum(nulls.values())} null actions'
        + (f' ({", ".join(f"{count} {why}" for why, count in nulls.items())})' if nulls else '')
        + f'. Episodes: {episodes}. Processes that ended by themselves: {result["restarts"]}.',
        '',
    ]


def _growth_row(node: str, row: Result) -> list[str]:
    memory = row['rss_mib']
    return [
        node,
        f'{memory["first"]:.0f} -> {memory["last"]:.0f}',
        f'{memory["growth"]:+.2%}',
        *(f'{row[key]["first"]:.0f} -> {row[key]["last"]:.0f}' for key in ('files', 'threads')),
        f'{row["cpu_share"]:.2f}',
    ]


def middleware_processes(result: Result) -> list[str]:
    """Image stamp to command, one process against several."""
    return [
        '## Middleware: image stamp to command',
        '',
        *table(
            [
                'cameras',
                'processes',
                'p50, ms',
                'p99, ms',
                'max, ms',
                'frames answered',
                'CPU, cores',
            ],
            [
                [
                    row['cameras'],
                    row['processes'],
                    *(f'{row[key]:.2f}' for key in ('p50_ms', 'p99_ms', 'max_ms')),
                    f'{row["answered_share"]:.1%}',
                    ', '.join(f'{name} {share:.2f}' for name, share in row['cpu'].items()),
                ]
                for row in result['rows'].values()
            ],
        ),
        '',
        'From the moment the images are stamped to the publication of the first command made from '
        'them, without the inference of the stand-in policy '
        f'({result["options"]["inference_ms"]:g} ms). Frames that were not answered were lost '
        'between processes, or replaced by a newer one while the policy was busy.',
        '',
    ]


def command_jitter(result: Result) -> list[str]:
    """How evenly commands are sent."""
    return [
        '## Jitter of commands',
        '',
        *table(
            [
                'commands',
                'p50, ms',
                'p99, ms',
                'max, ms',
                'missed periods',
                'sent, Hz',
                'CPU, cores',
            ],
            [
                [
                    name,
                    *(f'{row[key]:.3f}' for key in ('p50_ms', 'p99_ms', 'max_ms')),
                    f'{row["missed_periods"]} ({row["missed_share"]:.2%})',
                    f'{row["sent_hz"]:.1f}',
                    f'{row["cpu_share"]:.2f}',
                ]
                for name, row in result['rows'].items()
            ],
        ),
        '',
        'Jitter: |interval - period| between publications in the guard, a process of its own. '
        'Missed: periods without a command of their own. Busy: one process per core that never '
        'sleeps.',
        '',
    ]


RENDERERS: dict[str, Callable[[Result], list[str]]] = {
    'faults': faults,
    'soak': soak,
    'middleware_processes': middleware_processes,
    'command_jitter': command_jitter,
}
"""Result file -> its section, in the document's order."""
