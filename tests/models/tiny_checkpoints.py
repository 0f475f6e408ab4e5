"""Tiny checkpoints in the three public layouts, written under THEIR names, without our tables.

Every size is small but the vocabulary, which decoding needs whole. CogACT's decoder has heads of
128 and its action model is DiT-S, because its config says neither.
"""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.models.prismatic.tiny_tokenizer import write_tiny_tokenizer
from tests.models.prismatic.tiny_towers import register_tiny_towers

VOCABULARY = 32_064
IMAGE_SIZE_PX = 56
PATCHES = 16
VISION_WIDTH = 32 + 48
LAYERS = 4
WIDTH, HEADS, MLP_WIDTH = 64, 4, 96
COGACT_WIDTH, COGACT_MLP_WIDTH = 256, 320
DIT_DEPTH, DIT_WIDTH = 6, 384
STATE_SIZE = 8
TINY_BASE_VLM = 'tiny-dinosiglip-56px+7b'
DATASETS = ('libero_object_no_noops', 'libero_spatial_no_noops')
COGACT_DATASETS = ('fractal20220817_data', 'bridge_orig')
COGACT_CHECKPOINT = 'checkpoints/step-000010-epoch-01-loss=0.1000.pt'

Shape = tuple[int, ...]


def write_tiny_openvla(
    folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, shards: int = 2
) -> Path:
    """A fine-tuned OpenVLA in the layout of Hugging Face; returns the folder."""
    weights = random_tensors(hugging_face_shapes(), seed, dtype)
    write_safetensors(folder, weights, shards)
    write_hugging_face_files(folder)
    return folder


def write_tiny_oft(
    folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, shards: int = 2
) -> Path:
    """OpenVLA-OFT with its L1 head and proprioception; returns the folder."""
    write_tiny_openvla(folder, seed=seed, dtype=dtype, shards=shards)
    head = random_tensors(action_head_shapes(), seed + 1, dtype)
    torch.save(with_prefix('module.', head), folder / 'action_head--150000_checkpoint.pt')
    projector = random_tensors(proprioception_shapes(), seed + 2, dtype)
    torch.save(
        with_prefix('module.', projector), folder / 'proprio_projector--150000_checkpoint.pt'
    )
    return folder


