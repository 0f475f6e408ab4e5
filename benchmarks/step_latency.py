"""Time of one policy step, dense against cached, stage by stage, on recorded frames.

    python benchmarks/step_latency.py [--cache safe] [--frames FILE.npz]

The same as `vla-cache bench`, with the result and its chart where make_tables finds them.
"""

import json
import shlex
import shutil
import sys
from pathlib import Path

import tyro

from vla_cache_ros.cli.bench import BenchConfig, run_bench

RESULTS = Path(__file__).parent / 'results'
IMAGES = Path(__file__).parents[1] / 'docs' / 'images'


def main() -> None:
    """Time the policies; keep the figures of each preset apart."""
    config = tyro.cli(BenchConfig, description=__doc__)
    if status := run_bench(config):
        sys.exit(status)
    result = json.loads((config.out / 'step_latency.json').read_text(encoding='utf-8'))
    result['command'] = f'python benchmarks/step_latency.py {shlex.join(sys.argv[1:])}'.strip()
    name = f'step_latency_{config.cache}'
    RESULTS.mkdir(parents=True, exist_ok=True)
    IMAGES.mkdir(parents=True, exist_ok=True)
    (RESULTS / f'{name}.json').write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')
    for suffix in ('', '-dark'):
        shutil.copyfile(config.out / f'step_latency{suffix}.png', IMAGES / f'{name}{suffix}.png')
    print(f'wrote {RESULTS / name}.json')


if __name__ == '__main__':
    main()
