"""Result files of scripts that may measure in several runs."""

import json
from pathlib import Path
from typing import Any

from vla_cache_ros.cli.report.machine import describe_machine, describe_versions

RESULTS = Path(__file__).resolve().parents[1] / 'results'


def merge_result(name: str, tables: dict[str, dict[str, Any]], **about: Any) -> Path:
    """Put rows into benchmarks/results/<name>.json; rows that were not measured again stay.

    Args:
        name: The result's name.
        tables: Table -> row -> figures.
        **about: Options, command and the like, which replace those of before.
    """
    path = RESULTS / f'{name}.json'
    before = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
    merged = {key: {**before.get(key, {}), **rows} for key, rows in tables.items()}
    machine = {'machine': describe_machine(), 'versions': describe_versions()}
    text = json.dumps({**before, **about, **machine, **merged}, indent=2)
    path.write_text(text + '\n', encoding='utf-8')
    print(f'wrote {path.name}')
    return path
