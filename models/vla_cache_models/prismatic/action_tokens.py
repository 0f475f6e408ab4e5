"""Actions as tokens: each number of an action is one of the vocabulary's last ids (OpenVLA).

With edges = linspace(-1, 1, bins), base the tokenizer's size without the added pad token, and
centre[i] = (edges[i] + edges[i + 1]) / 2 for i in 0 .. bins - 2:

    id = base - digitize(a, edges)                                 base - bins <= id < base
    a  = centre[clip(base - id - 1, 0, bins - 2)]

The network's vocabulary is larger than base: the pad token brings it to the next multiple of 64.
Whoever takes base from the padded size reads every action 64 bins off and sees no error.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.errors import CheckpointError

LLAMA2_TOKENS = 32_000


@dataclass(frozen=True)
class ActionTokens:
    """Codec between action tokens and numbers in [-1, 1].

    Attributes:
        vocabulary_size: Rows of the token embedding, padding included (OpenVLA: 32064).
        pad_to_multiple_of: What adding the pad token rounded the rows up to (OpenVLA: 64).
        num_bins: Ids at the end of the vocabulary that stand for actions.
        tokenizer_size: Ids of the tokenizer without the added pad token.
    """

    vocabulary_size: int
    pad_to_multiple_of: int = 64
    num_bins: int = 256
    tokenizer_size: int = LLAMA2_TOKENS

    def __post_init__(self) -> None:
        """Check that the padded vocabulary is the tokenizer's.

        Raises:
            CheckpointError: It is not, or the bins do not fit.
        """
        if self.base != self.tokenizer_size:
            raise CheckpointError(
                f'a vocabulary of {self.vocabulary_size} rows less pad_to_multiple_of '
                f'{self.pad_to_multiple_of} is {self.base}, but the tokenizer has '
                f'{self.tokenizer_size} ids before its pad token: every action would be read '
                f'{abs(self.base - self.tokenizer_size)} bins off. Valid: text_config.vocab_size '
                f'{self.tokenizer_size + self.pad_to_multiple_of} in config.json.'
            )
        if not 2 <= self.num_bins < self.base:
            raise CheckpointError(
                f'n_action_bins is {self.num_bins}; valid: 2 to {self.base - 1}, OpenVLA has 256.'
            )

    @property
    def base(self) -> int:
        """One past the last action id."""
        return self.vocabulary_size - self.pad_to_multiple_of

    @property
    def edges(self) -> NDArray[np.float64]:
        """Edges of the bins, [num_bins]."""
        return np.linspace(-1, 1, self.num_bins)

    @property
    def centres(self) -> NDArray[np.float64]:
        """Centres of the bins, [num_bins - 1]."""
        return (self.edges[:-1] + self.edges[1:]) / 2

    def decode(self, ids: NDArray[np.integer]) -> NDArray[np.float64]:
        """Map ids [..., A] to numbers in [-1, 1]; foreign ids go to the nearer end, as published.

        `num_out_of_range` counts those.
        """
        return self.centres[np.clip(self.base - ids - 1, 0, self.num_bins - 2)]

    def encode(self, actions: NDArray[np.floating]) -> NDArray[np.int64]:
        """Map numbers [..., A], clipped to [-1, 1], to ids: what a training target would be."""
        return self.base - np.digitize(actions.clip(-1, 1), self.edges)

    def num_out_of_range(self, ids: NDArray[np.integer]) -> int:
        """How many of the ids are no action ids: above 0, the model answered with words."""
        return int(np.count_nonzero((ids < self.base - self.num_bins) | (ids >= self.base)))
