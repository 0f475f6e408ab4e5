"""The small VLA: OpenVLA-OFT's shape, sized for two CPU cores."""

from vla_cache_models.decoder import DecoderConfig
from vla_cache_models.small.network import VlaConfig
from vla_cache_models.small.proprioception import PROPRIOCEPTION_SIZE

TEXT_TOKENS = 24
"""The longest instruction of the four LIBERO suites has 19 words."""

_WORDS = (
    'alphabet and back basket bbq between black book both bottle bottom bowl box butter '
    'cabinet caddy center cheese chocolate close compartment cookie cream drawer dressing '
    'from front in inside it juice ketchup left microwave middle milk moka mug next of on '
    'open orange pick place plate pot pots pudding push put rack ramekin right salad sauce '
    'soup stove table the to tomato top turn up white wine wooden yellow'
)
LIBERO_WORDS = tuple(_WORDS.split())
"""Every word of the four suites, so that a checkpoint can learn further tasks later."""


def small_vla_config(vocabulary_size: int, attention: str = 'camera_isolated') -> VlaConfig:
    """Two 128 px cameras of 16 x 16 patches, about 3.2 million parameters.

    Args:
        vocabulary_size: Of the tokenizer.
        attention: The layout's attention rule. With 'camera_isolated' a vision token's K/V
            depends on its own camera's pixels alone, so what an unchanged patch's neighbours
            leave out is all that its reuse gets wrong.
    """
    return VlaConfig(
        cameras=('agentview', 'wrist'),
        image_size_px=128,
        patch_size_px=8,
        tower=DecoderConfig(width=128, layers=4, heads=4, kv_heads=4, mlp_width=352, rope_theta=0),
        decoder=DecoderConfig(width=192, layers=4, heads=6, kv_heads=6, mlp_width=512),
        stem_width=256,
        vocabulary_size=vocabulary_size,
        text_tokens=TEXT_TOKENS,
        proprioception_size=PROPRIOCEPTION_SIZE,
        chunk_size=8,
        action_size=7,
        relevance_layer=1,
        attention=attention,
    )
