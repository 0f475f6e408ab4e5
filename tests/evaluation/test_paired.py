from tests.evaluation.synthetic_rows import make_row
from vla_cache_ros.evaluation.episode import EpisodeRow, EpisodeSpec
from vla_cache_ros.evaluation.paired import compare, pair_rows


def row(init_state: int, arm: str, outcome: str, task: int = 0) -> EpisodeRow:
    return make_row(EpisodeSpec('libero_object', task, init_state, arm), outcome)


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


def test_pairs_with_a_simulator_error_are_not_compared():
    comparison = compare(pair_rows(ROWS, 'safe'))
    assert comparison is not None
    assert (comparison.both, comparison.only_first, comparison.pairs) == (1, 1, 2)
    assert comparison.difference == -0.5


def test_an_open_loop_arm_is_paired_with_the_plain_dense_one():
    rows = [row(0, 'off', 'success'), row(0, 'off@7', 'failure')]
    (pair,) = pair_rows(rows, 'off@7')
    assert (pair.dense.spec.arm, pair.cached.spec.arm) == ('off', 'off@7')


def test_differences_between_tasks_do_not_widen_the_interval():
    # Task 0: cached always loses; task 1: never. Within the tasks nothing varies.
    rows = [
        row(state, arm, 'failure' if arm == 'safe' and task == 0 else 'success', task)
        for task in (0, 1)
        for state in range(10)
        for arm in ('off', 'safe')
    ]
    comparison = compare(pair_rows(rows, 'safe'))
    assert comparison is not None
    assert (comparison.bootstrap_low, comparison.bootstrap_high) == (-0.5, -0.5)
    assert comparison.low < -0.5 < comparison.high
