"""Each model against one assembled from transformers and timm: hidden states, tokens, actions."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.models.prismatic import reference
from tests.models.prismatic.conftest import MODELS, make_observation, tiny_vla
from vla_cache_models.policy import VlaPolicy
from vla_cache_models.prismatic.ddim import DdimSchedule, NoiseSource
from vla_cache_models.prismatic.dit import guided_noise
from vla_cache_models.prismatic.embodiment import libero_state
from vla_cache_models.prismatic.vla import PrismaticVla
from vla_cache_ros.core.config import ReuseConfig
from vla_cache_ros.core.types import Observation

TOLERANCE = 1e-5
OFF = ReuseConfig(enabled=False)


def reference_sequence(vla: PrismaticVla, observation: Observation) -> Tensor:
    """The published order of tokens, written out."""
    inputs = vla.prepare(observation)
    network, transform = vla._network, vla._interface.transform
    pixels = transform.pixel_values(
        [inputs.frames[name] for name in vla.cameras], 'cpu', torch.float32
    )
    table = network.text_embedding.weight
    ids = inputs.prompt.tokens[0].tolist()
    parts = [table[ids[:1]], reference.vision_tokens(network, pixels)[0]]
    if vla.name == 'openvla_oft':
        q = vla._interface.norm_stats.proprioception
        state = libero_state(observation.proprioception)
        state = np.clip(2 * (state - q.q01) / (q.q99 - q.q01 + 1e-8) - 1, -1, 1)
        x = torch.from_numpy(state).float()
        p = network.proprioception_projector
        parts.append(p.fc2(torch.nn.functional.gelu(p.fc1(x)))[None])
    parts.append(table[ids[1:]])
    if vla.name == 'openvla_oft':
        parts += [torch.zeros(56, table.shape[1]), table[[2]]]
    return torch.cat(parts)[None]


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('kv_heads', [4, 2])
@torch.inference_mode()
def test_hidden_states_equal_the_reference(
    name: str, kv_heads: int, rng: np.random.Generator
) -> None:
    vla = tiny_vla(name, kv_heads=kv_heads)
    observation = make_observation(rng)
    sequence = reference_sequence(vla, observation)
    expected = reference.hidden_states(
        reference.llama_from(vla._network), sequence, causal=vla.layout.causal
    )

    seen: list[Tensor] = []
    vla.decode_actions = lambda hidden, inputs, cache: seen.append(hidden)  # type: ignore[method-assign]
    VlaPolicy(vla, OFF).act(observation)
    hidden = vla.decoder.norm(seen[0])
    assert hidden.shape == expected.shape
    assert (hidden - expected).abs().max() <= TOLERANCE


@torch.inference_mode()
def test_openvla_generates_the_reference_tokens(rng: np.random.Generator) -> None:
    vla = tiny_vla('openvla')
    for _ in range(3):
        observation = make_observation(rng)
        sequence = reference_sequence(vla, observation)
        ids = reference.greedy_ids(reference.llama_from(vla._network), sequence, 7)
        bins = np.clip(32_000 - np.array(ids) - 1, 0, 254)
        edges = np.linspace(-1, 1, 256)
        action = (edges[bins] + edges[bins + 1]) / 2
        expected = np.append(action[:6], -np.sign(2 * action[6] - 1))
        chunk = VlaPolicy(vla, OFF).act(observation)
        np.testing.assert_allclose(chunk.actions[0], expected, atol=1e-6)


@torch.inference_mode()
def test_oft_reads_its_chunk_one_position_before_the_slots(rng: np.random.Generator) -> None:
    vla = tiny_vla('openvla_oft')
    observation = make_observation(rng)
    sequence = reference_sequence(vla, observation)
    hidden = reference.hidden_states(reference.llama_from(vla._network), sequence, causal=False)
    # Published indexing: vision and proprioception, then the prompt without BOS, counted from 0.
    num_patches = 2 * vla._network.vision.grid**2 + 1
    num_prompt = len(vla.prepare(observation).prompt.tokens[0]) - 1
    published = slice(num_patches + num_prompt, num_patches + num_prompt + 56)
    slots = slice(published.start + 1, published.stop + 1)

    head = vla._network.action_head
    actions = VlaPolicy(vla, OFF).act(observation).actions
    expected, at_slots = head(hidden[:, published])[0], head(hidden[:, slots])[0]
    within_limits = expected[:, :6].clamp(-1, 1)
    np.testing.assert_allclose(actions[:, :6], within_limits, atol=TOLERANCE)
    assert (expected - at_slots)[:, :6].abs().max() > 100 * TOLERANCE


@torch.inference_mode()
def test_cogact_samples_from_the_reference_feature(rng: np.random.Generator) -> None:
    vla = tiny_vla('cogact')
    observation = make_observation(rng)
    sequence = reference_sequence(vla, observation)
    hidden = reference.hidden_states(reference.llama_from(vla._network), sequence, causal=True)
    feature = hidden[:, -1:]
    dit = vla._network.action_model
    noise = NoiseSource(0).draw((1, 16, 7))
    chunk = DdimSchedule().sample(lambda x, t: guided_noise(dit, x, t, feature, 1.5), noise)[0]
    actions = VlaPolicy(vla, OFF).act(observation).actions
    np.testing.assert_allclose(actions[:, :6], chunk[:, :6].clamp(-1, 1), atol=TOLERANCE)
