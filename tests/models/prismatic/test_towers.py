"""FusedTowers against timm's complete models and against the published equations."""

from fnmatch import fnmatch

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from tests.models.prismatic.tiny_towers import DINOV2, SIGLIP, register_tiny_towers
from vla_cache_models.prismatic.timm_import import import_timm
from vla_cache_models.prismatic.towers import FusedTowers, TowerConfig
from vla_cache_ros.core.errors import ConfigError

SIZE = 56
OPENVLA = ('vit_large_patch14_reg4_dinov2.lvd142m', 'vit_so400m_patch14_siglip_224')


def configs(**options) -> tuple[TowerConfig, ...]:
    return tuple(TowerConfig(name, SIZE, **options) for name in register_tiny_towers())


def randomise(module: torch.nn.Module) -> None:
    """Give every parameter values that matter; timm's LayerScale starts at 1e-5."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture
def towers():
    towers = FusedTowers(configs())
    randomise(towers)
    return towers


@pytest.fixture
def pixels():
    return torch.randn(2, 6, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def complete_tower(name: str, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    """timm's whole model: these weights, random ones where there are none."""
    model = import_timm().create_model(name, num_classes=0, img_size=SIZE)
    randomise(model)
    assert not model.load_state_dict(weights, strict=False).unexpected_keys
    return model


def weights_of(towers: FusedTowers, index: int) -> dict[str, torch.Tensor]:
    return towers.towers[index].state_dict()


def test_features_are_those_of_the_complete_models_second_to_last_block(towers, pixels):
    expected = []
    for index, name in enumerate((DINOV2, SIGLIP)):
        model = complete_tower(name, weights_of(towers, index))
        layer = len(model.blocks) - 2
        image = pixels[:, 3 * index : 3 * index + 3]
        expected += model.get_intermediate_layers(image, n=[layer])
    features = towers(pixels)
    assert features.shape == (2, towers.grid**2, towers.width) == (2, 16, 32 + 48)
    torch.testing.assert_close(features, torch.cat(expected, -1), atol=1e-6, rtol=0)


def equations(weights: dict[str, torch.Tensor], image: torch.Tensor, heads: int) -> torch.Tensor:
    """A vision transformer as OpenVLA was trained on (timm 0.9.10), without timm.

    Pre-norm blocks, LayerNorm with eps 1e-6, exact GELU, q, k and v with bias, LayerScale;
    class token and registers lead and have no position.
    """
    w = weights
    patches = F.unfold(image, 14, stride=14).transpose(1, 2)
    kernel = w['patch_embed.proj.weight']
    x = patches @ kernel.flatten(1).T + w['patch_embed.proj.bias'] + w['pos_embed']
    lead = [w[name].expand(len(x), -1, -1) for name in ('cls_token', 'reg_token') if name in w]
    leading = sum(token.shape[1] for token in lead)
    x = torch.cat([*lead, x], 1)
    blocks = {int(name.split('.')[1]) for name in w if name.startswith('blocks.')}
    for block in (f'blocks.{index}' for index in sorted(blocks)):

        def linear(h, name, block=block):
            return h @ w[f'{block}.{name}.weight'].T + w[f'{block}.{name}.bias']

        def norm(h, name, block=block):
            h = h - h.mean(-1, keepdim=True)
            h = h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt()
            return h * w[f'{block}.{name}.weight'] + w[f'{block}.{name}.bias']

        q, k, v = (
            part.unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in linear(norm(x, 'norm1'), 'attn.qkv').chunk(3, -1)
        )
        scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        attended = (scores @ v).transpose(1, 2).flatten(2)
        x = x + linear(attended, 'attn.proj') * w.get(f'{block}.ls1.gamma', 1.0)
        hidden = linear(norm(x, 'norm2'), 'mlp.fc1')
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
        x = x + linear(hidden, 'mlp.fc2') * w.get(f'{block}.ls2.gamma', 1.0)
    return x[:, leading:]


def test_features_follow_the_equations_that_the_checkpoints_were_trained_on(towers, pixels):
    # float64, so that neither a tanh GELU nor another epsilon can hide.
    towers, pixels = towers.double(), 10 * pixels.double()
    expected = [
        equations(weights_of(towers, index), image, heads)
        for index, (image, heads) in enumerate(zip(pixels.split(3, 1), (2, 3), strict=True))
    ]
    torch.testing.assert_close(towers(pixels), torch.cat(expected, -1), atol=1e-9, rtol=1e-9)


