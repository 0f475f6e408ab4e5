"""`vla-cache eval` as a process of its own, with a fake policy and simulator.

python eval_process.py STEP_S [OPTIONS OF eval]
"""

import functools
import sys
from pathlib import Path

from vla_cache_ros.cli import evaluate, main

if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).parent))
    from cli_fakes import FakeEnvs, FakePolicies

    evaluate.run_evaluate = functools.partial(
        evaluate.run_evaluate,
        make_policy=FakePolicies(),
        make_env=FakeEnvs(step_s=float(sys.argv[1])),
    )
    sys.exit(main.main(['eval', *sys.argv[2:]]))
