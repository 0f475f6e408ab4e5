import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models import tiny_checkpoints as tiny_writers
from vla_cache_models.decoder import DecoderConfig
from vla_cache_models.loading.formats import (
    BASE_VLMS,
    detect_format,
    hugging_face_config,
    open_checkpoint,
)
from vla_cache_models.prismatic.config import DINOSIGLIP_224, PrismaticConfig
from vla_cache_models.prismatic.dit import DitConfig
from vla_cache_ros.core.errors import CheckpointError
from vla_cache_ros.resources import resource_folder

FORMATS = ('openvla', 'openvla_oft', 'cogact')


def change_config(folder, **changes):
    path = folder / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_text_config(folder, **changes):
    text = json.loads((folder / 'config.json').read_text())['text_config']
    change_config(folder, text_config=text | changes)


@pytest.mark.parametrize('name', FORMATS)
def test_each_layout_is_recognised(name, tiny):
    assert detect_format(tiny[name]) == name
    assert open_checkpoint(tiny[name]).format == name


def test_the_small_vla_is_recognised():
    assert detect_format(resource_folder('weights')) == 'small'
    with pytest.raises(CheckpointError, match='small VLA'):
        open_checkpoint(resource_folder('weights'))


def test_opening_reads_no_weights(tiny, monkeypatch):
    def read(self, name):
        raise AssertionError(name)

    for kind in ('SafetensorsFile', 'TorchFile', 'JoinedFiles'):
        monkeypatch.setattr(f'vla_cache_models.loading.tensor_files.{kind}.read', read)
    for name in FORMATS:
        open_checkpoint(tiny[name])


@pytest.mark.parametrize('name', ['openvla', 'openvla_oft'])
def test_hugging_face_shape_is_read(name, tiny):
    config = open_checkpoint(tiny[name]).config
    assert config.decoder == DecoderConfig(64, 4, 4, 4, 96, rope_theta=10_000.0, norm_eps=1e-6)
    assert [tower.image_size_px for tower in config.towers] == [56, 56]
    assert (config.vocabulary_size, config.pad_to_multiple_of, config.num_action_bins) == (
        32_064,
        64,
        256,
    )


def test_what_llamas_config_leaves_out_is_llama_2_7b(tmp_path):
    raw = {
        'model_type': 'openvla',
        'use_fused_vision_backbone': True,
        'timm_model_ids': [tower.timm_id for tower in DINOSIGLIP_224],
        'image_sizes': [224, 224],
        'text_config': {'model_type': 'llama', 'vocab_size': 32_064},
    }
    decoder = DecoderConfig(4096, 32, 32, 32, 11_008, rope_theta=10_000.0, norm_eps=1e-6)
    assert hugging_face_config(tmp_path, raw) == PrismaticConfig(decoder=decoder)


def test_rope_as_newer_transformers_write_it(copy_of):
    folder = copy_of('openvla')
    change_text_config(folder, rope_parameters={'rope_type': 'default', 'rope_theta': 5e5})
    assert open_checkpoint(folder).config.decoder.rope_theta == 5e5


def test_cogacts_shape_comes_from_its_tensors(tiny):
    opened = open_checkpoint(tiny['cogact'])
    assert opened.config.decoder == DecoderConfig(256, 4, 2, 2, 320)
    assert opened.config.towers == BASE_VLMS[tiny_writers.TINY_BASE_VLM]
    assert opened.dit == DitConfig(6, 384, 4, condition_width=256)


def test_a_base_model_may_be_a_path(copy_of):
    folder = copy_of('cogact')
    change_config(folder, vla={'base_vlm': f'/models/{tiny_writers.TINY_BASE_VLM}'})
    assert open_checkpoint(folder).config.towers == BASE_VLMS[tiny_writers.TINY_BASE_VLM]


def test_an_unknown_base_model_lists_the_known_ones(copy_of):
    folder = copy_of('cogact')
    change_config(folder, vla={'base_vlm': 'prism-clip+7b'})
    with pytest.raises(CheckpointError, match=r'prism-clip\+7b.*prism-dinosiglip-224px\+7b'):
        open_checkpoint(folder)


def test_one_safetensors_file_does_as_well_as_shards(tmp_path):
    folder = tiny_writers.write_tiny_openvla(tmp_path, shards=1)
    assert len(open_checkpoint(folder).files.paths) == 1


def test_no_folder_and_no_config_are_named(tmp_path):
    with pytest.raises(CheckpointError, match='no checkpoint folder'):
        detect_format(tmp_path / 'nowhere')
    (tmp_path / 'notes.txt').touch()
    with pytest.raises(CheckpointError, match=r'no config\.json.*notes\.txt'):
        detect_format(tmp_path)


def test_another_model_is_named(tmp_path):
    (tmp_path / 'config.json').write_text('{"model_type": "pi0"}')
    with pytest.raises(CheckpointError, match="'pi0'.*openvla.*CogACT"):
        detect_format(tmp_path)


