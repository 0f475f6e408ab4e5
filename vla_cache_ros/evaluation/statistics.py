"""Intervals and tests for success rates and times; small, pure, without a seed of their own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from vla_cache_ros.core.errors import ConfigError


@dataclass(frozen=True)
class Rate:
    """A success rate with its Wilson interval."""

    successes: int
    trials: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """Successes over trials; NaN without trials."""
        return self.successes / self.trials if self.trials else float('nan')

    def __str__(self) -> str:
        """Format as '41/50 = 82.0 % [69.2, 90.2]'."""
        return (
            f'{self.successes}/{self.trials} = {100 * self.value:.1f} % '
            f'[{100 * self.low:.1f}, {100 * self.high:.1f}]'
        )


def wilson_rate(successes: int, trials: int, confidence: float = 0.95) -> Rate:
    """Wilson's score interval of a binomial rate.

    centre = (p + z^2/2n) / (1 + z^2/n), half width = z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n)

    Args:
        successes: Number of successes.
        trials: Number of trials; 0 gives the interval [0, 1].
        confidence: Two-sided level in (0, 1).

    Raises:
        ConfigError: successes is outside 0..trials.
    """
    if not 0 <= successes <= trials:
        raise ConfigError(f'successes must lie in 0..{trials}; got {successes}.')
    if trials == 0:
        return Rate(0, 0, 0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p, scale = successes / trials, 1 + z * z / trials
    centre = (p + z * z / (2 * trials)) / scale
    half = z * math.sqrt(p * (1 - p) / trials + (z / (2 * trials)) ** 2) / scale
    return Rate(successes, trials, max(0.0, centre - half), min(1.0, centre + half))


@dataclass(frozen=True)
class PairedComparison:
    """Success of two arms on the same initial states.

    Attributes:
        both, only_first, only_second, neither: The four cells of the paired table.
        difference: Rate of the second arm minus rate of the first.
        low, high: Bootstrap interval of the difference, pairs resampled.
        p_value: Exact two-sided McNemar test of 'both arms succeed equally often'.
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    difference: float
    low: float
    high: float
    p_value: float

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return self.both + self.only_first + self.only_second + self.neither


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Exact two-sided McNemar test: the discordant pairs are a fair coin under the null.

    Returns:
        The p value; 1 without discordant pairs.
    """
    discordant = only_first + only_second
    tail = sum(math.comb(discordant, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**discordant)


def bootstrap_mean_interval(
    values: Sequence[float], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean.

    Raises:
        ConfigError: There are no values.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        raise ConfigError('an interval needs at least one value.')
    drawn = np.random.default_rng(seed).integers(sample.size, size=(resamples, sample.size))
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(sample[drawn].mean(axis=1), [tail, 100.0 - tail])
    return float(low), float(high)


def compare_pairs(
    first: Sequence[bool], second: Sequence[bool], confidence: float = 0.95, seed: int = 0
) -> PairedComparison:
    """Compare two arms, pair by pair.

    Args:
        first: Success of the first arm (dense) per pair.
        second: Success of the second arm (cached) per pair.
        confidence: Level of the bootstrap interval.
        seed: Seed of the bootstrap.

    Raises:
        ConfigError: The lengths differ or there are no pairs.
    """
    if len(first) != len(second) or not first:
        raise ConfigError(
            f'paired arms need the same number of episodes, at least one; '
            f'got {len(first)} and {len(second)}.'
        )
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    difference = b.astype(np.float64) - a.astype(np.float64)
    low, high = bootstrap_mean_interval(difference.tolist(), confidence, seed=seed)
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    return PairedComparison(
        both=int((a & b).sum()),
        only_first=only_first,
        only_second=only_second,
        neither=int((~a & ~b).sum()),
        difference=float(difference.mean()),
        low=low,
        high=high,
        p_value=mcnemar_p(only_first, only_second),
    )


@dataclass(frozen=True)
class Quantiles:
    """Median and tails of a sample of times, in the sample's unit."""

    count: int
    p50: float
    p95: float
    p99: float
    max: float


def quantiles(values: Sequence[float]) -> Quantiles:
    """Median and tails (linear interpolation between order statistics).

    Raises:
        ConfigError: There are no values.
    """
    if len(values) == 0:
        raise ConfigError('quantiles need at least one value.')
    sample = np.asarray(values, dtype=np.float64)
    p50, p95, p99 = (float(q) for q in np.percentile(sample, [50, 95, 99]))
    return Quantiles(sample.size, p50, p95, p99, float(sample.max()))
