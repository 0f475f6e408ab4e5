"""Intervals and tests for success rates and times; small, pure, without a seed of their own."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

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
        low, high: Tango's score interval of the difference; it has a width even where no pair is
            discordant.
        bootstrap_low, bootstrap_high: Bootstrap interval, pairs resampled within their strata.
        p_value: Exact two-sided McNemar test of 'both arms succeed equally often'.
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    difference: float
    low: float
    high: float
    bootstrap_low: float
    bootstrap_high: float
    p_value: float

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def discordant_rate(self) -> float:
        """Share of the pairs in which one arm alone succeeded."""
        return (self.only_first + self.only_second) / self.pairs


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Exact two-sided McNemar test: the discordant pairs are a fair coin under the null.

    Returns:
        The p value; 1 without discordant pairs.
    """
    discordant = only_first + only_second
    tail = sum(math.comb(discordant, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**discordant)


def paired_interval(
    only_first: int, only_second: int, pairs: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Tango's score interval of the difference of two paired rates.

    All differences d that the score test does not reject (Tango 1998, Statistics in Medicine 17,
    891-908), with p, q the rates of 'only second', 'only first':

        |Z(d)| <= z,   Z(d) = (only_second - only_first - n d) / sqrt(n (2 q(d) + d (1 - d)))

    where q(d) is the likeliest q under p - q = d. Unlike Wald's interval and the bootstrap it
    keeps its level with few discordant pairs: with none it is +-z^2 / (n + z^2).

    Args:
        only_first: Pairs in which the first arm alone succeeded.
        only_second: Pairs in which the second arm alone succeeded.
        pairs: n.
        confidence: Two-sided level in (0, 1).

    Raises:
        ConfigError: There are no pairs, or fewer than the discordant ones.
    """
    _check_cells(only_first, only_second, pairs)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    estimate = (only_second - only_first) / pairs

    def score(difference: float) -> float:
        return _paired_score(only_first, only_second, pairs, difference)

    # Z falls with d and is 0 at the estimate, so each side holds one bound.
    low = _bisect(lambda d: score(d) > z, -1.0, estimate)
    high = _bisect(lambda d: score(d) >= -z, estimate, 1.0)
    return low, high


@dataclass(frozen=True)
class NonInferiority:
    """Whether the second arm's rate is at most a margin below the first's.

    Attributes:
        margin: The loss that is tolerated, as a share: 0.01 is one point.
        alpha: One-sided error of each verdict.
        verdict: 'non-inferior' (a loss of the margin is ruled out), 'inferior' (a loss of less
            than the margin is ruled out) or 'undecided'.
        p_value: Of the score test of 'the loss is the margin or more'.
        ruled_out: The least loss that the pairs rule out: the smallest margin at which the
            verdict would be 'non-inferior'.
        pairs_needed: Pairs at which such a claim would succeed with 80 % probability, were there
            no difference and as many discordant pairs as seen.
    """

    margin: float
    alpha: float
    verdict: str
    p_value: float
    ruled_out: float
    pairs_needed: int


def non_inferiority(
    only_first: int, only_second: int, pairs: int, margin: float, alpha: float = 0.025
) -> NonInferiority:
    """Test non-inferiority of the second arm by the bounds of `paired_interval`.

    non-inferior: lower bound > -margin;  inferior: upper bound < -margin;  else undecided.

    The one-sided alpha of 0.025 reads the two-sided 95 % interval from one side, as regulators of
    clinical trials ask (ICH E9).

    Raises:
        ConfigError: There are no pairs, or margin or alpha is out of range.
    """
    _check_cells(only_first, only_second, pairs)
    _check_share('margin', margin, 1.0)
    _check_share('alpha', alpha, 0.5)
    low, high = paired_interval(only_first, only_second, pairs, 1 - 2 * alpha)
    verdict = 'non-inferior' if low > -margin else 'inferior' if high < -margin else 'undecided'
    discordant_rate = (only_first + only_second) / pairs
    return NonInferiority(
        margin,
        alpha,
        verdict,
        p_value=1 - NormalDist().cdf(_paired_score(only_first, only_second, pairs, -margin)),
        ruled_out=-low,
        pairs_needed=pairs_needed(margin, discordant_rate, alpha=alpha),
    )


def pairs_needed(
    margin: float,
    discordant_rate: float,
    difference: float = 0.0,
    alpha: float = 0.025,
    power: float = 0.8,
) -> int:
    """Pairs for the test of `non_inferiority` to succeed with a given probability.

    Nam 1997 (Biometrics 53, 1422-1430): with d the true difference, v1 = discordant_rate - d^2
    the variance of a pair and v0 = 2 q(-margin) - margin (1 + margin) the variance that the test
    assumes, q(-margin) being the limit of the constrained estimate,

        n = ((z_alpha sqrt(v0) + z_power sqrt(v1)) / (d + margin))^2

    Without discordant pairs this is z_alpha^2 (1 - margin) / margin.

    Args:
        margin: The loss that is tolerated, as a share.
        discordant_rate: Expected share of pairs in which one arm alone succeeds.
        difference: True rate of the second arm minus that of the first.
        alpha: One-sided error.
        power: Probability that the claim succeeds.

    Raises:
        ConfigError: A share is out of range, the difference does not fit the discordant rate, or
            it is a loss of the margin or more, which no number of pairs makes non-inferior.
    """
    _check_share('margin', margin, 1.0)
    _check_share('alpha', alpha, 0.5)
    _check_share('power', power, 1.0)
    if not abs(difference) <= discordant_rate <= 1:
        raise ConfigError(
            f'the discordant rate must lie in [|difference|, 1] = [{abs(difference)}, 1]; '
            f'got {discordant_rate}.'
        )
    if difference <= -margin:
        raise ConfigError(
            f'a true difference of {difference} is a loss of the margin {margin} or more; no '
            'number of pairs shows non-inferiority there.'
        )
    gained = (discordant_rate + difference) / 2
    lost = (discordant_rate - difference) / 2
    assumed = _paired_variance(lost, gained, -margin)
    actual = discordant_rate - difference**2
    z_alpha, z_power = NormalDist().inv_cdf(1 - alpha), NormalDist().inv_cdf(power)
    root = (z_alpha * math.sqrt(assumed) + z_power * math.sqrt(actual)) / (difference + margin)
    return max(1, math.ceil(root**2)) if root > 0 else 1


def _paired_score(only_first: int, only_second: int, pairs: int, difference: float) -> float:
    """Z of `paired_interval`; 0 where the difference is the observed one."""
    distance = (only_second - only_first) / pairs - difference
    variance = _paired_variance(only_first / pairs, only_second / pairs, difference)
    if variance <= 0.0:
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)
    return distance * math.sqrt(pairs / variance)


def _paired_variance(lost: float, gained: float, difference: float) -> float:
    """Variance of a pair's difference where the rates are forced to differ by `difference`.

    p + q - d^2 = 2 q + d (1 - d) at the likeliest q, the greater root of

        2 q^2 - ((p' + q') - (2 - (p' - q')) d) q - q' d (1 - d) = 0

    with p', q' the observed rates of 'only second' (gained) and 'only first' (lost).
    """
    b = -(gained + lost) + (2 - (gained - lost)) * difference
    c = -lost * difference * (1 - difference)
    q = (math.sqrt(max(0.0, b * b - 8 * c)) - b) / 4
    return 2 * q + difference * (1 - difference)


def _bisect(below: Callable[[float], bool], low: float, high: float) -> float:
    """The point of [low, high] up to which `below` holds, to the last bit."""
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if below(middle) else (low, middle)
    return middle


def _check_cells(only_first: int, only_second: int, pairs: int) -> None:
    if pairs < 1 or min(only_first, only_second) < 0 or only_first + only_second > pairs:
        raise ConfigError(
            f'a comparison needs at least one pair and no more discordant than all pairs; got '
            f'{only_first} and {only_second} of {pairs}.'
        )


def _check_share(name: str, value: float, limit: float) -> None:
    if not 0 < value < limit:
        raise ConfigError(f'{name} must lie between 0 and {limit:g}; got {value}.')


def bootstrap_mean_interval(
    values: Sequence[float],
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    strata: Sequence[Hashable] | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, values resampled within their strata.

    A benchmark's tasks are fixed and differ in difficulty: another run would hold as many episodes
    of each. Drawing across tasks would count their differences as chance; drawing whole tasks
    (a cluster bootstrap) would answer for tasks that nobody ran. A stratum of n values draws n - 1
    of them, which makes the variance of its mean s^2 / n as it should be (Rao and Wu 1988,
    JASA 83, 231-241); strata of a single value are pooled.

    Args:
        values: The sample.
        confidence: Two-sided level in (0, 1).
        resamples: How many means are drawn.
        seed: Of the drawing.
        strata: Stratum of each value; None: all are one.

    Raises:
        ConfigError: There are no values, or not one stratum for each.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        raise ConfigError('an interval needs at least one value.')
    labels = [0] * sample.size if strata is None else list(strata)
    if len(labels) != sample.size:
        raise ConfigError(f'{sample.size} values need as many strata; got {len(labels)}.')
    rng = np.random.default_rng(seed)
    means = np.zeros(resamples)
    for members in _strata(labels):
        drawn = rng.integers(members.size, size=(resamples, max(1, members.size - 1)))
        means += members.size / sample.size * sample[members][drawn].mean(axis=1)
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(means, [tail, 100.0 - tail])
    return float(low), float(high)


def _strata(labels: Sequence[Hashable]) -> list[NDArray[np.int64]]:
    """Indices of each stratum's members; those that are alone make one stratum together."""
    groups: dict[Hashable, list[int]] = {}
    for index, label in enumerate(labels):
        groups.setdefault(label, []).append(index)
    alone = [group[0] for group in groups.values() if len(group) == 1]
    several = [group for group in groups.values() if len(group) > 1]
    return [np.array(group, dtype=np.int64) for group in (*several, alone) if group]


def compare_pairs(
    first: Sequence[bool],
    second: Sequence[bool],
    confidence: float = 0.95,
    seed: int = 0,
    strata: Sequence[Hashable] | None = None,
) -> PairedComparison:
    """Compare two arms, pair by pair.

    Args:
        first: Success of the first arm (dense) per pair.
        second: Success of the second arm (cached) per pair.
        confidence: Level of the intervals.
        seed: Seed of the bootstrap.
        strata: Each pair's task, within which the bootstrap resamples.

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
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    low, high = paired_interval(only_first, only_second, a.size, confidence)
    bootstrap_low, bootstrap_high = bootstrap_mean_interval(
        difference.tolist(), confidence, seed=seed, strata=strata
    )
    return PairedComparison(
        both=int((a & b).sum()),
        only_first=only_first,
        only_second=only_second,
        neither=int((~a & ~b).sum()),
        difference=float(difference.mean()),
        low=low,
        high=high,
        bootstrap_low=bootstrap_low,
        bootstrap_high=bootstrap_high,
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
