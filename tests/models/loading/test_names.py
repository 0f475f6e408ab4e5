import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.models import tiny_checkpoints as tiny_writers
from vla_cache_models.loading.formats import open_checkpoint
from vla_cache_models.loading.names import COGACT, OPENVLA, TABLES, Fuse, Target, Unused

ALL_RULES = [(table, rule) for table in TABLES.values() for rule in table.rules]
VALUES = {
    'n': st.integers(0, 99).map(str),
    'm': st.integers(0, 99).map(str),
    'p': st.sampled_from(['weight', 'bias']),
    'part': st.from_regex(r'[a-z_][a-z_0-9]{0,8}', fullmatch=True),
    'rest': st.from_regex(r'[a-z0-9]{1,5}(\.[a-z0-9]{1,5}){0,2}', fullmatch=True),
}


def theirs_of(rule):
    return rule.theirs if isinstance(rule, Fuse) else (rule.theirs,)


@pytest.mark.parametrize(('table', 'rule'), ALL_RULES)
@given(data=st.data())
def test_a_name_is_claimed_by_one_rule_and_comes_back(table, rule, data):
    pattern = data.draw(st.sampled_from(theirs_of(rule)))
    values = {name: data.draw(VALUES[name]) for name in set(re.findall(r'\{(\w+)\}', pattern))}
    name = pattern.format(**values)
    alone = [
        other
        for other in table.rules
        if type(table)(table.format, (other,)).target(name) is not None
    ]
    assert alone == [rule]
    target = table.target(name)
    if isinstance(rule, Unused):
        assert target is rule
    else:
        assert table.sources(target.ours)[target.part] == name


@pytest.mark.parametrize('name', TABLES)
def test_every_tensor_of_a_checkpoint_has_one_place(name, tiny):
    opened = open_checkpoint(tiny[name])
    targets = [opened.table.target(theirs) for theirs in opened.files.names()]
    assert None not in targets
    places = [target for target in targets if isinstance(target, Target)]
    assert len(set(places)) == len(places)
    by_name = {}
    for place in places:
        by_name.setdefault(place.ours, []).append(place)
    assert all(len(blocks) == blocks[0].parts for blocks in by_name.values())


@pytest.mark.parametrize(
    ('table', 'theirs', 'target'),
    [
        (
            OPENVLA,
            'vision_backbone.featurizer.blocks.3.ls1.scale_factor',
            Target('vision.towers.0.blocks.3.ls1.gamma'),
        ),
        (
            OPENVLA,
            'vision_backbone.fused_featurizer.blocks.25.mlp.fc2.bias',
            Target('vision.towers.1.blocks.25.mlp.fc2.bias'),
        ),
        (
            OPENVLA,
            'language_model.model.layers.31.self_attn.k_proj.weight',
            Target('decoder.layers.31.attention.qkv.weight', 1, 3),
        ),
        (
            OPENVLA,
            'language_model.model.layers.0.mlp.up_proj.weight',
            Target('decoder.layers.0.mlp.gate_up.weight', 1, 2),
        ),
        (OPENVLA, 'language_model.lm_head.weight', Target('lm_head.weight')),
        (
            COGACT,
            'vision_backbone.dino_featurizer.blocks.3.ls2.gamma',
            Target('vision.towers.0.blocks.3.ls2.gamma'),
        ),
        (COGACT, 'projector.projector.4.bias', Target('projector.fc3.bias')),
        (
            COGACT,
            'action_model.net.t_embedder.mlp.2.weight',
            Target('action_model.t_embedder.mlp.2.weight'),
        ),
    ],
)
def test_published_names_go_where_they_belong(table, theirs, target):
    assert table.target(theirs) == target


def test_the_layer_scale_of_the_other_layout_is_unknown():
    assert OPENVLA.target('vision_backbone.featurizer.blocks.3.ls1.gamma') is None
    assert COGACT.target('vision_backbone.dino_featurizer.blocks.3.ls1.scale_factor') is None


def test_what_serves_training_alone_says_why():
    for name in (
        'ema_diffusion.net.blocks.0.attn.qkv.weight',
        'action_model.net.history_embedder.linear.bias',
        'llm_backbone.llm.lm_head.weight',
        'llm_backbone.llm.model.layers.3.self_attn.rotary_emb.inv_freq',
    ):
        target = COGACT.target(name)
        assert isinstance(target, Unused)
        assert target.why


def test_the_writers_cover_every_rule_but_the_rare_ones():
    # Otherwise a wrong rule could stay unnoticed.
    rare = {'inv_freq', 'ema_diffusion'}
    names = {
        'openvla': tiny_writers.hugging_face_shapes(),
        'openvla_oft': {
            **tiny_writers.hugging_face_shapes(),
            **tiny_writers.with_prefix('action_head.', tiny_writers.action_head_shapes()),
            **tiny_writers.with_prefix('proprio_projector.', tiny_writers.proprioception_shapes()),
        },
    }
    for table_name, tensors in names.items():
        for rule in TABLES[table_name].rules:
            if not any(word in str(rule) for word in rare):
                single = type(OPENVLA)(table_name, (rule,))
                # SigLIP has neither class token nor registers nor LayerScale, DINOv2 no pooling.
                absent = re.search(
                    r'fused_featurizer\.(cls|reg)_token|fused_featurizer\.blocks\.\{n\}\.ls'
                    r'|\.featurizer\.attn_pool',
                    str(theirs_of(rule)),
                )
                assert bool(absent) != any(single.target(name) is not None for name in tensors)
