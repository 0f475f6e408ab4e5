"""Where the weights are, and policies made from them."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from vla_cache_ros.core.config import preset
from vla_cache_ros.core.errors import CheckpointError
from vla_cache_ros.core.protocols import Policy
from vla_cache_ros.resources import resource_folder

PolicyFactory = Callable[[str], Policy]
"""Builds the policy with a reuse preset ('off', 'paper', 'safe'); picklable."""

GET_WEIGHTS = 'git checkout -- models/weights (or train: vla-cache train)'


def find_checkpoint(folder: Path | None) -> Path:
    """Choose the checkpoint folder.

    Args:
        folder: As the user gave it; None means the weights that the package brings.

    Raises:
        CheckpointError: There are no weights; the message holds the command that gets them.
    """
    chosen = resource_folder('weights') if folder is None else folder
    if not (chosen / 'model.safetensors').is_file():
        raise CheckpointError(
            f'there are no weights in {chosen} (model.safetensors); get them with: {GET_WEIGHTS}'
        )
    return chosen


@dataclass(frozen=True)
class CheckpointPolicies:
    """Loads a checkpoint folder with a reuse preset.

    Attributes:
        checkpoint: The folder.
        dtype: 'float32' or 'bfloat16'.
        auto_off: Whether the reuse may switch itself off. It judges by times, so on a busy machine
            the plans depend on the load: comparisons of success leave it out.
    """

    checkpoint: Path
    dtype: str = 'float32'
    auto_off: bool = True

    def __call__(self, cache: str) -> Policy:
        """Build the policy with a reuse preset.

        Raises:
            CheckpointError: The folder cannot be loaded.
            UnknownNameError: There is no such preset.
        """
        from vla_cache_models.policy import load_policy

        return load_policy(self.checkpoint, cache, dtype=self.dtype, auto_off=self.auto_off)

    def fingerprint(self, cache: str) -> str:
        """Hash of the weights, their configuration and the preset's settings, 12 digits."""
        settings = preset(cache)
        if settings.enabled and not self.auto_off:
            settings = replace(settings, auto_off=False)
        digest = hashlib.sha256(f'{settings} {self.dtype}'.encode())
        for file in sorted(self.checkpoint.glob('*')):
            if file.suffix in ('.safetensors', '.json'):
                digest.update(file.name.encode())
                digest.update(file.read_bytes())
        return digest.hexdigest()[:12]
