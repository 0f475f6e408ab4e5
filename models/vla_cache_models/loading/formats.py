"""Checkpoint folders of the public layouts: which format, which shape, which files.

    small        config.json (model_type parallel_vla), model.safetensors
    openvla      config.json (model_type openvla), model.safetensors or shards with their index
    openvla_oft  as openvla, and action_head--*_checkpoint.pt, proprio_projector--*_checkpoint.pt
    cogact       config.json (vla.base_vlm), checkpoints/*.pt

Reads config files and headers alone: no weights, no memory.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_cache_models.decoder import DecoderConfig
from vla_cache_models.loading.names import TABLES, NameTable
from vla_cache_models.loading.tensor_files import (
    JoinedFiles,
    TensorFile,
    TorchFile,
    open_safetensors,
    read_json,
    refuse_quantised,
)
from vla_cache_models.prismatic.action_tokens import ActionTokens
from vla_cache_models.prismatic.config import DINOSIGLIP_224, PrismaticConfig
from vla_cache_models.prismatic.dit import DitConfig
from vla_cache_models.prismatic.towers import TowerConfig
from vla_cache_ros.core.errors import CheckpointError, ConfigError

CONFIG_NAME = 'config.json'
SMALL_MODEL_TYPE = 'parallel_vla'
LLAMA_HEAD_WIDTH = 128  # of every Llama-2; CogACT's config does not say it

DINOSIGLIP_384 = (
    TowerConfig('vit_large_patch14_reg4_dinov2.lvd142m', 384),
    TowerConfig('vit_so400m_patch14_siglip_384', 384),
)

# Base models that a CogACT config may name, each with its vision towers.
BASE_VLMS: dict[str, tuple[TowerConfig, ...]] = {
    'prism-dinosiglip-224px+7b': DINOSIGLIP_224,
    'prism-dinosiglip-224px-controlled+7b': DINOSIGLIP_224,
    'dinosiglip-224px-resize-naive+7b': DINOSIGLIP_224,
    'prism-dinosiglip+7b': DINOSIGLIP_384,
    'prism-dinosiglip-controlled+7b': DINOSIGLIP_384,
}

# Hugging Face's LlamaConfig leaves a field out of config.json where it has this value.
LLAMA_DEFAULTS: dict[str, Any] = {
    'model_type': 'llama',
    'vocab_size': 32_000,
    'hidden_size': 4096,
    'intermediate_size': 11_008,
    'num_hidden_layers': 32,
    'num_attention_heads': 32,
    'rms_norm_eps': 1e-6,
    'rope_theta': 10_000.0,
}
# What this project's decoder does not do, and the one value it takes.
LLAMA_REQUIRED: dict[str, Any] = {
    'model_type': 'llama',
    'hidden_act': 'silu',
    'rope_scaling': None,
    'attention_bias': False,
    'mlp_bias': False,
    'tie_word_embeddings': False,
}

# Parts of other variants of OpenVLA-OFT -> what they are.
FOREIGN_PARTS = {
    'noisy_action_projector--*.pt': 'the diffusion variant of OpenVLA-OFT',
    'vision_backbone--*.pt': 'the FiLM variant of OpenVLA-OFT',
}
ADAPTER_MARKS = (
    'adapter_config.json',
    'adapter_model.safetensors',
    'adapter_model.bin',
    'lora_adapter',
)
OFT_PARTS = ('action_head', 'proprio_projector')


@dataclass(frozen=True)
class PrismaticCheckpoint:
    """A folder of the OpenVLA family, opened; its weights are still in the files.

    Attributes:
        folder: Where it is.
        format: 'openvla', 'openvla_oft' or 'cogact'.
        raw_config: Content of config.json.
        config: Shape of the vision-language model.
        dit: Shape of CogACT's action model; None for the others.
        files: All tensors, under the names of `table`.
        table: Their names, and ours.
    """

    folder: Path
    format: str
    raw_config: Mapping[str, Any]
    config: PrismaticConfig
    dit: DitConfig | None
    files: TensorFile
    table: NameTable


def detect_format(folder: Path) -> str:
    """Tell which layout a folder has: 'small', 'openvla', 'openvla_oft' or 'cogact'.

    Raises:
        CheckpointError: It has none of them; the message says what is there and what is missing.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f'there is no checkpoint folder {folder}; name the folder that holds {CONFIG_NAME}.'
        )
    _refuse_adapter(folder)
    if not (folder / CONFIG_NAME).is_file():
        found = ', '.join(sorted(path.name for path in folder.iterdir())[:8]) or 'nothing'
        raise CheckpointError(
            f'{folder} has no {CONFIG_NAME}, so it is no checkpoint of a known layout; it holds '
            f'{found}. Valid: a folder of the small VLA (vla-cache train writes one), of OpenVLA '
            'or OpenVLA-OFT as save_pretrained writes it, or a run folder of CogACT.'
        )
    config = read_json(folder / CONFIG_NAME)
    if config.get('model_type') == SMALL_MODEL_TYPE:
        return 'small'
    if config.get('model_type') == 'openvla':
        parts = any(any(folder.glob(f'{part}--*.pt')) for part in OFT_PARTS)
        foreign = any(any(folder.glob(pattern)) for pattern in FOREIGN_PARTS)
        return 'openvla_oft' if parts or foreign else 'openvla'
    if isinstance(config.get('vla'), dict):
        return 'cogact'
    raise CheckpointError(
        f'{folder / CONFIG_NAME} has model_type {config.get("model_type")!r} and no vla.base_vlm; '
        f'valid: model_type {SMALL_MODEL_TYPE!r} (the small VLA), model_type "openvla" (OpenVLA, '
        'and OpenVLA-OFT with its .pt files), or vla.base_vlm (CogACT).'
    )


