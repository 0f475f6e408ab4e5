"""The demo's figures and picture, where make_tables and the README find them.

python benchmarks/demo_figures.py [--task libero_object/0] [--init-states 0-3]
"""

import dataclasses
import json
import os
import shlex
import shutil
import sys
from pathlib import Path

os.environ.setdefault('MUJOCO_GL', 'egl')  # read once, at the simulator's import
os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')

import tyro

from vla_cache_ros.cli.demo import DemoConfig, run_demo
from vla_cache_ros.cli.report.page import METRICS, POSTER, VIDEO

RESULTS = Path(__file__).parent / 'results'
IMAGES = Path(__file__).parents[1] / 'docs' / 'images'
MAX_VIDEO_BYTES = 2 * 2**20


def main() -> None:
    """Run the demo and keep what the documentation shows."""
    config = tyro.cli(DemoConfig, description=__doc__)
    folder = config.out or Path('runs/demo_figures')
    if status := run_demo(dataclasses.replace(config, out=folder)):
        sys.exit(status)
    metrics = json.loads((folder / METRICS).read_text(encoding='utf-8'))
    metrics['command'] = f'python benchmarks/demo_figures.py {shlex.join(sys.argv[1:])}'.strip()
    for path in (RESULTS, IMAGES):
        path.mkdir(parents=True, exist_ok=True)
    (RESULTS / 'demo.json').write_text(json.dumps(metrics, indent=2) + '\n', encoding='utf-8')
    shutil.copyfile(folder / POSTER, IMAGES / 'demo.png')
    for chart in ('latency', 'reuse'):
        for suffix in ('', '-dark'):
            shutil.copyfile(folder / f'{chart}{suffix}.png', IMAGES / f'demo_{chart}{suffix}.png')
    if (folder / VIDEO).stat().st_size <= MAX_VIDEO_BYTES:
        shutil.copyfile(folder / VIDEO, IMAGES / 'demo.mp4')
    print(f'wrote {RESULTS / "demo.json"} and {IMAGES / "demo.png"}')


if __name__ == '__main__':
    main()
