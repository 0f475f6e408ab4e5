"""Two tiny vision transformers, registered with timm, of the shapes that OpenVLA's towers have."""

from functools import cache
from typing import Any

from vla_cache_models.prismatic.timm_import import import_timm

DINOV2 = 'vit_test_reg4_dinov2'
"""LayerScale, a class token and 4 registers without positions; width 32."""
SIGLIP = 'vit_test_siglip'
"""No class token, pooled by attention; width 48."""
SHAPES: dict[str, dict[str, Any]] = {
    DINOV2: {
        'embed_dim': 32,
        'num_heads': 2,
        'init_values': 1e-5,
        'reg_tokens': 4,
        'no_embed_class': True,
    },
    SIGLIP: {
        'embed_dim': 48,
        'num_heads': 3,
        'mlp_ratio': 3.7362,
        'class_token': False,
        'global_pool': 'map',
    },
}


@cache
def register_tiny_towers() -> tuple[str, str]:
    """Register both with timm (once) and return their timm ids: patch 14, depth 3."""
    import_timm()
    from timm.models import register_model

    for timm_id in SHAPES:
        register_model(_entrypoint(timm_id))
    return DINOV2, SIGLIP


def _entrypoint(timm_id: str):
    def create(pretrained: bool = False, **options: Any):
        from timm.models import VisionTransformer, build_model_with_cfg

        shape = {'patch_size': 14, 'depth': 3, **SHAPES[timm_id], **options}
        shape['pretrained_cfg'] = {'architecture': timm_id}  # without one, timm warns
        return build_model_with_cfg(VisionTransformer, timm_id, pretrained, **shape)

    create.__name__ = timm_id
    return create