def open_checkpoint(folder: Path) -> PrismaticCheckpoint:
    """Open a folder of the OpenVLA family; reads no weights.

    Raises:
        CheckpointError: The layout is unknown, a file is missing or damaged, or the shape is one
            that this project does not run.
    """
    name = detect_format(folder)
    if name == 'small':
        raise CheckpointError(f'{folder} holds the small VLA, not a model of the OpenVLA family.')
    raw = read_json(folder / CONFIG_NAME)
    if name == 'cogact':
        files = _open_cogact(folder)
        config = _cogact_config(folder, raw, files)
        dit = DitConfig.from_tensors(_shapes_below(files, 'action_model.net.'))
    else:
        config = hugging_face_config(folder, raw)
        files = open_safetensors(folder) if name == 'openvla' else _open_oft(folder)
        dit = None
    refuse_quantised(files)
    table = TABLES[name]
    _check_vocabulary(folder, config, files, table)
    return PrismaticCheckpoint(folder, name, raw, config, dit, files, table)


def hugging_face_config(folder: Path, raw: Mapping[str, Any]) -> PrismaticConfig:
    """Shape of an OpenVLA from its config.json.

    Raises:
        CheckpointError: A field is missing, or asks for what this project does not run.
    """
    path = folder / CONFIG_NAME
    if raw.get('quantization_config'):
        raise CheckpointError(
            f'{path} has a quantization_config: the weights are quantised. Valid: fp32, fp16 and '
            'bf16. Save the checkpoint without quantisation.'
        )
    ids, sizes = _field(path, raw, 'timm_model_ids', list), _field(path, raw, 'image_sizes', list)
    activations = raw.get('timm_override_act_layers') or [None] * len(ids)
    if not len(ids) == len(sizes) == len(activations):
        raise CheckpointError(
            f'{path}: timm_model_ids, image_sizes and timm_override_act_layers have '
            f'{len(ids)}, {len(sizes)} and {len(activations)} entries; valid: one per tower each.'
        )
    towers = 2 if raw.get('use_fused_vision_backbone', len(ids) > 1) else 1
    if len(ids) != towers:
        raise CheckpointError(
            f'{path}: use_fused_vision_backbone is {raw.get("use_fused_vision_backbone")!r}, but '
            f'timm_model_ids names {len(ids)} towers; valid: two towers fused, or a single one.'
        )
    text = {**LLAMA_DEFAULTS, **_field(path, raw, 'text_config', dict)}
    for key, valid in LLAMA_REQUIRED.items():
        if text.get(key, valid) != valid:
            raise CheckpointError(
                f'{path}: text_config.{key} is {text[key]!r}; valid: {valid!r}, as in Llama-2.'
            )
    # Newer versions of transformers write RoPE's settings as an object of their own.
    rope = text.get('rope_parameters') or {}
    if rope.get('rope_type', 'default') != 'default':
        raise CheckpointError(
            f'{path}: text_config.rope_parameters is {rope}; valid: rope_type "default", as in '
            'Llama-2.'
        )
    try:
        if text.get('head_dim') not in (None, text['hidden_size'] // text['num_attention_heads']):
            raise ConfigError(f'head_dim {text["head_dim"]} is not hidden_size over heads.')
        return PrismaticConfig(
            towers=tuple(
                TowerConfig(timm_id, size, activation=activation)
                for timm_id, size, activation in zip(ids, sizes, activations, strict=True)
            ),
            decoder=DecoderConfig(
                width=text['hidden_size'],
                layers=text['num_hidden_layers'],
                heads=text['num_attention_heads'],
                kv_heads=text.get('num_key_value_heads') or text['num_attention_heads'],
                mlp_width=text['intermediate_size'],
                rope_theta=rope.get('rope_theta', text['rope_theta']),
                norm_eps=text['rms_norm_eps'],
            ),
            vocabulary_size=text['vocab_size'],
            pad_to_multiple_of=raw.get('pad_to_multiple_of', 64),
            num_action_bins=raw.get('n_action_bins', 256),
        )
    except (TypeError, ConfigError) as error:
        raise CheckpointError(f'{path} does not describe an OpenVLA: {error}') from error


def _cogact_config(folder: Path, raw: Mapping[str, Any], files: TensorFile) -> PrismaticConfig:
    """Towers by the base model's name, the decoder by its tensors' shapes."""
    path = folder / CONFIG_NAME
    # A base model may be given as a path to its run folder.
    base = Path(str(raw['vla'].get('base_vlm', ''))).name
    if base not in BASE_VLMS:
        raise CheckpointError(f'{path}: vla.base_vlm is {base!r}; valid: {", ".join(BASE_VLMS)}.')
    shapes = _shapes_below(files, 'llm_backbone.llm.model.')
    vocabulary_size, width = _matrix(shapes, 'embed_tokens.weight', files)
    kv_width, _ = _matrix(shapes, 'layers.0.self_attn.k_proj.weight', files)
    mlp_width, _ = _matrix(shapes, 'layers.0.mlp.gate_proj.weight', files)
    if width % LLAMA_HEAD_WIDTH or kv_width % LLAMA_HEAD_WIDTH or width % kv_width:
        raise CheckpointError(
            f'{files.paths[0]}: a decoder of width {width} with keys of width {kv_width} is no '
            f'Llama-2, whose heads are {LLAMA_HEAD_WIDTH} wide.'
        )
    matches = (re.match(r'layers\.(\d+)\.', name) for name in shapes)
    return PrismaticConfig(
        towers=BASE_VLMS[base],
        decoder=DecoderConfig(
            width=width,
            layers=1 + max(int(match[1]) for match in matches if match),
            heads=width // LLAMA_HEAD_WIDTH,
            kv_heads=kv_width // LLAMA_HEAD_WIDTH,
            mlp_width=mlp_width,
        ),
        vocabulary_size=vocabulary_size,
    )


def _open_oft(folder: Path) -> TensorFile:
    for pattern, variant in FOREIGN_PARTS.items():
        found = sorted(path.name for path in folder.glob(pattern))
        if found:
            raise CheckpointError(
                f'{folder} holds {", ".join(found)}: this is {variant}, which is not supported. '
                'Valid: the L1 variant with action_head--*_checkpoint.pt and '
                'proprio_projector--*_checkpoint.pt.'
            )
    parts: list[tuple[str, TensorFile]] = []
    for part in OFT_PARTS:
        found = sorted(folder.glob(f'{part}--*.pt'))
        if len(found) != 1:
            listed = ', '.join(path.name for path in found) or 'none'
            raise CheckpointError(
                f'{folder} must hold exactly one {part}--STEP_checkpoint.pt of OpenVLA-OFT; '
                f'found: {listed}. '
                + ('Keep the one of your step.' if found else 'Copy it from the training run.')
            )
        parts.append((f'{part}.', TorchFile(found[0], strip='module.')))
    return JoinedFiles([('', open_safetensors(folder)), *parts])


def _open_cogact(folder: Path) -> TensorFile:
    found = sorted((folder / 'checkpoints').glob('*.pt'))
    if len(found) != 1:
        listed = ', '.join(path.name for path in found) or 'none'
        raise CheckpointError(
            f'{folder / "checkpoints"} must hold exactly one *.pt of CogACT; found: {listed}. '
            + ('Move the others elsewhere.' if found else 'Copy it from the training run.')
        )
    files = TorchFile(found[0], key='model')
    if not any(name.startswith('action_model.') for name in files.names()):
        raise CheckpointError(
            f'{found[0]} has no action_model, so it is not of CogACT but an OpenVLA in the format '
            'of its training code; convert it with vla-scripts/extern/'
            'convert_openvla_weights_to_hf.py of the OpenVLA repository and load the result.'
        )
    return files


def _check_vocabulary(
    folder: Path, config: PrismaticConfig, files: TensorFile, table: NameTable
) -> None:
    (name,) = table.sources('text_embedding.weight')
    rows = files.shape(name)[0] if name in files.names() else config.vocabulary_size
    if rows != config.vocabulary_size:
        raise CheckpointError(
            f'{folder}: {name} has {rows} rows, but text_config.vocab_size is '
            f'{config.vocabulary_size}; with the wrong vocabulary every action token means '
            'another number. Copy config.json and weights from the same checkpoint.'
        )
    ActionTokens(config.vocabulary_size, config.pad_to_multiple_of, config.num_action_bins)


def _refuse_adapter(folder: Path) -> None:
    marks = (
        'adapter_config.json',
        'adapter_model.safetensors',
        'adapter_model.bin',
        'lora_adapter',
    )
    adapters = [mark for mark in marks if (folder / mark).exists()]
    has_base = any(folder.glob('model*.safetensors*')) or any(folder.glob('checkpoints/*.pt'))
    if adapters and not has_base:
        adapter = folder / 'lora_adapter' if 'lora_adapter' in adapters else folder
        raise CheckpointError(
            f'{folder} holds a LoRA adapter ({", ".join(adapters)}) without the weights it '
            'belongs to. Merge it first, where it was trained: '
            "peft.PeftModel.from_pretrained(base_model, '"
            f"{adapter}').merge_and_unload().save_pretrained('{folder}') (OpenVLA-OFT: "
            'vla-scripts/merge_lora_weights_and_save.py --base_checkpoint openvla/openvla-7b '
            f'--lora_finetuned_checkpoint_dir {folder}).'
        )


def _field(path: Path, raw: Mapping[str, Any], key: str, kind: type) -> Any:
    if not isinstance(raw.get(key), kind):
        raise CheckpointError(
            f'{path}: {key} is {raw.get(key)!r}; valid: a {kind.__name__}, as save_pretrained '
            'writes it. Copy the file again.'
        )
    return raw[key]


def _shapes_below(files: TensorFile, prefix: str) -> dict[str, tuple[int, ...]]:
    return {
        name.removeprefix(prefix): files.shape(name)
        for name in files.names()
        if name.startswith(prefix)
    }


def _matrix(
    shapes: Mapping[str, tuple[int, ...]], name: str, files: TensorFile
) -> tuple[int, int]:
    if len(shapes.get(name, ())) != 2:
        raise CheckpointError(
            f'{files.paths[0]} lacks the matrix llm_backbone.llm.model.{name}, which tells the '
            "size of CogACT's decoder; copy the file again."
        )
    rows, columns = shapes[name]
    return rows, columns
