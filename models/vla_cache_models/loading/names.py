"""Tensor names of the public checkpoints, and the names they have here: one table per format.

A pattern's braces stand for the parts of a name that differ from tensor to tensor (WILDCARDS). A
table is a one-to-one map: each of their tensors is claimed by one rule at most, and each of ours
comes from one rule. What a network leaves out on purpose (the towers' last block) it says itself,
as `unused_tensors` in our names.
"""

import functools
import re
from dataclasses import dataclass

# What a pair of braces matches.
WILDCARDS = {
    'n': r'\d+',
    'm': r'\d+',
    'p': 'weight|bias',
    'part': '[^.]+',
    'rest': '.+',
}


@dataclass(frozen=True)
class Rename:
    """One tensor, under another name.

    Attributes:
        theirs: Pattern of its name in the file.
        ours: Its name in this project's network, with the same wildcards.
    """

    theirs: str
    ours: str


@dataclass(frozen=True)
class Fuse:
    """Several matrices of the file, stacked row-wise into one of ours.

    Attributes:
        theirs: Patterns of their names, in the order of the rows.
        ours: Name of the stacked one, with the same wildcards.
    """

    theirs: tuple[str, ...]
    ours: str


@dataclass(frozen=True)
class Unused:
    """A tensor of the file that inference does not need.

    Attributes:
        theirs: Pattern of its name.
        why: Why it is left in the file.
    """

    theirs: str
    why: str


Rule = Rename | Fuse | Unused


@dataclass(frozen=True)
class Target:
    """Where a tensor of the file goes.

    Attributes:
        ours: Name of our tensor.
        part: Which of its row blocks this one is.
        parts: How many row blocks it is stacked from.
    """

    ours: str
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class NameTable:
    """All rules of one format.

    Attributes:
        format: Name of the format.
        rules: In any order: no two claim the same tensor.
    """

    format: str
    rules: tuple[Rule, ...]

    def target(self, theirs: str) -> Target | Unused | None:
        """Where the file's tensor `theirs` goes; None where no rule knows it."""
        for rule in self.rules:
            if isinstance(rule, Unused):
                if _match(rule.theirs, theirs) is not None:
                    return rule
                continue
            patterns = rule.theirs if isinstance(rule, Fuse) else (rule.theirs,)
            for part, pattern in enumerate(patterns):
                values = _match(pattern, theirs)
                if values is not None:
                    return Target(rule.ours.format(**values), part, len(patterns))
        return None

    def sources(self, ours: str) -> tuple[str, ...]:
        """The file's tensors that our tensor `ours` is stacked from; empty where none is."""
        for rule in self.rules:
            if isinstance(rule, Unused):
                continue
            values = _match(rule.ours, ours)
            if values is not None:
                patterns = rule.theirs if isinstance(rule, Fuse) else (rule.theirs,)
                return tuple(pattern.format(**values) for pattern in patterns)
        return ()


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    pieces = re.split(r'\{(\w+)\}', pattern)
    return re.compile(
        ''.join(
            f'(?P<{piece}>{WILDCARDS[piece]})' if index % 2 else re.escape(piece)
            for index, piece in enumerate(pieces)
        )
    )


def _match(pattern: str, name: str) -> dict[str, str] | None:
    match = _compiled(pattern).fullmatch(name)
    return None if match is None else match.groupdict()


def _tower(theirs: str, ours: str, layer_scale: str) -> tuple[Rule, ...]:
    """Rules of one timm vision tower below the prefix `theirs`."""
    return (
        Rename(f'{theirs}.cls_token', f'{ours}.cls_token'),
        Rename(f'{theirs}.reg_token', f'{ours}.reg_token'),
        Rename(f'{theirs}.pos_embed', f'{ours}.pos_embed'),
        Rename(f'{theirs}.patch_embed.proj.{{p}}', f'{ours}.patch_embed.proj.{{p}}'),
        Rename(f'{theirs}.blocks.{{n}}.norm{{m}}.{{p}}', f'{ours}.blocks.{{n}}.norm{{m}}.{{p}}'),
        Rename(
            f'{theirs}.blocks.{{n}}.attn.{{part}}.{{p}}',
            f'{ours}.blocks.{{n}}.attn.{{part}}.{{p}}',
        ),
        Rename(
            f'{theirs}.blocks.{{n}}.mlp.{{part}}.{{p}}', f'{ours}.blocks.{{n}}.mlp.{{part}}.{{p}}'
        ),
        Rename(
            f'{theirs}.blocks.{{n}}.ls{{m}}.{layer_scale}', f'{ours}.blocks.{{n}}.ls{{m}}.gamma'
        ),
        Rename(f'{theirs}.norm.{{p}}', f'{ours}.norm.{{p}}'),
        Rename(f'{theirs}.attn_pool.{{rest}}', f'{ours}.attn_pool.{{rest}}'),
    )