def test_openvlas_towers_have_the_shape_of_timm_0_9_10():
    with torch.device('meta'):
        towers = FusedTowers(tuple(TowerConfig(name) for name in OPENVLA))
    assert (towers.width, towers.grid, towers.patch_size_px) == (1024 + 1152, 16, 14)
    shapes = {name: tuple(p.shape) for name, p in towers.named_parameters()}
    assert all(p.is_meta for p in towers.parameters())
    assert not list(towers.buffers())
    assert shapes['towers.0.reg_token'] == (1, 4, 1024)
    assert shapes['towers.0.pos_embed'] == (1, 256, 1024)  # none for class token and registers
    assert shapes['towers.1.pos_embed'] == (1, 256, 1152)
    assert shapes['towers.0.blocks.22.ls2.gamma'] == (1024,)
    assert shapes['towers.1.blocks.25.mlp.fc1.weight'] == (4304, 1152)
    assert shapes['towers.1.blocks.25.attn.qkv.bias'] == (3 * 1152,)
    for tower, blocks, heads in zip(towers.towers, (23, 26), (16, 16), strict=True):
        assert (len(tower.blocks), tower.blocks[0].attn.num_heads) == (blocks, heads)
        norms = [m for m in tower.modules() if isinstance(m, torch.nn.LayerNorm)]
        assert {norm.eps for norm in norms} == {1e-6}
        # An odd function plus x / 2: tanh GELU is off at 1.
        assert tower.blocks[0].mlp.act(torch.ones(1, dtype=torch.float64)).item() == pytest.approx(
            0.841344746, abs=1e-9
        )


def test_the_unused_blocks_and_heads_are_neither_kept_nor_computed(towers, pixels):
    with FlopCounterMode(display=False) as fused:
        towers(pixels)
    whole = 0
    for index, name in enumerate((DINOV2, SIGLIP)):
        model = complete_tower(name, weights_of(towers, index))
        kept, complete = weights_of(towers, index), model.state_dict()
        unused = [
            key
            for key in complete
            if any(fnmatch(f'towers.{index}.{key}', rule) for rule in towers.unused_tensors)
        ]
        assert sorted([*kept, *unused]) == sorted(complete)
        with FlopCounterMode(display=False) as counter:
            model.get_intermediate_layers(pixels[:, :3], n=[1])
        whole += counter.get_total_flops()
        with FlopCounterMode(display=False) as last:
            model.blocks[2](torch.zeros(2, 16 + model.num_prefix_tokens, model.embed_dim))
        whole -= last.get_total_flops()
    assert fused.get_total_flops() == whole


def test_it_exports(towers, pixels):
    program = torch.export.export(towers, (pixels,))
    torch.testing.assert_close(program.module()(pixels), towers(pixels))


def test_depth_and_activation_can_be_set():
    shallow = FusedTowers(configs(depth=2))
    assert [len(tower.blocks) for tower in shallow.towers] == [1, 1]
    quick = FusedTowers(configs(activation='quick_gelu')).towers[0].blocks[0].mlp.act
    assert quick(torch.ones(1)).item() == pytest.approx(0.845796, abs=1e-6)  # 1 sigmoid(1.702)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: FusedTowers(()), 'no vision tower'),
        (lambda: TowerConfig(SIGLIP, 0), 'image_size_px is 0'),
        (lambda: TowerConfig(SIGLIP, depth=1), 'at least 2 blocks'),
        (lambda: FusedTowers((TowerConfig('vit_so400m_siglip'),)), 'similar ones: .*so400m'),
        (lambda: FusedTowers((TowerConfig('hf-hub:timm/vit'),)), 'no model'),
        (lambda: FusedTowers((TowerConfig('resnet18'),)), 'no plain vision transformer'),
        (lambda: FusedTowers((TowerConfig(SIGLIP, activation='gelo'),)), 'no activation .*gelo'),
        (
            lambda: FusedTowers((TowerConfig(DINOV2, 56), TowerConfig(SIGLIP, 70))),
            'cuts 56 px .*; .* cuts 70 px',
        ),
        (lambda: FusedTowers((TowerConfig(SIGLIP, 10),)), 'smaller than a patch of 14 px'),
    ],
)
def test_bad_configurations_are_refused(make, message):
    register_tiny_towers()
    with pytest.raises(ConfigError, match=message):
        make()
