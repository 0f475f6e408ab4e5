"""`vla-cache inspect`: what a checkpoint holds and whether it loads, without loading it."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

if TYPE_CHECKING:
    from vla_cache_models.loading.report import CheckpointReport

BYTES_PER_NUMBER = {'bf16': 2, 'fp32': 4}


@dataclass(frozen=True)
class InspectConfig:
    """Options of `vla-cache inspect`."""

    folder: Positional[Path]
    """Folder of the checkpoint: the small VLA, OpenVLA, OpenVLA-OFT or CogACT."""
    json: bool = False
    """Print one JSON object instead of tables."""


def run_inspect(config: InspectConfig) -> int:
    """Read the headers and print what they say.

    Returns:
        0 when the checkpoint loads, 1 when something keeps it from loading.

    Raises:
        CheckpointError: The folder has none of the known layouts.
    """
    from vla_cache_models.loading.report import inspect_checkpoint

    report = inspect_checkpoint(config.folder)
    if config.json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        _print_tables(report)
    return 0 if report.loads else 1


def _print_tables(report: 'CheckpointReport') -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    summary = Table('', '', title=f'{report.folder}: {report.format}', show_header=False)
    for part, shape in report.architecture.items():
        summary.add_row(part, Text(shape))
    summary.add_row('parameters', Text(_parameters_in_words(report)))
    summary.add_row('memory', Text(_memory_in_words(report)))
    summary.add_row('tensors', Text(', '.join(f'{n} {kind}' for kind, n in report.dtypes.items())))
    summary.add_row('norm_stats', Text(', '.join(report.unnorm_keys) or '-'))
    for name, size in report.files.items():
        summary.add_row('file', Text(f'{name}, {_in_units(size)}'))
    console.print(summary)

    if report.tokens:
        tokens = Table('tokens', 'from', 'to', 'number', title='Token layout')
        for span in report.tokens:
            size = span.stop - span.start
            tokens.add_row(span.name, str(span.start), str(span.stop - 1), str(size))
        console.print(tokens)

    for why, number in Counter(report.unused.values()).items():
        console.print(Text(f'{number} tensors stay in the file: {why}.'), soft_wrap=True)
    for problem in report.problems:
        console.print(Text(problem, 'red'), soft_wrap=True)
    if report.missing or report.unexpected or report.misshaped:
        tensors = Table('', title='Tensors that do not fit')
        tensors.add_column('tensor', overflow='fold')
        for kind in ('missing', 'unexpected', 'misshaped'):
            for line in getattr(report, kind):
                tensors.add_row(Text(kind, 'red'), Text(line))
        console.print(tensors)
    if report.loads:
        console.print(Text('It loads.', 'green'))
    else:
        console.print(Text('It does not load.', 'bold red'))


def _parameters_in_words(report: 'CheckpointReport') -> str:
    parts = ', '.join(f'{part} {number / 1e6:.1f}' for part, number in report.parameters.items())
    return f'{report.total_parameters / 1e6:.1f} million: {parts}'


def _memory_in_words(report: 'CheckpointReport') -> str:
    return ', '.join(
        f'{_in_units(report.total_parameters * size)} in {kind}'
        for kind, size in BYTES_PER_NUMBER.items()
    )


def _in_units(size: float) -> str:
    return f'{size / 1e9:.2f} GB' if size >= 1e9 else f'{size / 1e6:.1f} MB'
