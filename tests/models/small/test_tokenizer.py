"""Instructions to ids."""

import pytest

from vla_cache_models.small.tokenizer import PAD_ID, UNKNOWN_ID, WordTokenizer, split_words
from vla_cache_ros.core.errors import InstructionError


def test_words_are_numbered_behind_padding_and_unknown() -> None:
    tokenizer = WordTokenizer.fit(['Pick up the milk.', 'the soup'], max_tokens=6)
    assert tokenizer.words == ('milk', 'pick', 'soup', 'the', 'up')
    assert tokenizer.vocabulary_size == 7
    assert tokenizer('pick the TEAPOT') == [3, 5, UNKNOWN_ID, PAD_ID, PAD_ID, PAD_ID]


def test_case_and_punctuation_do_not_matter() -> None:
    assert split_words("Put the bowl, then don't stop!") == split_words(
        'put the bowl then don t stop'
    )


@pytest.mark.parametrize(
    ('instruction', 'message'),
    [
        ('', 'holds no word'),
        (' ?! ', 'holds no word'),
        ('milk milk milk milk', 'has 4 words; this model takes at most 3'),
        ('teapot', 'known words: milk'),
    ],
)
def test_unusable_instructions_are_refused(instruction: str, message: str) -> None:
    with pytest.raises(InstructionError, match=message):
        WordTokenizer(['milk'], max_tokens=3)(instruction)
