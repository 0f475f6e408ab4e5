"""The modules of OpenVLA-OFT against their equations, and their names."""

import torch

from vla_cache_models.prismatic.oft_head import L1ActionHead, ProprioceptionProjector


def standardise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """LayerNorm, written out."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / ((centred**2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def seeded(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Fill every parameter with noise, norms too; return them by name."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module.state_dict()


@torch.no_grad()
def test_head_follows_its_equations() -> None:
    head = L1ActionHead(width=6, chunk=3, action=2)
    p = seeded(head)
    hidden = torch.randn(4, 6, 6)

    x = torch.stack([hidden[:, 2 * t : 2 * t + 2].reshape(4, 12) for t in range(3)], dim=1)
    x = standardise(x, p['layer_norm1.weight'], p['layer_norm1.bias'])
    x = (x @ p['fc1.weight'].T + p['fc1.bias']).clamp(min=0)
    for i in range(2):
        name = f'mlp_resnet_blocks.{i}.ffn'
        y = standardise(x, p[f'{name}.0.weight'], p[f'{name}.0.bias'])
        x = x + (y @ p[f'{name}.1.weight'].T + p[f'{name}.1.bias']).clamp(min=0)
    x = standardise(x, p['layer_norm2.weight'], p['layer_norm2.bias'])
    expected = x @ p['fc2.weight'].T + p['fc2.bias']

    torch.testing.assert_close(head(hidden), expected, atol=1e-5, rtol=1e-5)
    assert expected.shape == (4, 3, 2)


@torch.no_grad()
def test_an_action_depends_on_its_own_slots_alone() -> None:
    head = L1ActionHead(width=6, chunk=3, action=2)
    seeded(head)
    hidden = torch.randn(1, 6, 6)
    changed = hidden.clone()
    changed[:, 2:4] *= -1
    different = (head(hidden) != head(changed)).any(-1)[0]
    assert different.tolist() == [False, True, False]


@torch.no_grad()
def test_projector_follows_its_equation() -> None:
    projector = ProprioceptionProjector(8, 5)
    p = seeded(projector)
    state = torch.randn(3, 8)
    x = state @ p['fc1.weight'].T + p['fc1.bias']
    x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
    torch.testing.assert_close(projector(state), x @ p['fc2.weight'].T + p['fc2.bias'])


def test_names_and_shapes_at_full_width() -> None:
    with torch.device('meta'):
        head, projector = L1ActionHead(4096), ProprioceptionProjector(8, 4096)
    blocks = {
        f'mlp_resnet_blocks.{i}.ffn.{part}': shape
        for i in range(2)
        for part, shape in (
            ('0.weight', (4096,)),
            ('0.bias', (4096,)),
            ('1.weight', (4096, 4096)),
            ('1.bias', (4096,)),
        )
    }
    assert {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()} == {
        'layer_norm1.weight': (28672,),
        'layer_norm1.bias': (28672,),
        'fc1.weight': (4096, 28672),
        'fc1.bias': (4096,),
        **blocks,
        'layer_norm2.weight': (4096,),
        'layer_norm2.bias': (4096,),
        'fc2.weight': (7, 4096),
        'fc2.bias': (7,),
    }
    assert {name: tuple(tensor.shape) for name, tensor in projector.state_dict().items()} == {
        'fc1.weight': (4096, 8),
        'fc1.bias': (4096,),
        'fc2.weight': (4096, 4096),
        'fc2.bias': (4096,),
    }
