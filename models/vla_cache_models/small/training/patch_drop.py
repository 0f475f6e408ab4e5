"""Which patches take part in a training step.

Dropping some saves time, and the policy learns to live without them.
"""

import torch
from torch import Tensor

FLATNESS_FLOOR = 4.0
"""Grey levels added to a patch's contrast, so that flat patches are kept now and then."""


def choose_patches(patches: Tensor, kept: int, generator: torch.Generator) -> Tensor:
    """Draw patches without replacement, with probability growing with their contrast.

    Floor and wall say little, edges much; the rule knows nothing of the task, so which patches
    are left gives nothing away.

    Args:
        patches: uint8 [B, P, 3 p p].
        kept: How many to keep.
        generator: Source of the randomness.

    Returns:
        Ascending cells, int64 [B, kept].
    """
    contrast = patches.float().std(dim=-1)
    noise = torch.rand(contrast.shape, generator=generator, device=contrast.device)
    gumbel = -torch.log(-torch.log(noise.clamp(1e-9, 1 - 1e-7)))
    score = torch.log(contrast + FLATNESS_FLOOR) + gumbel
    return score.topk(kept, dim=1).indices.sort(dim=1).values
