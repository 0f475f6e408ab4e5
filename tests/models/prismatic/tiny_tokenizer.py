"""A tokenizer.json with the structure of Llama-2's, and hardly any merges.

Ids as there: 0 to 2 are <unk>, <s> and </s>, 3 to 258 the bytes, then the merged pieces, and from
29871 on the single characters, the word boundary first. Unused ids hold fillers, so that the
number of ids is Llama-2's.
"""

import string
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

BOUNDARY = '\u2581'
FIRST_CHARACTER = 29871
WORDS = ('In', 'What', 'action', 'should', 'the', 'robot', 'take', 'to', 'pick', 'up', 'bowl')


def write_tiny_tokenizer(
    folder: Path, vocabulary_size: int = 32000, *, with_pad: bool = True
) -> Path:
    """Write folder/tokenizer.json.

    Args:
        folder: Made where it is missing.
        vocabulary_size: Ids before the pad token.
        with_pad: Whether <PAD> follows as an added token, as in OpenVLA's folders.
    """
    tokenizer = Tokenizer(_model(vocabulary_size))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(BOUNDARY), normalizers.Replace(' ', BOUNDARY)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(BOUNDARY, ' '), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(['<unk>', '<s>', '</s>'])
    if with_pad:
        tokenizer.add_special_tokens([AddedToken('<PAD>', normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single='<s> $A', pair='<s> $A <s> $B', special_tokens=[('<s>', 1)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / 'tokenizer.json'
    tokenizer.save(str(path))
    return path


def _model(vocabulary_size: int) -> models.BPE:
    """Bytes, the prefixes of a few words, fillers, characters."""
    characters = BOUNDARY + string.ascii_letters + string.digits + string.punctuation
    vocabulary = {'<unk>': 0, '<s>': 1, '</s>': 2}
    vocabulary |= {f'<0x{byte:02X}>': 3 + byte for byte in range(256)}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        left = BOUNDARY
        for letter in word:
            if left + letter not in vocabulary:
                vocabulary[left + letter] = len(vocabulary)
                merges.append((left, letter))
            left += letter
    first = min(FIRST_CHARACTER, vocabulary_size - len(characters))
    vocabulary |= {character: first + index for index, character in enumerate(characters)}
    taken = set(vocabulary.values())
    free = (index for index in range(vocabulary_size) if index not in taken)
    vocabulary |= {f'<unused{index}>': index for index in free}
    return models.BPE(vocab=vocabulary, merges=merges, unk_token='<unk>', byte_fallback=True)
