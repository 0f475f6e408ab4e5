import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from vla_cache_models.loading.report import TokenSpan, inspect_checkpoint
from vla_cache_ros.core.errors import CheckpointError
from vla_cache_ros.resources import resource_folder

TEXT = 45
"""Ids of the example's prompt behind BOS, by the tiny tokenizer."""


@pytest.mark.parametrize('name', ['openvla', 'openvla_oft', 'cogact'])
def test_a_whole_checkpoint_loads(name, tiny):
    report = inspect_checkpoint(tiny[name])
    assert report.loads
    assert report.format == name
    assert report.dtypes.keys() == {'float32'}
    assert report.total_bytes == sum(
        path.stat().st_size
        for path in tiny[name].rglob('*')
        if path.suffix in ('.pt', '.safetensors')
    )
    assert set(report.parameters) >= {'vision', 'projector', 'text_embedding', 'decoder'}
    assert report.parameters['text_embedding'] % 32_064 == 0


@pytest.mark.parametrize(
    ('name', 'spans'),
    [
        (
            'openvla',
            {'BOS': 1, 'vision primary': 16, 'text': TEXT, 'actions, generated': 7},
        ),
        (
            'openvla_oft',
            {
                'BOS': 1,
                'vision primary': 16,
                'vision wrist': 16,
                'proprioception': 1,
                'text': TEXT,
                'actions': 56,
                'end': 1,
            },
        ),
        ('cogact', {'BOS': 1, 'vision primary': 16, 'text': TEXT, 'actions': 1}),
    ],
)
def test_the_sequence_is_told_without_gaps(name, spans, tiny):
    tokens = inspect_checkpoint(tiny[name]).tokens
    assert {span.name: span.stop - span.start for span in tokens} == spans
    assert tokens[0].start == 0
    assert all(left.stop == right.start for left, right in zip(tokens, tokens[1:], strict=False))


def test_the_small_vla_of_the_package_loads():
    report = inspect_checkpoint(resource_folder('weights'))
    assert report.loads
    assert report.format == 'small'
    assert report.tokens[0] == TokenSpan('vision agentview', 0, 256)
    assert report.total_parameters == pytest.approx(3.2e6, rel=0.02)


def test_unnorm_keys_are_the_fine_tuned_ones(tiny):
    assert inspect_checkpoint(tiny['openvla']).unnorm_keys == (
        'libero_object_no_noops',
        'libero_spatial_no_noops',
    )


def test_tensors_are_told_one_by_one(copy_of):
    folder = copy_of('openvla')
    shard = max(folder.glob('model-*.safetensors'))
    index = folder / 'model.safetensors.index.json'
    weights = load_file(shard)
    del weights['language_model.model.norm.weight']
    weights['stranger'] = torch.ones(1)
    weights['language_model.model.layers.3.mlp.down_proj.weight'] = torch.ones(64, 95)
    weights['language_model.model.layers.3.self_attn.q_proj.weight'] = torch.ones(60, 64)
    save_file(weights, shard)
    content = json.loads(index.read_text())
    del content['weight_map']['language_model.model.norm.weight']
    index.write_text(json.dumps(content))

    report = inspect_checkpoint(folder)
    assert not report.loads
    assert report.problems == ()
    assert report.missing == ('language_model.model.norm.weight',)
    assert report.unexpected == ('stranger',)
    assert report.misshaped[1:] == (
        'language_model.model.layers.3.mlp.down_proj.weight has shape [64, 95], expected [64, 96]',
    )
    assert 'layers.3.self_attn.q_proj.weight' in report.misshaped[0]


def test_unused_tensors_have_reasons(tiny):
    unused = inspect_checkpoint(tiny['openvla_oft']).unused
    assert 'action head' in unused['language_model.lm_head.weight']
    assert 'second-to-last' in unused['vision_backbone.featurizer.blocks.2.attn.qkv.weight']
    assert 'vision_backbone.featurizer.blocks.1.attn.qkv.weight' not in unused


@pytest.mark.parametrize(
    ('name', 'file'),
    [
        ('openvla', 'tokenizer.json'),
        ('openvla', 'preprocessor_config.json'),
        ('openvla', 'model-00002-of-00002.safetensors'),
        ('cogact', 'tokenizer.json'),
        ('cogact', 'dataset_statistics.json'),
    ],
)
def test_a_missing_file_is_a_problem(name, file, copy_of):
    folder = copy_of(name)
    (folder / file).unlink()
    report = inspect_checkpoint(folder)
    assert not report.loads
    assert any(file in problem for problem in report.problems)


def test_oft_without_statistics_of_proprioception_is_a_problem(copy_of):
    folder = copy_of('openvla_oft')
    path = folder / 'dataset_statistics.json'
    statistics = json.loads(path.read_text())
    for entry in statistics.values():
        del entry['proprio']
    path.write_text(json.dumps(statistics))
    (problem,) = inspect_checkpoint(folder).problems
    assert 'proprio' in problem


def test_a_truncated_file_is_a_problem_and_the_files_are_listed(copy_of):
    folder = copy_of('openvla')
    shard = folder / 'model-00002-of-00002.safetensors'
    os.truncate(shard, 1000)
    report = inspect_checkpoint(folder)
    assert 'truncated' in report.problems[0]
    assert report.files[shard.name] == 1000


def test_an_unknown_folder_is_an_error(tmp_path):
    with pytest.raises(CheckpointError):
        inspect_checkpoint(tmp_path)


def test_json_holds_everything(tiny):
    report = inspect_checkpoint(tiny['cogact'])
    document = json.loads(json.dumps(report.to_json()))
    assert document['loads'] is True
    assert document['format'] == 'cogact'
    assert document['tokens'][0] == {'name': 'BOS', 'start': 0, 'stop': 1}
    assert document['unused'] == dict(report.unused)
    assert document['total_parameters'] == report.total_parameters
