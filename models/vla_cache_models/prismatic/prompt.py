r"""An instruction as the OpenVLA family's language model reads it.

    [BOS = 1] tokens('In: What action should the robot take to {instruction in lower case}?\nOut:')
    then 29871, the empty word, unless it is the last id already           OpenVLA, OpenVLA-OFT
    or always 29871 and 2, the end of the sentence                         CogACT

A prompt without the trailing 29871 runs without an error and gives other actions.
"""

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vla_cache_ros.core.errors import CheckpointError, InstructionError

UNKNOWN_ID = 0
BOS_ID = 1
EOS_ID = 2
EMPTY_WORD_ID = 29_871
COGACT_SUFFIX = (EMPTY_WORD_ID, EOS_ID)
TOKENIZER_NAME = 'tokenizer.json'
SENTENCEPIECE_NAME = 'tokenizer.model'
LLAMA2_SIZES = (32_000, 32_001)  # without and with the added pad token

TextEncoder = Callable[[str], list[int]]


@dataclass(frozen=True)
class LlamaPrompt:
    """Instructions to ids.

    Attributes:
        encode: Text to ids, without BOS: a TokenizerFile or a StandInTokenizer.
        suffix: Ids that always end the prompt (CogACT: COGACT_SUFFIX); empty: 29871 where it is
            missing.
        max_tokens: Greatest length of a prompt, BOS and suffix included.
    """

    encode: TextEncoder
    suffix: tuple[int, ...] = ()
    max_tokens: int = 128

    def __call__(self, instruction: str) -> list[int]:
        """Encode one instruction; white space around it is dropped.

        Raises:
            InstructionError: It is empty, too long, or spells one of the tokenizer's control
                tokens.
        """
        words = instruction.strip()
        if not words:
            raise InstructionError(
                f'the instruction {instruction!r} is empty; publish a sentence such as '
                "'pick up the milk and place it in the basket'."
            )
        text = f'In: What action should the robot take to {words.lower()}?\nOut:'
        ids = self.encode(text)
        if {UNKNOWN_ID, BOS_ID, EOS_ID} & set(ids):
            raise InstructionError(
                f'the instruction {instruction[:120]!r} spells a control token of the model, '
                "such as '</s>'; valid: plain words."
            )
        if self.suffix:
            ending = self.suffix
        elif ids[-1:] == [EMPTY_WORD_ID]:
            ending = ()
        else:
            ending = (EMPTY_WORD_ID,)
        prompt = [BOS_ID, *ids, *ending]
        if len(prompt) > self.max_tokens:
            raise InstructionError(
                f'the instruction takes {len(prompt)} tokens; this model takes at most '
                f'{self.max_tokens}. Shorten it: {instruction[:120]!r}'
            )
        return prompt


class TokenizerFile:
    """Llama-2's tokenizer from a checkpoint's tokenizer.json.

    Attributes:
        size: Ids without added tokens; ActionTokens takes it as tokenizer_size.
    """

    def __init__(self, folder: Path, sizes: tuple[int, ...] = LLAMA2_SIZES) -> None:
        """Read the file.

        Args:
            folder: The checkpoint.
            sizes: Numbers of ids, added tokens included, that fit the model.

        Raises:
            CheckpointError: The file is missing or damaged, is another model's, or the package
                tokenizers is not installed.
        """
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise CheckpointError(
                f'{folder} needs the package tokenizers; run: pip install -r requirements/vla.txt'
            ) from error
        path = folder / TOKENIZER_NAME
        if not path.is_file():
            raise CheckpointError(_missing_tokenizer(folder))
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises bare Exception
            raise CheckpointError(f'{path} is not a readable tokenizer: {error}') from error
        self.size: int = self._tokenizer.get_vocab_size(with_added_tokens=False)
        total = self._tokenizer.get_vocab_size()
        if total not in sizes:
            raise CheckpointError(
                f"{path} has {total} ids; this model's tokenizer has "
                f'{" or ".join(map(str, sizes))}. Copy the {TOKENIZER_NAME} that the checkpoint '
                'was trained with (Llama-2).'
            )
        # The file may keep the settings of the training run's batches.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def __call__(self, text: str) -> list[int]:
        """Encode without BOS and EOS, whatever the file's own template adds."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids


class StandInTokenizer:
    """Invented ids of about the right number, for random weights alone: no model knows them.

    Each word counts as one token per started six letters, each punctuation mark and line break as
    one, which is near Llama-2's count for short English commands.
    """

    FIRST_ID = 259  # behind Llama-2's control tokens and bytes
    LETTERS_PER_TOKEN = 6

    def __init__(self, seed: int = 0) -> None:
        """Choose the ids.

        Args:
            seed: Another seed gives other ids.
        """
        self._seed = seed

    def __call__(self, text: str) -> list[int]:
        """Encode without BOS; the same piece of text always has the same id, below 29871."""
        pieces = re.findall(rf'[^\W_]{{1,{self.LETTERS_PER_TOKEN}}}|\n|[^\w\s]|_', text)
        span = EMPTY_WORD_ID - self.FIRST_ID
        return [
            self.FIRST_ID + zlib.crc32(f'{self._seed}:{piece}'.encode()) % span for piece in pieces
        ]


def _missing_tokenizer(folder: Path) -> str:
    has_model = (folder / SENTENCEPIECE_NAME).is_file()
    found = f'has {SENTENCEPIECE_NAME} but ' if has_model else 'has '
    source = str(folder) if has_model else 'LLAMA_2_7B_FOLDER'
    convert = (
        'python -c "from transformers import LlamaTokenizerFast as T; '
        f"T.from_pretrained('{source}').backend_tokenizer.save('{folder / TOKENIZER_NAME}')\""
    )
    return (
        f'{folder} {found}no {TOKENIZER_NAME}. It is the Llama-2 tokenizer in every model of this '
        f"family (CogACT's public checkpoints leave it out): copy {TOKENIZER_NAME} from an "
        f'OpenVLA or Llama-2-7B folder into {folder}, or convert {SENTENCEPIECE_NAME}, once, '
        f'with transformers and sentencepiece installed: {convert}'
    )
