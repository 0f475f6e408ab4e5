"""Dense against cached on the same initial states."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vla_cache_ros.evaluation.episode import EpisodeRow, TaskName
from vla_cache_ros.evaluation.statistics import PairedComparison, compare_pairs


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
    """Compare the judged pairs, each task a stratum; None where there are none."""
    judged = [pair for pair in pairs if pair.judged]
    if not judged:
        return None
    return compare_pairs(
        [pair.dense.success for pair in judged],
        [pair.cached.success for pair in judged],
        strata=[pair.task for pair in judged],
    )
