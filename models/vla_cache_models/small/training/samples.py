"""Demonstrations in memory, and the batches drawn from them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_cache_models.small.proprioception import ProprioceptionScale
from vla_cache_models.small.tokenizer import WordTokenizer
from vla_cache_ros.core.errors import DatasetError
from vla_cache_ros.dataset.episode import Episode

NEAR_TARGET_M = 0.08
NEAR_TARGET_WEIGHT = 2.0
"""Frames near the grasp are drawn twice as often: there the last centimetre is learned."""


@dataclass(frozen=True)
class Batch:
    """One training batch.

    Attributes:
        images: uint8 [B, C, S, S, 3].
        proprioception: Normalised, [B, 11].
        text: Token ids, int64 [B, text_tokens].
        actions: The expert's actions of the next T control steps, [B, T, 7].
        valid: Which of them exist, bool [B, T].
        offsets: Target and goal relative to the gripper, metres, [B, 6].
        relevant: Patches that show target or goal, bool [B, C, P].
    """

    images: Tensor
    proprioception: Tensor
    text: Tensor
    actions: Tensor
    valid: Tensor
    offsets: Tensor
    relevant: Tensor

    def to(self, device: torch.device) -> 'Batch':
        """Copy to a device."""
        return Batch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


class SampleStore:
    """All frames of the episodes added so far, as one array per field.

    Attributes:
        episodes: Number of episodes added.
    """

    def __init__(
        self,
        cameras: Sequence[str],
        relevance_bits: int,
        suite_weights: Mapping[str, float] | None = None,
    ) -> None:
        """Start empty.

        Args:
            cameras: Names of the cameras, in the model's order.
            relevance_bits: Which bits of Episode.relevance count as task-relevant.
            suite_weights: How often a task of a suite is drawn, relative to one of weight 1.
        """
        self._suite_weights = dict(suite_weights or {})
        self._suites: list[str] = []
        self.cameras = tuple(cameras)
        self.relevance_bits = relevance_bits
        self.episodes = 0
        self._parts: list[dict[str, NDArray]] = []
        self._instructions: list[str] = []
        self._index: NDArray[np.int64] = np.zeros((0, 2), dtype=np.int64)
        self._probability: NDArray[np.float64] = np.zeros(0)

    def __len__(self) -> int:
        """Frames."""
        return len(self._index)

    @property
    def ee_positions_m(self) -> NDArray[np.float32]:
        """End-effector positions of all frames, [F, 3].

        Raises:
            DatasetError: There is no frame yet.
        """
        self._require_frames()
        return np.concatenate([part['state'][:, :3] for part in self._parts])

    def add(self, episodes: Iterable[Episode]) -> int:
        """Append episodes; returns how many."""
        added = 0
        for episode in episodes:
            self._parts.append(self._arrays(episode))
            self._instructions.append(episode.info.instruction)
            self._suites.append(episode.info.suite)
            added += 1
        self.episodes += added
        if added:
            self._reindex()
        return added

    def draw(
        self,
        rng: np.random.Generator,
        size: int,
        tokenizer: WordTokenizer,
        scale: ProprioceptionScale,
    ) -> Batch:
        """Draw a batch with replacement, every task as often as its suite's weight says.

        Raises:
            DatasetError: There is no frame yet.
        """
        self._require_frames()
        rows = self._index[rng.choice(len(self), size=size, p=self._probability)]
        picked = [
            {name: array[frame] for name, array in self._parts[part].items()}
            for part, frame in rows
        ]
        stacked = {name: np.stack([item[name] for item in picked]) for name in picked[0]}
        text = [tokenizer(self._instructions[part]) for part, _ in rows]
        return Batch(
            images=torch.from_numpy(stacked['images']),
            proprioception=torch.from_numpy(scale.normalise(stacked['state'])),
            text=torch.tensor(text),
            actions=torch.from_numpy(stacked['actions']),
            valid=torch.from_numpy(stacked['valid']),
            offsets=torch.from_numpy(stacked['offsets']),
            relevant=torch.from_numpy(stacked['relevant']),
        )

    def _require_frames(self) -> None:
        if not len(self):
            raise DatasetError(
                'the dataset holds no episode yet; record some with `vla-cache demos`.'
            )

    def _arrays(self, episode: Episode) -> dict[str, NDArray]:
        position = episode.state[:, :3]
        relevant = (episode.relevance & self.relevance_bits) > 0
        return {
            'images': np.stack([episode.images[camera] for camera in self.cameras], axis=1),
            'state': episode.state,
            'actions': episode.label_chunk,
            'valid': episode.label_valid,
            'offsets': np.concatenate(
                (episode.target_position_m - position, episode.goal_position_m - position), axis=1
            ),
            'relevant': relevant.reshape(*relevant.shape[:2], -1),
        }

    def _reindex(self) -> None:
        index: list[NDArray[np.int64]] = []
        weight: list[NDArray[np.float64]] = []
        task_weight: dict[str, float] = {}
        for part, arrays in enumerate(self._parts):
            frames = np.flatnonzero(arrays['valid'][:, 0])
            distance = np.linalg.norm(arrays['offsets'][frames, :3], axis=1)
            own = np.where(distance < NEAR_TARGET_M, NEAR_TARGET_WEIGHT, 1.0)
            index.append(np.stack((np.full(len(frames), part), frames), axis=1))
            weight.append(own)
            task = self._instructions[part]
            task_weight[task] = task_weight.get(task, 0.0) + own.sum()
        balanced = [
            own * self._suite_weights.get(suite, 1.0) / task_weight[task]
            for own, task, suite in zip(weight, self._instructions, self._suites, strict=True)
        ]
        self._index = np.concatenate(index)
        self._probability = np.concatenate(balanced)
        self._probability /= self._probability.sum()
