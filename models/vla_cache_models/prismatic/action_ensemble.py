"""Adaptive action ensemble: the present action from what the last chunks predicted for it.

With p_j the prediction of the present step by the chunk that is j model calls old (CogACT,
arXiv:2411.19650):

    w_j    = softmax over j of alpha cos(p_0, p_j),   j = 0 .. min(calls, horizon) - 1
    action = sum over j of w_j p_j

Chunks are combined after de-normalisation, the gripper with the rest.
"""

import math
from collections import deque

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.errors import ConfigError

# Keeps the cosine of a zero action at 0; the published value.
COSINE_EPS = 1e-7


def ensemble_weights(predictions: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """Weights of predictions of one step.

    Args:
        predictions: Newest first, [M, A].
        alpha: How much agreement with the newest counts.

    Returns:
        [M], positive, their sum 1.
    """
    lengths = np.linalg.norm(predictions, axis=1)
    cosine = predictions @ predictions[0] / (lengths * lengths[0] + COSINE_EPS)
    weights = np.exp(alpha * (cosine - cosine.max()))
    return weights / weights.sum()


class AdaptiveEnsemble:
    """Keeps the last chunks of an episode.

    One model call per action: each chunk must begin one control step after the one before. Where
    several actions of a chunk are executed, its later ones would be averaged with nothing that is
    newer, so that is refused and not guessed at.
    """

    def __init__(self, horizon: int, alpha: float = 0.1, execute_steps: int = 1) -> None:
        """Begin without a chunk.

        Args:
            horizon: Chunks that take part. Published: 2 (Google robot), 7 (Bridge).
            alpha: How much agreement with the newest chunk counts; 0 gives the plain mean.
            execute_steps: Actions that the caller executes per model call.

        Raises:
            ConfigError: horizon is below 1, alpha is negative or not finite, or execute_steps is
                not 1.
        """
        if horizon < 1:
            raise ConfigError(f'horizon of the ensemble is {horizon!r}; valid: at least 1.')
        if not (math.isfinite(alpha) and alpha >= 0):
            raise ConfigError(f'alpha of the ensemble is {alpha!r}; valid: finite and >= 0.')
        if execute_steps != 1:
            raise ConfigError(
                f'the adaptive ensemble gives one action per model call, execute_steps is '
                f'{execute_steps!r}; valid: 1. Execute one action per call, or do without the '
                'ensemble.'
            )
        self._alpha = alpha
        self._chunks: deque[NDArray[np.float64]] = deque(maxlen=horizon)

    def reset(self) -> None:
        """Forget the chunks; call it where an episode starts."""
        self._chunks.clear()

    def follow(self, leader: 'AdaptiveEnsemble') -> None:
        """Remember the chunks that the leader remembers."""
        self._chunks = leader._chunks.copy()

    def combine(self, chunk: NDArray[np.floating]) -> NDArray[np.floating]:
        """Take in a chunk and give the present action.

        Args:
            chunk: De-normalised actions of the present step and those after it, [T, A].

        Returns:
            [A], in chunk's type.

        Raises:
            ConfigError: The chunk is not [T, A] or is shorter than the horizon: it would have to
                predict a step beyond its end.
        """
        horizon = self._chunks.maxlen
        if chunk.ndim != 2 or len(chunk) < (horizon or 0):
            raise ConfigError(
                f'a chunk of shape {chunk.shape} cannot take part in an ensemble of horizon '
                f'{horizon}; valid: [T, A] with T >= {horizon}. Choose a shorter horizon.'
            )
        self._chunks.appendleft(np.array(chunk, dtype=np.float64))
        predictions = np.stack([old[age] for age, old in enumerate(self._chunks)])
        weights = ensemble_weights(predictions, self._alpha)
        return (weights @ predictions).astype(chunk.dtype)
