"""A VLA that decodes a whole action chunk in parallel: OpenVLA-OFT's shape.

Sequence: [vision of each camera][proprioception][instruction][action slots]. Each camera's image
goes through the vision tower and the projector; the decoder runs once; the hidden states of the
action slots become the chunk through a head trained with the L1 loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_cache_models.attendance import Attendance, resolve_attendance
from vla_cache_models.decoder import Decoder, DecoderConfig
from vla_cache_models.probe import AttentionProbe
from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.core.kv_cache import KVCache
from vla_cache_ros.core.layout import CameraSpan, TokenLayout


@dataclass(frozen=True)
class VlaConfig:
    """Shape of a parallel-decoding VLA.

    Attributes:
        cameras: Names of the cameras, in slot order.
        image_size_px: Side of the square images.
        patch_size_px: Side of a patch; divides image_size_px.
        tower: The vision tower, one set of weights for all cameras; each camera's patches attend
            to their own camera only.
        decoder: The decoder.
        stem_width: Hidden width of the patch embedding's MLP. The embedding never looks beyond
            its patch, so that an unchanged patch has an unchanged embedding.
        vocabulary_size: Ids of the tokenizer.
        text_tokens: Length of the instruction span.
        proprioception_size: Length of the normalised proprioception vector.
        chunk_size: T.
        action_size: Numbers per action.
        relevance_layer: Decoder layer whose text-to-vision attention marks task-relevant patches.
        attention: The layout's attention rule, see TokenLayout.
    """

    cameras: tuple[str, ...]
    image_size_px: int
    patch_size_px: int
    tower: DecoderConfig
    decoder: DecoderConfig
    stem_width: int
    vocabulary_size: int
    text_tokens: int
    proprioception_size: int
    chunk_size: int
    action_size: int
    relevance_layer: int
    attention: str

    def __post_init__(self) -> None:
        """Check what the parts require of each other.

        Raises:
            ConfigError: They do not fit.
        """
        if self.image_size_px % self.patch_size_px:
            raise ConfigError(
                f'patch_size_px {self.patch_size_px} does not divide '
                f'image_size_px {self.image_size_px}.'
            )
        if not 0 <= self.relevance_layer < self.decoder.layers:
            raise ConfigError(
                f'relevance_layer {self.relevance_layer} is not a decoder layer; '
                f'valid: 0..{self.decoder.layers - 1}.'
            )

    @property
    def grid(self) -> int:
        """Patches along one side of an image."""
        return self.image_size_px // self.patch_size_px

    def layout(self, text_length: int, kept: Sequence[int] | None = None) -> TokenLayout:
        """The token layout for an instruction of text_length words.

        Args:
            text_length: Words of the instruction; the rest of the text span is padding.
            kept: Vision tokens kept per camera where training drops some; None keeps the grids.
        """
        grids = [(self.grid, self.grid)] * len(self.cameras)
        if kept is not None:
            grids = [(1, tokens) for tokens in kept]
        cameras: list[CameraSpan] = []
        start = 0
        for name, (rows, cols) in zip(self.cameras, grids, strict=True):
            cameras.append(CameraSpan(name, start, rows, cols))
            start = cameras[-1].stop
        text_start = start + 1
        text_end = text_start + self.text_tokens
        return TokenLayout(
            cameras=tuple(cameras),
            text=(text_start, text_start + text_length),
            actions=(text_end, text_end + self.chunk_size),
            num_tokens=text_end + self.chunk_size,
            attention=self.attention,
        )


class PatchEmbedding(nn.Module):
    """Pixels of each patch -> one token, looking at nothing beyond the patch."""

    def __init__(self, config: VlaConfig) -> None:
        """Build the two-layer embedding and the learned positions (per camera and cell)."""
        super().__init__()
        self.patch_size_px = config.patch_size_px
        width = config.tower.width
        self.inner = nn.Linear(3 * config.patch_size_px**2, config.stem_width)
        self.outer = nn.Linear(config.stem_width, width)
        self.position = nn.Parameter(
            grid_positions(config.grid, width).repeat(len(config.cameras), 1)
            + 0.1 * torch.randn(len(config.cameras) * config.grid**2, width)
        )

    def patchify(self, images: Tensor) -> Tensor:
        """Cut images into flattened patches.

        Args:
            images: uint8 [B, C, S, S, 3].

        Returns:
            uint8 [B, V, 3 p p], V = vision tokens of all cameras in slot order.
        """
        b, c, size, _, _ = images.shape
        p = self.patch_size_px
        grid = images.view(b, c, size // p, p, size // p, p, 3)
        return grid.transpose(3, 4).reshape(b, -1, 3 * p * p)

    def forward(self, patches: Tensor, cells: Tensor) -> Tensor:
        """Embed patches.

        Args:
            patches: uint8 [B, K, 3 p p].
            cells: Index of each patch among all V, int64 [K] or [B, K].

        Returns:
            [B, K, D of the tower].
        """
        pixels = patches.to(self.inner.weight.dtype) / 127.5 - 1.0
        return self.outer(F.gelu(self.inner(pixels))) + self.position[cells]


class ParallelVla(nn.Module):
    """The network; the cache's bookkeeping is VlaPolicy's."""

    def __init__(self, config: VlaConfig) -> None:
        """Build the network with fresh weights."""
        super().__init__()
        self.config = config
        width = config.decoder.width
        self.patch_embedding = PatchEmbedding(config)
        self.tower = Decoder(config.tower)
        self.projector = nn.Sequential(
            nn.Linear(config.tower.width, width), nn.GELU(), nn.Linear(width, width)
        )
        self.proprioception_projector = nn.Sequential(
            nn.Linear(config.proprioception_size, width), nn.GELU(), nn.Linear(width, width)
        )
        self.text_embedding = nn.Embedding(config.vocabulary_size, width)
        self.action_queries = nn.Parameter(0.5 * torch.randn(config.chunk_size, width))
        self.decoder = Decoder(config.decoder)
        self.action_head = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, config.action_size)
        )
        # Training only: where target and goal are, relative to the gripper (decimetres).
        self.localisation_head = nn.Sequential(
            nn.Linear(config.chunk_size * width, width), nn.ReLU(), nn.Linear(width, 6)
        )
        self.apply(_initialise)

    def embed_vision(
        self,
        patches: Tensor,
        cells: Tensor,
        attendance: Attendance,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Vision tower and projector on the given patches.

        Args:
            patches: uint8 [B, K, 3 p p].
            cells: Their indices among all V = slots of the tower's cache, [K] or [B, K].
            attendance: Of the tower's layout.
            cache: The tower's own K/V cache; None attends among the given patches only.

        Returns:
            Vision tokens, [B, K, D].
        """
        tokens = self.tower(self.patch_embedding(patches, cells), cells, attendance, cache)
        return self.projector(self.tower.norm(tokens))

    def embed_rest(self, proprioception: Tensor, text: Tensor) -> Tensor:
        """Tokens behind the vision tokens: proprioception, instruction, action slots.

        Args:
            proprioception: Normalised, [B, proprioception_size].
            text: Token ids, [B, text_tokens].

        Returns:
            [B, 1 + text_tokens + T, D].
        """
        return torch.cat(
            (
                self.proprioception_projector(proprioception)[:, None],
                self.text_embedding(text),
                self.action_queries.expand(len(text), -1, -1),
            ),
            dim=1,
        )

    def decode_actions(self, hidden: Tensor) -> Tensor:
        """Hidden states of the last rows -> action chunk [B, T, action_size]."""
        slots = self.decoder.norm(hidden[:, -self.config.chunk_size :])
        return self.action_head(slots)

    def locate(self, hidden: Tensor) -> Tensor:
        """Target and goal relative to the gripper, decimetres, [B, 6]; used in training alone."""
        slots = self.decoder.norm(hidden[:, -self.config.chunk_size :])
        return self.localisation_head(slots.flatten(1))

    def forward(
        self,
        images: Tensor,
        proprioception: Tensor,
        text: Tensor,
        keep: Sequence[Tensor] | None = None,
        probe: AttentionProbe | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The plain dense forward, used in training and as the reference of the cached step.

        Args:
            images: uint8 [B, C, S, S, 3].
            proprioception: [B, proprioception_size].
            text: int64 [B, text_tokens].
            keep: Per camera the patches that take part, ascending cells of its grid, int64
                [B, kept]; None keeps all. Training drops patches to save time.
            probe: Collects the text-to-vision attention.

        Returns:
            Action chunk [B, T, action_size], and the hidden states [B, N, D].
        """
        patches = self.patch_embedding.patchify(images)
        batch, num_vision, _ = patches.shape
        cells = torch.arange(num_vision, device=patches.device)
        layout = self.config.layout(self.config.text_tokens)
        positions = torch.arange(layout.num_tokens, device=patches.device)
        if keep is not None:
            cells = torch.cat(
                [camera.start + own for camera, own in zip(layout, keep, strict=True)], dim=1
            )
            patches = patches.gather(1, cells[..., None].expand(-1, -1, patches.shape[-1]))
            positions = torch.cat((cells, positions[num_vision:].expand(batch, -1)), dim=1)
            layout = self.config.layout(self.config.text_tokens, [own.shape[1] for own in keep])
        vision = self.embed_vision(patches, cells, resolve_attendance(tower_layout(layout)))
        x = torch.cat((vision, self.embed_rest(proprioception, text)), dim=1)
        x = self.decoder(x, positions, resolve_attendance(layout), probe=probe)
        return self.decode_actions(x), x


def grid_positions(grid: int, width: int) -> Tensor:
    """Sines and cosines of row and column, where learned positions start from.

    Args:
        grid: Cells along one side.
        width: D, divisible by 4.

    Returns:
        [grid * grid, width], row-major.
    """
    frequency = grid ** -torch.linspace(0, 1, width // 4) * torch.pi
    angle = torch.arange(grid)[:, None] * frequency
    wave = torch.cat((angle.sin(), angle.cos()), dim=-1)
    rows = wave[:, None].expand(-1, grid, -1)
    cols = wave[None].expand(grid, -1, -1)
    return torch.cat((rows, cols), dim=-1).flatten(0, 1)


def tower_layout(layout: TokenLayout) -> TokenLayout:
    """The layout of the vision tower: vision tokens alone, each camera to itself."""
    start, stop = layout.vision
    cameras = tuple(
        CameraSpan(camera.name, camera.start - start, camera.rows, camera.cols)
        for camera in layout
    )
    return TokenLayout(
        cameras=cameras,
        text=(stop - start, stop - start),
        actions=(stop - start, stop - start),
        num_tokens=stop - start,
        attention='camera_isolated',
    )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.5)
