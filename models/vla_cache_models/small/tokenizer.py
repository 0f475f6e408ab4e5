"""Word-level tokenizer of the small VLA's instructions; its vocabulary lives in the checkpoint."""

import re
from collections.abc import Iterable

from vla_cache_ros.core.errors import InstructionError

PAD_ID = 0
UNKNOWN_ID = 1


class WordTokenizer:
    """Lower-cased words to ids, padded to a fixed length.

    Attributes:
        words: The vocabulary; the id of words[i] is i + 2 (0 pads, 1 stands for unknown words).
        max_tokens: Length of every token sequence.
    """

    def __init__(self, words: Iterable[str], max_tokens: int) -> None:
        """Build the word table."""
        self.words = tuple(words)
        self.max_tokens = max_tokens
        self._ids = {word: index + 2 for index, word in enumerate(self.words)}

    @classmethod
    def fit(cls, instructions: Iterable[str], max_tokens: int) -> 'WordTokenizer':
        """Collect the vocabulary of some instructions, sorted."""
        words = {word for instruction in instructions for word in split_words(instruction)}
        return cls(sorted(words), max_tokens)

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, padding and unknown included."""
        return len(self.words) + 2

    def __call__(self, instruction: str) -> list[int]:
        """Encode one instruction.

        Returns:
            max_tokens ids, padded behind.

        Raises:
            InstructionError: It holds no word, no known word, or more than max_tokens words.
        """
        words = split_words(instruction)
        if not words:
            raise InstructionError(
                f'the instruction {instruction!r} holds no word; publish a sentence such as '
                "'pick up the milk and place it in the basket'."
            )
        if len(words) > self.max_tokens:
            raise InstructionError(
                f'the instruction has {len(words)} words; this model takes at most '
                f'{self.max_tokens}. Shorten it: {instruction[:120]!r}'
            )
        ids = [self._ids.get(word, UNKNOWN_ID) for word in words]
        if all(token == UNKNOWN_ID for token in ids):
            raise InstructionError(
                f'no word of the instruction {instruction[:120]!r} was seen in training; '
                f'known words: {", ".join(self.words)}.'
            )
        return ids + [PAD_ID] * (self.max_tokens - len(ids))


def split_words(instruction: str) -> list[str]:
    """Lower-cased words of an instruction, punctuation dropped."""
    return re.findall(r'[a-z0-9]+', instruction.lower())
