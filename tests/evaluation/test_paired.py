from vla_cache_ros.evaluation.episode import EpisodeRow, EpisodeSpec, PolicyStep
from vla_cache_ros.evaluation.paired import compare, pair_rows, summarize_pairs

STEP = PolicyStep(0, 'cached', 1.0, {}, recompute_ratio=0.5, vision_recompute_ratio=0.4)


def row(init_state: int, arm: str, outcome: str, task: int = 0) -> EpisodeRow:
    spec = EpisodeSpec('libero_object', task, init_state, arm)
    return EpisodeRow(spec, outcome, steps=90, trace=(STEP,))


ROWS = [
    row(0, 'off', 'success'),
    row(0, 'safe', 'success'),
    row(1, 'off', 'success'),
    row(1, 'safe', 'failure'),
    row(2, 'off', 'failure', task=3),
    row(2, 'safe', 'simulator_error', task=3),
    row(4, 'off', 'success'),  # no partner
    row(0, 'paper', 'failure'),  # another comparison
]


def test_only_partners_are_paired():
    pairs = pair_rows(ROWS, 'safe')
    assert [(pair.dense.spec.init_state, pair.cached.spec.init_state) for pair in pairs] == [
        (0, 0),
        (1, 1),
        (2, 2),
    ]
    assert compare(pair_rows(ROWS, 'nothing')) is None


def test_summary_leaves_simulator_errors_out_of_both_arms():
    summary = summarize_pairs(pair_rows(ROWS, 'safe'))
    assert summary['pairs'] == 3
    assert summary['simulator_errors'] == 1
    assert (summary['dense']['successes'], summary['dense']['trials']) == (2, 2)
    assert (summary['cached']['successes'], summary['cached']['trials']) == (1, 2)
    assert summary['comparison']['difference'] == -0.5
    assert summary['tasks']['libero_object/3']['dense']['trials'] == 0
    assert summary['cached']['recompute_ratio'] == 0.5
