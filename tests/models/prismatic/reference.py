"""The three models assembled anew from transformers' Llama and complete timm towers.

An independent reference: of the package under test it takes the weights alone.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_cache_models.prismatic.timm_import import import_timm

timm = import_timm()  # before transformers, which imports torchvision itself
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402


def llama_from(network: nn.Module) -> LlamaForCausalLM:
    """transformers' decoder with the network's weights, the fused ones split."""
    shape = network.config.decoder
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=network.config.vocabulary_size,
            hidden_size=shape.width,
            intermediate_size=shape.mlp_width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            rms_norm_eps=shape.norm_eps,
            max_position_embeddings=2048,
            attn_implementation='eager',
        )
    ).eval()
    ours = network.state_dict()
    theirs = {
        'model.embed_tokens.weight': ours['text_embedding.weight'],
        'model.norm.weight': ours['decoder.norm.weight'],
        'lm_head.weight': ours.get('lm_head.weight', ours['text_embedding.weight']),
    }
    kv = shape.kv_heads * shape.width // shape.heads
    for n in range(shape.layers):
        a, b = f'decoder.layers.{n}.', f'model.layers.{n}.'
        q, k, v = ours[f'{a}attention.qkv.weight'].split([shape.width, kv, kv])
        gate, up = ours[f'{a}mlp.gate_up.weight'].chunk(2)
        theirs |= {
            f'{b}self_attn.q_proj.weight': q,
            f'{b}self_attn.k_proj.weight': k,
            f'{b}self_attn.v_proj.weight': v,
            f'{b}self_attn.o_proj.weight': ours[f'{a}attention.out.weight'],
            f'{b}mlp.gate_proj.weight': gate,
            f'{b}mlp.up_proj.weight': up,
            f'{b}mlp.down_proj.weight': ours[f'{a}mlp.down.weight'],
            f'{b}input_layernorm.weight': ours[f'{a}attention_norm.weight'],
            f'{b}post_attention_layernorm.weight': ours[f'{a}mlp_norm.weight'],
        }
    llama.load_state_dict(theirs)
    return llama


def vision_tokens(network: nn.Module, pixels: Tensor) -> Tensor:
    """Projected features of each camera, [1, C P, D], from complete timm models."""
    features = []
    for tower, config, own in zip(
        network.vision.towers, network.config.towers, pixels.split(3, dim=1), strict=True
    ):
        whole = timm.create_model(
            config.timm_id, pretrained=False, num_classes=0, img_size=config.image_size_px
        ).eval()
        result = whole.load_state_dict(tower.state_dict(), strict=False)
        assert not result.unexpected_keys
        (patches,) = whole.get_intermediate_layers(own, n={len(whole.blocks) - 2})
        features.append(patches)
    x = torch.cat(features, dim=-1)
    p = network.projector
    x = F.linear(x, p.fc1.weight, p.fc1.bias)
    x = F.linear(x * 0.5 * (1 + torch.erf(x / np.sqrt(2))), p.fc2.weight, p.fc2.bias)
    x = F.linear(x * 0.5 * (1 + torch.erf(x / np.sqrt(2))), p.fc3.weight, p.fc3.bias)
    return x.reshape(1, -1, x.shape[-1])


def hidden_states(llama: LlamaForCausalLM, sequence: Tensor, *, causal: bool) -> Tensor:
    """Hidden states behind the final norm, [1, N, D]."""
    mask = None
    if not causal:
        mask = torch.zeros(1, 1, sequence.shape[1], sequence.shape[1])
    return llama.model(inputs_embeds=sequence, attention_mask=mask).last_hidden_state


def greedy_ids(llama: LlamaForCausalLM, sequence: Tensor, count: int) -> list[int]:
    """Generated without any cache: the whole sequence runs anew for each token."""
    ids: list[int] = []
    for _ in range(count):
        hidden = hidden_states(llama, sequence, causal=True)
        ids.append(int(llama.lm_head(hidden[:, -1]).argmax()))
        following = llama.model.embed_tokens(torch.tensor([[ids[-1]]]))
        sequence = torch.cat((sequence, following), dim=1)
    return ids
