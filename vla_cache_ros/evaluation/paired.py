"""Dense against cached on the same initial states: rates, paired test and interval."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from vla_cache_ros.evaluation.episode import EpisodeRow, TaskName
from vla_cache_ros.evaluation.statistics import PairedComparison, compare_pairs, wilson_rate


@dataclass(frozen=True)
class Pair:
    """The same episode without and with reuse."""

    dense: EpisodeRow
    cached: EpisodeRow

    @property
    def judged(self) -> bool:
        """Whether both say something about the policy."""
        return self.dense.judged and self.cached.judged

    @property
    def task(self) -> TaskName:
        """The task of both."""
        return self.dense.spec.name


def pair_rows(rows: Sequence[EpisodeRow], arm: str, against: str = 'off') -> list[Pair]:
    """Match every row of one arm with that of another on the same episode otherwise.

    Rows without a partner are left out.
    """
    found = {row.spec: row for row in rows}
    pairs: list[Pair] = []
    for spec, row in found.items():
        partner = found.get(replace(spec, arm=arm))
        if spec.arm == against and partner is not None:
            pairs.append(Pair(row, partner))
    return pairs


def compare(pairs: Sequence[Pair]) -> PairedComparison | None:
    """Compare the judged pairs; None where there are none."""
    judged = [pair for pair in pairs if pair.judged]
    if not judged:
        return None
    return compare_pairs(
        [pair.dense.success for pair in judged], [pair.cached.success for pair in judged]
    )


def summarize_pairs(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Compute what benchmarks/results/paired_success.json holds of the comparison."""
    tasks = list(dict.fromkeys(pair.task for pair in pairs))
    comparison = compare(pairs)
    return {
        'pairs': len(pairs),
        'simulator_errors': sum(not pair.judged for pair in pairs),
        'dense': _arm([pair.dense for pair in pairs if pair.judged]),
        'cached': _arm([pair.cached for pair in pairs if pair.judged]),
        'comparison': asdict(comparison) if comparison else None,
        'tasks': {
            str(task): {
                'dense': _arm([p.dense for p in pairs if p.judged and p.task == task]),
                'cached': _arm([p.cached for p in pairs if p.judged and p.task == task]),
            }
            for task in tasks
        },
    }


def _arm(rows: Sequence[EpisodeRow]) -> dict[str, Any]:
    rate = wilson_rate(sum(row.success for row in rows), len(rows))
    ratios = [r for row in rows if (r := row.summary.recompute_ratio) is not None]
    successful = [row.steps for row in rows if row.success]
    return {
        'successes': rate.successes,
        'trials': rate.trials,
        'low': rate.low,
        'high': rate.high,
        'recompute_ratio': float(np.mean(ratios)) if ratios else None,
        'median_steps_to_success': float(np.median(successful)) if successful else None,
    }