@pytest.mark.parametrize('mark', ['adapter_config.json', 'lora_adapter/adapter_config.json'])
def test_a_lora_adapter_alone_is_named_with_the_way_out(mark, copy_of):
    folder = copy_of('openvla')
    (folder / mark).parent.mkdir(exist_ok=True)
    (folder / mark).write_text('{}')
    open_checkpoint(folder)
    for path in folder.glob('model*'):
        path.unlink()
    with pytest.raises(CheckpointError, match='LoRA adapter.*merge_and_unload'):
        open_checkpoint(folder)


@pytest.mark.parametrize('part', ['action_head', 'proprio_projector'])
def test_each_part_of_oft_must_be_there_exactly_once(part, copy_of):
    folder = copy_of('openvla_oft')
    path = folder / f'{part}--150000_checkpoint.pt'
    other = folder / f'{part}--50000_checkpoint.pt'
    shutil.copy(path, other)
    with pytest.raises(CheckpointError, match=f'exactly one {part}.*{path.name}, {other.name}'):
        open_checkpoint(folder)
    path.unlink()
    open_checkpoint(folder)
    other.unlink()
    with pytest.raises(CheckpointError, match=f'exactly one {part}.*none'):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ('name', 'variant'),
    [('noisy_action_projector', 'diffusion'), ('vision_backbone', 'FiLM')],
)
def test_other_variants_of_oft_are_refused_by_name(name, variant, copy_of):
    folder = copy_of('openvla_oft')
    (folder / f'{name}--150000_checkpoint.pt').touch()
    with pytest.raises(CheckpointError, match=f'{name}.*{variant} variant'):
        open_checkpoint(folder)


def test_cogact_must_have_one_checkpoint(copy_of):
    folder = copy_of('cogact')
    (folder / 'checkpoints' / 'other.pt').touch()
    with pytest.raises(CheckpointError, match=r'exactly one.*other\.pt'):
        open_checkpoint(folder)
    shutil.rmtree(folder / 'checkpoints')
    with pytest.raises(CheckpointError, match='exactly one.*none'):
        open_checkpoint(folder)


def test_an_openvla_in_its_training_format_is_named(tmp_path):
    (tmp_path / 'checkpoints').mkdir()
    (tmp_path / 'config.json').write_text(json.dumps({'vla': {'base_vlm': 'x'}}))
    torch.save({'model': {'projector': {'w': torch.ones(1)}}}, tmp_path / 'checkpoints' / 'a.pt')
    with pytest.raises(CheckpointError, match='no action_model.*convert_openvla_weights_to_hf'):
        open_checkpoint(tmp_path)


def test_rows_and_vocabulary_must_agree(copy_of):
    folder = copy_of('openvla')
    change_text_config(folder, vocab_size=32_000)
    with pytest.raises(CheckpointError, match=r'embed_tokens\.weight has 32064 rows.*32000'):
        open_checkpoint(folder)


def test_a_vocabulary_that_shifts_every_action_is_refused(copy_of):
    folder = copy_of('openvla')
    change_config(folder, pad_to_multiple_of=128)
    with pytest.raises(CheckpointError, match='64 bins off'):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('model_type', 'mistral'),
        ('hidden_act', 'gelu'),
        ('rope_scaling', {'type': 'linear'}),
        ('rope_parameters', {'rope_type': 'yarn'}),
        ('tie_word_embeddings', True),
    ],
)
def test_what_our_decoder_does_not_do_is_refused(key, value, copy_of):
    folder = copy_of('openvla')
    change_text_config(folder, **{key: value})
    with pytest.raises(CheckpointError, match=f'text_config.{key}'):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'timm_model_ids': None}, 'timm_model_ids is None'),
        ({'image_sizes': [56]}, '2, 1 and 2 entries'),
        ({'use_fused_vision_backbone': False}, 'names 2 towers'),
        ({'text_config': 3}, 'text_config is 3'),
        ({'quantization_config': {'load_in_4bit': True}}, 'quantised'),
        ({'text_config': {'num_attention_heads': 3, 'hidden_size': 64}}, 'heads 3'),
        ({'text_config': {'hidden_size': '64'}}, 'does not describe'),
        ({'text_config': {'head_dim': 64}}, 'head_dim 64'),
    ],
)
def test_a_config_that_contradicts_itself_is_named(changes, message, copy_of):
    folder = copy_of('openvla')
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ('tensor', 'message'), [(torch.float8_e4m3fn, 'fp8'), (torch.uint8, 'quantised')]
)
def test_fp8_and_quantised_weights_are_refused(tensor, message, copy_of):
    folder = copy_of('openvla')
    path = next(folder.glob('model-00001*'))
    weights = load_file(path)
    name = next(iter(weights))
    weights[name] = weights[name].to(tensor)
    weights[f'{name}.absmax'] = torch.ones(1)
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


def test_a_decoder_that_is_no_llama_2_is_named(copy_of):
    folder = copy_of('cogact')
    (path,) = (folder / 'checkpoints').glob('*.pt')
    content = torch.load(path, weights_only=True)
    llm = content['model']['llm_backbone']
    del llm['llm.model.layers.0.self_attn.k_proj.weight']
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r'k_proj\.weight'):
        open_checkpoint(folder)
    for rows in (96, 384):
        llm['llm.model.layers.0.self_attn.k_proj.weight'] = torch.ones(rows, 256)
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=f'keys of width {rows} is no Llama-2'):
            open_checkpoint(folder)
