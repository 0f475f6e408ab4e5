"""CogACT's DiT against its equations, its names and its sizes."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vla_cache_models.prismatic.dit import (
    DIT_SIZES,
    UNUSED_DIT_TENSORS,
    DiffusionTransformer,
    DitConfig,
    guided_noise,
)
from vla_cache_ros.core.errors import CheckpointError, ConfigError

TINY = DitConfig(depth=2, width=24, heads=3, condition_width=20, chunk_size=5, action_size=4)
# Without history_embedder, which adds 8 D.
PARAMETERS = {'S': 12_473_735, 'B': 88_980_743, 'L': 307_756_039}

Arrays = dict[str, NDArray[np.float64]]


def make_dit(config: DitConfig = TINY) -> DiffusionTransformer:
    """Seeded weights, large enough that every term matters."""
    torch.manual_seed(0)
    dit = DiffusionTransformer(config).eval()
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return dit


def make_inputs(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, t and z of the tiny network."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, TINY.chunk_size, TINY.action_size, generator=generator)
    z = torch.randn(batch, 1, TINY.condition_width, generator=generator)
    return x, torch.tensor([90, 10, 0, 37])[:batch], z


def shapes_of(config: DitConfig) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, without memory for the weights."""
    with torch.device('meta'):
        tensors = DiffusionTransformer(config).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def linear(weights: Arrays, name: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x @ weights[f'{name}.weight'].T + weights[f'{name}.bias']


def normalised(h: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = h - h.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)


def tanh_gelu(h: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))


def attention(weights: Arrays, name: str, h: NDArray[np.float64]) -> NDArray[np.float64]:
    """One head at a time; rows of qkv: all of q, then k, then v, each head by head."""
    width, d = TINY.width, TINY.width // TINY.heads
    q, k, v = np.split(linear(weights, f'{name}.qkv', h), 3, axis=-1)
    outputs = []
    for start in range(0, width, d):
        own = slice(start, start + d)
        logits = q[:, own] @ k[:, own].T / np.sqrt(d)
        chances = np.exp(logits - logits.max(-1, keepdims=True))
        outputs.append(chances / chances.sum(-1, keepdims=True) @ v[:, own])
    return linear(weights, f'{name}.proj', np.concatenate(outputs, axis=-1))


def reference(weights: Arrays, x: NDArray, t: float, z: NDArray) -> NDArray[np.float64]:
    """The whole network for one sample in float64: x [T, A], z [1, C]."""
    waves = [np.cos(t * 10_000 ** (-j / 128)) for j in range(128)]
    waves += [np.sin(t * 10_000 ** (-j / 128)) for j in range(128)]
    hidden = linear(weights, 't_embedder.mlp.0', np.array([waves]))
    time = linear(weights, 't_embedder.mlp.2', hidden / (1 + np.exp(-hidden)))
    condition = time + linear(weights, 'z_embedder.linear', z)
    h = np.concatenate((condition, linear(weights, 'x_embedder.linear', x)))
    h = h + weights['positional_embedding']
    for block in range(TINY.depth):
        h = h + attention(weights, f'blocks.{block}.attn', normalised(h))
        inner = tanh_gelu(linear(weights, f'blocks.{block}.mlp.fc1', normalised(h)))
        h = h + linear(weights, f'blocks.{block}.mlp.fc2', inner)
    return linear(weights, 'final_layer.linear', normalised(h))[1:]


@torch.inference_mode()
def test_forward_equals_the_equations() -> None:
    dit = make_dit()
    weights = {name: value.double().numpy() for name, value in dit.state_dict().items()}
    x, t, z = make_inputs(4)
    expected = np.stack(
        [
            reference(weights, x[b].double().numpy(), float(t[b]), z[b].double().numpy())
            for b in range(4)
        ]
    )
    actual = dit(x, t, z).double().numpy()
    assert np.abs(expected).max() > 0.5
    assert np.abs(actual - expected).max() <= 1e-5


@torch.inference_mode()
def test_integer_and_float_steps_agree() -> None:
    x, t, z = make_inputs(3)
    assert torch.equal(make_dit()(x, t, z), make_dit()(x, t.float(), z))


@torch.inference_mode()
def test_time_is_embedded_in_float32_under_bfloat16_weights() -> None:
    half = make_dit().bfloat16()
    steps = torch.tensor([97, 98, 99])
    rounded = half.t_embedder(steps, torch.bfloat16).float()
    exact = half.float().t_embedder(steps, torch.float32)
    assert (rounded - exact).abs().max() <= 0.01 * exact.abs().max()


