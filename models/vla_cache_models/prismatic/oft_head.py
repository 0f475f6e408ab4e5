"""What OpenVLA-OFT adds to OpenVLA: the robot's state goes in as a token, a chunk comes out.

    token  = W_2 gelu(W_1 state + b_1) + b_2                                       [B, D]
    x      = the action slots' hidden states, one action's side by side            [B, T, A D]
    x      = relu(W_in norm_1(x) + b_in)                                           [B, T, D]
    x      = x + relu(W_i norm_i(x) + b_i)                                         each block i
    action = W_out norm_2(x) + b_out                                               [B, T, A]

All norms are LayerNorm. Names of the parameters as in the checkpoint's .pt files.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class ProprioceptionProjector(nn.Module):
    """Robot state to one token of the decoder."""

    def __init__(self, size: int, width: int) -> None:
        """Build the two layers.

        Args:
            size: Numbers in the state (LIBERO: 8).
            width: D.
        """
        super().__init__()
        self.fc1 = nn.Linear(size, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, state: Tensor) -> Tensor:
        """Map [B, size] to [B, D]."""
        return self.fc2(F.gelu(self.fc1(state)))


class ResidualBlock(nn.Module):
    """x + relu(W norm(x) + b)."""

    def __init__(self, width: int) -> None:
        """Build the block."""
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, D] to [B, T, D]."""
        return x + self.ffn(x)


class L1ActionHead(nn.Module):
    """Hidden states of the action slots to a chunk of actions; trained with an L1 loss."""

    def __init__(self, width: int, chunk: int = 8, action: int = 7, blocks: int = 2) -> None:
        """Build the head.

        Args:
            width: D of the decoder, and of the head.
            chunk: T, actions in a chunk.
            action: A, numbers in an action, each of which has a slot of its own.
            blocks: Residual blocks.
        """
        super().__init__()
        self.chunk = chunk
        self.layer_norm1 = nn.LayerNorm(action * width)
        self.fc1 = nn.Linear(action * width, width)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, action)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B, T A, D], action by action, to normalised actions [B, T, A]."""
        x = hidden.unflatten(1, (self.chunk, -1)).flatten(2)
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))
