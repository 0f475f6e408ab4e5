"""Prompts, with a tokenizer of Llama-2's structure.

Llama-2's own file is not at hand: that its ids come out as transformers gives them is not tested
here, only that the file's own encoding is used and what is put around it.
"""

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.models.prismatic.tiny_tokenizer import write_tiny_tokenizer
from vla_cache_models.prismatic.prompt import (
    COGACT_SUFFIX,
    LlamaPrompt,
    StandInTokenizer,
    TokenizerFile,
)
from vla_cache_ros.core.errors import CheckpointError, InstructionError

INSTRUCTION = 'Pick up the black bowl'
TEXT = 'In: What action should the robot take to pick up the black bowl?\nOut:'


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer.json."""
    path = tmp_path_factory.mktemp('tokenizer')
    write_tiny_tokenizer(path)
    return path


@pytest.fixture(scope='module')
def encode(folder: Path) -> TokenizerFile:
    """The tokenizer of that folder."""
    return TokenizerFile(folder)


def test_prompt_is_bos_text_and_empty_word(folder: Path, encode: TokenizerFile) -> None:
    reference = Tokenizer.from_file(str(folder / 'tokenizer.json'))
    assert LlamaPrompt(encode)(INSTRUCTION) == [*reference.encode(TEXT).ids, 29871]
    assert encode.size == 32000


def test_cogact_appends_the_empty_word_and_the_end(encode: TokenizerFile) -> None:
    plain = LlamaPrompt(encode)(INSTRUCTION)
    assert LlamaPrompt(encode, suffix=COGACT_SUFFIX)(INSTRUCTION) == [*plain, 2]


def test_empty_word_is_not_appended_twice() -> None:
    assert LlamaPrompt(lambda text: [500, 29871])('x') == [1, 500, 29871]
    assert LlamaPrompt(lambda text: [500, 29871], COGACT_SUFFIX)('x') == [1, 500, 29871, 29871, 2]


def test_settings_of_the_training_run_in_the_file_do_not_matter(
    tmp_path: Path, encode: TokenizerFile
) -> None:
    path = write_tiny_tokenizer(tmp_path)
    stored = Tokenizer.from_file(str(path))
    stored.enable_truncation(8)
    stored.enable_padding(length=64, pad_id=32000, pad_token='<PAD>')
    stored.save(str(path))
    assert LlamaPrompt(TokenizerFile(tmp_path))(INSTRUCTION) == LlamaPrompt(encode)(INSTRUCTION)


def test_white_space_and_case_do_not_matter(encode: TokenizerFile) -> None:
    prompt = LlamaPrompt(encode)
    assert prompt(f' {INSTRUCTION.upper()}\n') == prompt(INSTRUCTION)


@given(st.text(st.characters(codec='utf-8', exclude_characters='<'), min_size=1))
def test_every_instruction_gives_one_bos_and_one_ending(
    encode: TokenizerFile, instruction: str
) -> None:
    if not instruction.strip():
        return
    ids = LlamaPrompt(encode, COGACT_SUFFIX, max_tokens=4096)(instruction)
    assert ids[0] == 1
    assert ids[-2:] == [29871, 2]
    assert not {0, 1, 2} & set(ids[1:-1])


@pytest.mark.parametrize('instruction', ['', ' \n\t'])
def test_empty_instructions_are_refused(encode: TokenizerFile, instruction: str) -> None:
    with pytest.raises(InstructionError, match='is empty; publish'):
        LlamaPrompt(encode)(instruction)


@pytest.mark.parametrize('token', ['<s>', '</s>', '<unk>'])
def test_control_tokens_in_the_instruction_are_refused(encode: TokenizerFile, token: str) -> None:
    with pytest.raises(InstructionError, match='spells a control token'):
        LlamaPrompt(encode)(f'pick up {token} the bowl')


def test_long_instructions_are_refused_with_both_lengths(encode: TokenizerFile) -> None:
    length = len(LlamaPrompt(encode)(INSTRUCTION))
    assert LlamaPrompt(encode, max_tokens=length)(INSTRUCTION)
    with pytest.raises(
        InstructionError, match=f'takes {length} tokens; this model takes at most {length - 1}'
    ):
        LlamaPrompt(encode, max_tokens=length - 1)(INSTRUCTION)


def test_missing_package_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, 'tokenizers', None)
    with pytest.raises(CheckpointError, match=r'pip install -r requirements/vla\.txt'):
        TokenizerFile(folder)


def test_missing_file_says_what_to_copy(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match='copy tokenizer.json from an OpenVLA') as caught:
        TokenizerFile(tmp_path)
    assert "from_pretrained('LLAMA_2_7B_FOLDER')" in str(caught.value)


def test_folder_with_the_sentencepiece_file_alone_says_how_to_convert(tmp_path: Path) -> None:
    (tmp_path / 'tokenizer.model').write_bytes(b'')
    with pytest.raises(CheckpointError, match='has tokenizer.model but no tokenizer') as caught:
        TokenizerFile(tmp_path)
    assert f"from_pretrained('{tmp_path}')" in str(caught.value)


def test_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / 'tokenizer.json').write_text('{"version": ')
    with pytest.raises(CheckpointError, match='not a readable tokenizer'):
        TokenizerFile(tmp_path)


def test_size_of_the_tokenizer_must_be_the_models(tmp_path: Path) -> None:
    write_tiny_tokenizer(tmp_path, 31000, with_pad=False)
    with pytest.raises(CheckpointError, match='has 31000 ids.*32000 or 32001'):
        TokenizerFile(tmp_path)
    assert TokenizerFile(tmp_path, sizes=(31000,)).size == 31000


def test_file_without_the_pad_token_is_accepted(tmp_path: Path) -> None:
    write_tiny_tokenizer(tmp_path, with_pad=False)
    assert TokenizerFile(tmp_path).size == 32000


def test_stand_in_counts_words_their_parts_and_punctuation() -> None:
    # In : What action should the robot take to | pick up the black bowl | ? \n Out :
    assert len(StandInTokenizer()(TEXT)) == 9 + 5 + 4
    assert len(StandInTokenizer()('basketball')) == 2


@given(st.text(), st.integers(0, 3))
def test_stand_in_is_repeatable_and_avoids_special_ids(text: str, seed: int) -> None:
    ids = StandInTokenizer(seed)(text)
    assert ids == StandInTokenizer(seed)(text)
    assert all(259 <= token < 29871 for token in ids)


def test_stand_in_serves_as_a_prompts_tokenizer() -> None:
    ids = LlamaPrompt(StandInTokenizer())(INSTRUCTION)
    assert (ids[0], ids[-1], len(ids)) == (1, 29871, 20)
    assert ids != LlamaPrompt(StandInTokenizer(seed=1))(INSTRUCTION)