@pytest.mark.parametrize('size', list(DIT_SIZES))
def test_full_size_has_the_checkpoints_names_and_shapes(size: str) -> None:
    depth, width, heads = DIT_SIZES[size]
    expected = {
        'positional_embedding': (17, width),
        'x_embedder.linear.weight': (width, 7),
        'x_embedder.linear.bias': (width,),
        't_embedder.mlp.0.weight': (width, 256),
        't_embedder.mlp.0.bias': (width,),
        't_embedder.mlp.2.weight': (width, width),
        't_embedder.mlp.2.bias': (width,),
        'z_embedder.uncondition': (1, 4096),
        'z_embedder.linear.weight': (width, 4096),
        'z_embedder.linear.bias': (width,),
        'final_layer.linear.weight': (7, width),
        'final_layer.linear.bias': (7,),
    }
    for block in range(depth):
        for name, rows, columns in (
            ('attn.qkv', 3 * width, width),
            ('attn.proj', width, width),
            ('mlp.fc1', 4 * width, width),
            ('mlp.fc2', width, 4 * width),
        ):
            expected[f'blocks.{block}.{name}.weight'] = (rows, columns)
            expected[f'blocks.{block}.{name}.bias'] = (rows,)
    shapes = shapes_of(DitConfig(depth, width, heads))
    assert shapes == expected
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == PARAMETERS[size]


def test_unused_tensors_are_not_built() -> None:
    assert UNUSED_DIT_TENSORS == ('history_embedder.*',)
    assert not any('history' in name for name in shapes_of(TINY))


@pytest.mark.parametrize('size', list(DIT_SIZES))
def test_shape_is_read_off_a_published_checkpoint(size: str) -> None:
    config = DitConfig(*DIT_SIZES[size])
    assert DitConfig.from_tensors(shapes_of(config)) == config


def test_shape_is_read_off_another_checkpoint_with_its_heads() -> None:
    assert DitConfig.from_tensors(shapes_of(TINY), heads=TINY.heads) == TINY


def test_unknown_size_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(CheckpointError, match=r'depth 2 and width 24.*S \(depth 6, width 384'):
        DitConfig.from_tensors(shapes_of(TINY))


def test_truncated_checkpoint_is_not_taken_for_a_shallow_network() -> None:
    shapes = shapes_of(DitConfig(*DIT_SIZES['S']))
    last_gone = {name: shape for name, shape in shapes.items() if 'blocks.5.' not in name}
    with pytest.raises(CheckpointError, match='depth 5 and width 384'):
        DitConfig.from_tensors(last_gone)
    inner_gone = {name: shape for name, shape in shapes.items() if 'blocks.3.' not in name}
    with pytest.raises(CheckpointError, match=r'lacks \[3\]'):
        DitConfig.from_tensors(inner_gone)


@pytest.mark.parametrize(
    ('name', 'shape', 'message'),
    [
        ('x_embedder.linear.weight', None, "no tensor 'x_embedder.linear.weight'"),
        ('blocks.0.mlp.fc1.weight', None, "no tensor 'blocks.0.mlp.fc1.weight'"),
        ('positional_embedding', (6, 24, 1), r'shape \(6, 24, 1\); valid: a matrix'),
    ],
)
def test_tensor_that_tells_the_shape_must_be_there(
    name: str, shape: tuple[int, ...] | None, message: str
) -> None:
    shapes = shapes_of(TINY)
    del shapes[name]
    if shape is not None:
        shapes[name] = shape
    with pytest.raises(CheckpointError, match=message):
        DitConfig.from_tensors(shapes, heads=TINY.heads)


def test_config_refuses_impossible_sizes() -> None:
    with pytest.raises(ConfigError, match='not a multiple of heads 5.*published sizes'):
        DitConfig(2, 24, 5)
    with pytest.raises(ConfigError, match='depth of the DiT is 0'):
        DitConfig(0, 24, 3)


@torch.inference_mode()
def test_guidance_is_the_extrapolation_from_the_unconditioned_noise() -> None:
    dit = make_dit()
    x, t, z = make_inputs(2)
    conditioned = dit(x, t, z)
    unconditioned = dit(x, t, dit.z_embedder.uncondition.expand(2, 1, -1))
    expected = -0.5 * unconditioned + 1.5 * conditioned
    torch.testing.assert_close(guided_noise(dit, x, t, z, 1.5), expected, atol=1e-5, rtol=0)
    assert (conditioned - unconditioned).abs().max() > 0.1


@torch.inference_mode()
def test_guidance_of_scale_1_is_the_conditioned_noise() -> None:
    dit = make_dit()
    x, t, z = make_inputs(2)
    assert torch.equal(guided_noise(dit, x, t, z, 1.0), dit(x, t, z))
    near = guided_noise(dit, x, t, z, 1 + 1e-7)
    torch.testing.assert_close(near, dit(x, t, z), atol=1e-5, rtol=0)


@pytest.mark.parametrize('scale', [0.5, -1.0, float('nan')])
def test_guidance_below_1_is_refused(scale: float) -> None:
    with pytest.raises(ConfigError, match='valid: >= 1'):
        guided_noise(make_dit(), *make_inputs(1), scale)


@torch.inference_mode()
def test_guidance_takes_float32_into_a_bfloat16_network() -> None:
    assert guided_noise(make_dit().bfloat16(), *make_inputs(1), 1.5).dtype == torch.bfloat16


def test_dit_exports() -> None:
    dit, inputs = make_dit(), make_inputs(2)
    exported = torch.export.export(dit, inputs)
    with torch.inference_mode():
        torch.testing.assert_close(exported.module()(*inputs), dit(*inputs), atol=1e-6, rtol=0)