def _decoder(theirs: str) -> tuple[Rule, ...]:
    """Rules of a Llama decoder below the prefix `theirs`, its vocabulary head left out."""
    return (
        Rename(f'{theirs}.embed_tokens.weight', 'text_embedding.weight'),
        Rename(
            f'{theirs}.layers.{{n}}.input_layernorm.weight',
            'decoder.layers.{n}.attention_norm.weight',
        ),
        Fuse(
            tuple(f'{theirs}.layers.{{n}}.self_attn.{part}_proj.weight' for part in 'qkv'),
            'decoder.layers.{n}.attention.qkv.weight',
        ),
        Rename(
            f'{theirs}.layers.{{n}}.self_attn.o_proj.weight',
            'decoder.layers.{n}.attention.out.weight',
        ),
        Rename(
            f'{theirs}.layers.{{n}}.post_attention_layernorm.weight',
            'decoder.layers.{n}.mlp_norm.weight',
        ),
        Fuse(
            tuple(f'{theirs}.layers.{{n}}.mlp.{part}_proj.weight' for part in ('gate', 'up')),
            'decoder.layers.{n}.mlp.gate_up.weight',
        ),
        Rename(
            f'{theirs}.layers.{{n}}.mlp.down_proj.weight', 'decoder.layers.{n}.mlp.down.weight'
        ),
        Rename(f'{theirs}.norm.weight', 'decoder.norm.weight'),
        Unused(f'{theirs}.layers.{{n}}.self_attn.rotary_emb.inv_freq', 'computed from rope_theta'),
    )


HUGGING_FACE = (
    *_tower('vision_backbone.featurizer', 'vision.towers.0', 'scale_factor'),
    *_tower('vision_backbone.fused_featurizer', 'vision.towers.1', 'scale_factor'),
    Rename('projector.fc{n}.{p}', 'projector.fc{n}.{p}'),
    *_decoder('language_model.model'),
)

OPENVLA = NameTable(
    'openvla',
    (*HUGGING_FACE, Rename('language_model.lm_head.weight', 'lm_head.weight')),
)

OPENVLA_OFT = NameTable(
    'openvla_oft',
    (
        *HUGGING_FACE,
        Unused('language_model.lm_head.weight', 'the action head reads the hidden states'),
        Rename('action_head.model.{rest}', 'action_head.{rest}'),
        Rename('proprio_projector.fc{n}.{p}', 'proprioception_projector.fc{n}.{p}'),
    ),
)

COGACT = NameTable(
    'cogact',
    (
        *_tower('vision_backbone.dino_featurizer', 'vision.towers.0', 'gamma'),
        *_tower('vision_backbone.siglip_featurizer', 'vision.towers.1', 'gamma'),
        Rename('projector.projector.0.{p}', 'projector.fc1.{p}'),
        Rename('projector.projector.2.{p}', 'projector.fc2.{p}'),
        Rename('projector.projector.4.{p}', 'projector.fc3.{p}'),
        *_decoder('llm_backbone.llm.model'),
        Unused('llm_backbone.llm.lm_head.weight', 'the action model reads the hidden state'),
        Rename('action_model.net.positional_embedding', 'action_model.positional_embedding'),
        Rename('action_model.net.x_embedder.{rest}', 'action_model.x_embedder.{rest}'),
        Rename('action_model.net.t_embedder.{rest}', 'action_model.t_embedder.{rest}'),
        Rename('action_model.net.z_embedder.{rest}', 'action_model.z_embedder.{rest}'),
        Rename('action_model.net.blocks.{n}.{rest}', 'action_model.blocks.{n}.{rest}'),
        Rename('action_model.net.final_layer.{rest}', 'action_model.final_layer.{rest}'),
        Unused('action_model.net.history_embedder.{rest}', 'past actions are not fed in'),
        Unused('ema_diffusion.{rest}', 'the running mean of the action model serves training'),
    ),
)

TABLES = {table.format: table for table in (OPENVLA, OPENVLA_OFT, COGACT)}
