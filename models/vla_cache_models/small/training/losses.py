"""The training objective.

    loss = L1(chunk, expert's chunk)                               what the policy is for
         + w_r CE(text-to-vision attention, patches of the task)   what the cache protects
         + w_p L1(target and goal relative to the gripper)         localisation

The second term makes the attention that VLA-Cache reads a measured notion of task relevance, and
both auxiliary terms teach localisation from labels that the simulator gives for nothing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vla_cache_models.small.training.samples import Batch

AXIS_WEIGHTS = (1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5)
"""Per action component; translation decides the grasp."""

METRES_TO_DECIMETRES = 10.0


@dataclass(frozen=True)
class LossWeights:
    """Weights of the auxiliary terms.

    Attributes:
        relevance: w_r.
        position: w_p.
    """

    relevance: float = 0.1
    position: float = 0.5


def action_loss(actions: Tensor, batch: Batch) -> Tensor:
    """Mean absolute error over the existing control steps, components weighted."""
    weights = actions.new_tensor(AXIS_WEIGHTS)
    error = (actions.float() - batch.actions).abs() * weights
    valid = batch.valid[..., None]
    return (error * valid).sum() / (valid.sum() * weights.sum()).clamp(min=1)


def relevance_loss(relevance: Tensor, relevant: Tensor, kept: list[int]) -> Tensor:
    """Cross entropy between the task's patches and the attention within each camera.

    Args:
        relevance: Text-to-vision attention, [B, V].
        relevant: Which of these tokens show target or goal, bool [B, V].
        kept: Vision tokens per camera; sums to V.
    """
    losses: list[Tensor] = []
    for attention, mask in zip(
        relevance.split(kept, dim=1), relevant.split(kept, dim=1), strict=True
    ):
        shown = mask.any(dim=1)
        target = mask / mask.sum(dim=1, keepdim=True).clamp(min=1)
        share = attention / attention.sum(dim=1, keepdim=True)
        entropy = -(target * share.clamp(min=1e-6).log()).sum(dim=1)
        losses.append((entropy * shown).sum() / shown.sum().clamp(min=1))
    return torch.stack(losses).mean()


def position_loss(predicted: Tensor, batch: Batch) -> Tensor:
    """Mean absolute error of the relative positions, decimetres."""
    return (predicted.float() - METRES_TO_DECIMETRES * batch.offsets).abs().mean()