def write_tiny_cogact(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """CogACT with a DiT-S; returns the folder."""
    register_tiny_base_vlm()
    modules = {
        'vision_backbone': vision_shapes('dino_featurizer', 'siglip_featurizer', 'gamma'),
        'projector': {
            f'projector.{2 * index}.{kind}': shape
            for index, (rows, columns) in enumerate(projector_sizes(COGACT_WIDTH))
            for kind, shape in (('weight', (rows, columns)), ('bias', (rows,)))
        },
        'llm_backbone': llama_shapes('llm.', COGACT_WIDTH, COGACT_MLP_WIDTH),
        'action_model': dit_shapes(),
    }
    model = {
        module: random_tensors(shapes, seed + index, dtype)
        for index, (module, shapes) in enumerate(modules.items())
    }
    # One stored number stands for the whole head, which nothing reads: smaller files.
    model['llm_backbone']['llm.lm_head.weight'] = torch.zeros((), dtype=dtype).expand(
        VOCABULARY, COGACT_WIDTH
    )
    path = folder / COGACT_CHECKPOINT
    path.parent.mkdir(parents=True)
    torch.save({'model': model}, path)
    write_json(
        folder / 'config.json',
        {
            'action_dim': 7,
            'action_model_type': 'DiT-S',
            'future_action_window_size': 15,
            'past_action_window_size': 0,
            'use_ema': False,
            'vla': {
                'vla_id': 'tiny',
                'type': 'tiny',
                'base_vlm': TINY_BASE_VLM,
                'data_mix': 'oxe_magic_soup_plus_minus',
            },
        },
    )
    write_json(folder / 'dataset_statistics.json', statistics(COGACT_DATASETS, state_size=0))
    write_tiny_tokenizer(folder, with_pad=False)
    return folder


def register_tiny_base_vlm() -> None:
    """Make TINY_BASE_VLM known to the loader, as timm is told of the tiny towers."""
    from vla_cache_models.loading.formats import BASE_VLMS
    from vla_cache_models.prismatic.towers import TowerConfig

    BASE_VLMS[TINY_BASE_VLM] = tuple(
        TowerConfig(timm_id, IMAGE_SIZE_PX) for timm_id in register_tiny_towers()
    )


def hugging_face_shapes() -> dict[str, Shape]:
    """Every tensor of the safetensors files."""
    shapes = with_prefix(
        'vision_backbone.', vision_shapes('featurizer', 'fused_featurizer', 'scale_factor')
    )
    for index, (rows, columns) in enumerate(projector_sizes(WIDTH), 1):
        shapes[f'projector.fc{index}.weight'] = (rows, columns)
        shapes[f'projector.fc{index}.bias'] = (rows,)
    shapes |= llama_shapes('language_model.', WIDTH, MLP_WIDTH)
    shapes['language_model.lm_head.weight'] = (VOCABULARY, WIDTH)
    return shapes


def vision_shapes(dino: str, siglip: str, layer_scale: str) -> dict[str, Shape]:
    """Both whole timm towers, the unused last block and pooling included."""
    timm_ids = register_tiny_towers()
    import timm

    shapes: dict[str, Shape] = {}
    for name, timm_id in zip((dino, siglip), timm_ids, strict=True):
        with torch.device('meta'):
            tower = timm.create_model(timm_id, num_classes=0, img_size=IMAGE_SIZE_PX)
        for key, tensor in tower.state_dict().items():
            shapes[f'{name}.{key.replace(".gamma", f".{layer_scale}")}'] = tuple(tensor.shape)
    return shapes


def projector_sizes(width: int) -> tuple[tuple[int, int], ...]:
    """Rows and columns of the three layers."""
    return (4 * VISION_WIDTH, VISION_WIDTH), (width, 4 * VISION_WIDTH), (width, width)


def llama_shapes(prefix: str, width: int, mlp_width: int) -> dict[str, Shape]:
    """A LlamaForCausalLM without its lm_head."""
    layer: dict[str, Shape] = {
        'input_layernorm.weight': (width,),
        **{f'self_attn.{part}_proj.weight': (width, width) for part in 'qkvo'},
        'post_attention_layernorm.weight': (width,),
        'mlp.gate_proj.weight': (mlp_width, width),
        'mlp.up_proj.weight': (mlp_width, width),
        'mlp.down_proj.weight': (width, mlp_width),
    }
    shapes: dict[str, Shape] = {f'{prefix}model.embed_tokens.weight': (VOCABULARY, width)}
    for index in range(LAYERS):
        shapes |= with_prefix(f'{prefix}model.layers.{index}.', layer)
    shapes[f'{prefix}model.norm.weight'] = (width,)
    return shapes


def action_head_shapes() -> dict[str, Shape]:
    """OFT's L1 head."""
    shapes: dict[str, Shape] = {
        'model.layer_norm1.weight': (7 * WIDTH,),
        'model.layer_norm1.bias': (7 * WIDTH,),
        'model.fc1.weight': (WIDTH, 7 * WIDTH),
        'model.fc1.bias': (WIDTH,),
        'model.layer_norm2.weight': (WIDTH,),
        'model.layer_norm2.bias': (WIDTH,),
        'model.fc2.weight': (7, WIDTH),
        'model.fc2.bias': (7,),
    }
    for block in range(2):
        prefix = f'model.mlp_resnet_blocks.{block}.ffn.'
        shapes[f'{prefix}0.weight'] = shapes[f'{prefix}0.bias'] = (WIDTH,)
        shapes[f'{prefix}1.weight'] = (WIDTH, WIDTH)
        shapes[f'{prefix}1.bias'] = (WIDTH,)
    return shapes


def proprioception_shapes() -> dict[str, Shape]:
    """OFT's projector of the robot's state."""
    return {
        'fc1.weight': (WIDTH, STATE_SIZE),
        'fc1.bias': (WIDTH,),
        'fc2.weight': (WIDTH, WIDTH),
        'fc2.bias': (WIDTH,),
    }


def dit_shapes() -> dict[str, Shape]:
    """CogACT's action model, the unused history embedder included."""
    linears = {
        'history_embedder.linear': (DIT_WIDTH, 7),
        'x_embedder.linear': (DIT_WIDTH, 7),
        't_embedder.mlp.0': (DIT_WIDTH, 256),
        't_embedder.mlp.2': (DIT_WIDTH, DIT_WIDTH),
        'z_embedder.linear': (DIT_WIDTH, COGACT_WIDTH),
        'final_layer.linear': (7, DIT_WIDTH),
    }
    for block in range(DIT_DEPTH):
        linears[f'blocks.{block}.attn.qkv'] = (3 * DIT_WIDTH, DIT_WIDTH)
        linears[f'blocks.{block}.attn.proj'] = (DIT_WIDTH, DIT_WIDTH)
        linears[f'blocks.{block}.mlp.fc1'] = (4 * DIT_WIDTH, DIT_WIDTH)
        linears[f'blocks.{block}.mlp.fc2'] = (DIT_WIDTH, 4 * DIT_WIDTH)
    shapes: dict[str, Shape] = {
        'net.positional_embedding': (17, DIT_WIDTH),
        'net.z_embedder.uncondition': (1, COGACT_WIDTH),
    }
    for name, (rows, columns) in linears.items():
        shapes[f'net.{name}.weight'] = (rows, columns)
        shapes[f'net.{name}.bias'] = (rows,)
    return shapes


def random_tensors(
    shapes: Mapping[str, Shape], seed: int, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Seeded values of the size that a trained network's have."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            values *= prod(shape[1:]) ** -0.5
        else:
            values = 0.1 * values + (0.0 if name.endswith('bias') else 1.0)
        tensors[name] = values.to(dtype)
    return tensors


def write_safetensors(folder: Path, weights: Mapping[str, Tensor], shards: int) -> None:
    """Write model.safetensors, or several shards with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        save_file(dict(weights), folder / 'model.safetensors', metadata={'format': 'pt'})
        return
    weight_map: dict[str, str] = {}
    for index, names in enumerate(np.array_split(list(weights), shards), 1):
        shard = f'model-{index:05d}-of-{shards:05d}.safetensors'
        save_file(
            {str(name): weights[name] for name in names}, folder / shard, metadata={'format': 'pt'}
        )
        weight_map |= {str(name): shard for name in names}
    size = sum(tensor.nbytes for tensor in weights.values())
    write_json(
        folder / 'model.safetensors.index.json',
        {'metadata': {'total_size': size}, 'weight_map': weight_map},
    )


def write_hugging_face_files(folder: Path) -> None:
    """What lies beside the weights of OpenVLA and OpenVLA-OFT."""
    write_json(
        folder / 'config.json',
        {
            'architectures': ['OpenVLAForActionPrediction'],
            'model_type': 'openvla',
            'arch_specifier': 'no-align+fused-gelu-mlp',
            'vision_backbone_id': 'dinosiglip-vit-so-224px',
            'llm_backbone_id': 'llama2-7b-pure',
            'hf_llm_id': 'meta-llama/Llama-2-7b-hf',
            'llm_max_length': 2048,
            'use_fused_vision_backbone': True,
            'timm_model_ids': list(register_tiny_towers()),
            'timm_override_act_layers': [None, None],
            'image_sizes': [IMAGE_SIZE_PX, IMAGE_SIZE_PX],
            'image_resize_strategy': 'resize-naive',
            'pad_token_id': 32_000,
            'pad_to_multiple_of': 64,
            'n_action_bins': 256,
            'norm_stats': statistics(('bridge_orig',), state_size=0),
            'text_config': {
                'model_type': 'llama',
                'hidden_size': WIDTH,
                'intermediate_size': MLP_WIDTH,
                'num_hidden_layers': LAYERS,
                'num_attention_heads': HEADS,
                'num_key_value_heads': HEADS,
                'pad_token_id': 32_000,
                'torch_dtype': 'bfloat16',
                'vocab_size': VOCABULARY,
            },
            'torch_dtype': 'bfloat16',
            'transformers_version': '4.40.1',
        },
    )
    sizes = [[3, IMAGE_SIZE_PX, IMAGE_SIZE_PX]] * 2
    means = [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]]
    stds = [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]]
    write_json(
        folder / 'preprocessor_config.json',
        {
            'image_processor_type': 'PrismaticImageProcessor',
            'image_resize_strategy': 'resize-naive',
            'use_fused_vision_backbone': True,
            'input_sizes': sizes,
            'interpolations': ['bicubic', 'bicubic'],
            'means': means,
            'stds': stds,
            'tvf_crop_params': [{'output_size': size[1:]} for size in sizes],
            'tvf_do_letterbox': False,
            'tvf_letterbox_fill': None,
            'tvf_normalize_params': [
                {'inplace': False, 'mean': mean, 'std': std}
                for mean, std in zip(means, stds, strict=True)
            ],
            'tvf_resize_params': [
                {'antialias': True, 'interpolation': 3, 'max_size': None, 'size': size[1:]}
                for size in sizes
            ],
        },
    )
    write_json(folder / 'dataset_statistics.json', statistics(DATASETS, STATE_SIZE))
    write_tiny_tokenizer(folder)


def statistics(datasets: tuple[str, ...], state_size: int) -> dict[str, dict[str, object]]:
    """Scales of each dataset; the gripper is unmasked."""
    entries: dict[str, dict[str, object]] = {}
    for index, dataset in enumerate(datasets):
        rng = np.random.default_rng(index)
        entries[dataset] = {
            'action': {**_spread(rng, 7), 'mask': [True] * 6 + [False]},
            'num_transitions': 1000,
            'num_trajectories': 10,
        }
        if state_size:
            entries[dataset]['proprio'] = _spread(rng, state_size)
    return entries


def _spread(rng: np.random.Generator, size: int) -> dict[str, list[float]]:
    half = rng.uniform(0.1, 1.0, size)
    return {
        'mean': [0.0] * size,
        'std': half.tolist(),
        'max': (1.2 * half).tolist(),
        'min': (-1.2 * half).tolist(),
        'q01': (-half).tolist(),
        'q99': half.tolist(),
    }


def with_prefix(prefix: str, values: Mapping) -> dict:
    """The same values under longer names."""
    return {prefix + name: value for name, value in values.items()}


def write_json(path: Path, content: Mapping) -> None:
    """Write one JSON object; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + '\n')
