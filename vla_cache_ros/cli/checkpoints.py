"""Where the weights are, and policies made from them."""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vla_cache_ros.cli.progress import byte_progress
from vla_cache_ros.core.config import preset
from vla_cache_ros.core.errors import CheckpointError
from vla_cache_ros.core.protocols import Policy
from vla_cache_ros.resources import resource_folder

if TYPE_CHECKING:
    from vla_cache_models.vla import Vla

PolicyFactory = Callable[[str], Policy]
"""Builds the policy with a reuse preset ('off', 'paper', 'safe'); picklable."""

GET_WEIGHTS = 'git checkout -- models/weights (or train: vla-cache train)'
WEIGHT_SUFFIXES = ('.safetensors', '.pt')


@dataclass(frozen=True)
class PolicyOptions:
    """Which policy runs: the options that several commands share."""

    checkpoint: Path | None = None
    """Folder of the checkpoint: this project's own, OpenVLA, OpenVLA-OFT or CogACT; default: the
    weights that the package brings."""
    unnorm_key: str = ''
    """Dataset whose statistics scale the actions, where the checkpoint has several."""
    embodiment: str = ''
    """Conventions of the robot: libero, bridge, google_robot, finetuned, generic; default: by
    unnorm_key."""
    dtype: str = 'float32'
    """float32, bfloat16 or float16."""
    device: str = 'cpu'
    """cpu, cuda or cuda:1."""


def find_checkpoint(folder: Path | None) -> Path:
    """Choose the checkpoint folder.

    Args:
        folder: As the user gave it; None means the weights that the package brings.

    Raises:
        CheckpointError: The package's weights are not there; the message holds the command that
            gets them.
    """
    if folder is not None:
        return folder
    brought = resource_folder('weights')
    if not (brought / 'model.safetensors').is_file():
        raise CheckpointError(
            f'there are no weights in {brought} (model.safetensors); get them with: {GET_WEIGHTS}'
        )
    return brought


@dataclass(frozen=True)
class CheckpointPolicies:
    """Loads a checkpoint folder with a reuse preset; all presets share one set of weights.

    Attributes:
        checkpoint: The folder.
        dtype: See PolicyOptions.
        auto_off: Whether the reuse may switch itself off. It judges by times, so on a busy machine
            the plans depend on the load: comparisons of success leave it out.
        unnorm_key: See PolicyOptions.
        embodiment: See PolicyOptions.
        device: See PolicyOptions.
    """

    checkpoint: Path
    dtype: str = 'float32'
    auto_off: bool = True
    unnorm_key: str = ''
    embodiment: str = ''
    device: str = 'cpu'

    @classmethod
    def chosen(cls, options: PolicyOptions) -> 'CheckpointPolicies':
        """The policies that a command's options name.

        Raises:
            CheckpointError: There are no weights.
        """
        return cls(
            find_checkpoint(options.checkpoint),
            options.dtype,
            unnorm_key=options.unnorm_key,
            embodiment=options.embodiment,
            device=options.device,
        )

    def __call__(self, cache: str) -> Policy:
        """Build the policy with a reuse preset.

        Raises:
            CheckpointError: The folder cannot be loaded.
            ConfigError: The options do not fit the checkpoint.
            UnknownNameError: There is no such preset.
        """
        from vla_cache_models.policy import make_policy

        return make_policy(_load(self), cache, auto_off=self.auto_off)

    def fingerprint(self, cache: str) -> str:
        """Hash of the weights, their configuration and the preset's settings, 12 digits."""
        from vla_cache_models.loading.tensor_files import fingerprint

        settings = preset(cache)
        if settings.enabled and not self.auto_off:
            settings = replace(settings, auto_off=False)
        options = (self.dtype, self.unnorm_key, self.embodiment)
        digest = hashlib.sha256(f'{settings} {options}'.encode())
        files = sorted(self.checkpoint.rglob('*'))
        for file in files:
            if file.suffix == '.json':
                digest.update(file.name.encode() + file.read_bytes())
        digest.update(fingerprint(f for f in files if f.suffix in WEIGHT_SUFFIXES).encode())
        return digest.hexdigest()[:12]


@functools.lru_cache(maxsize=1)
def _load(policies: CheckpointPolicies) -> 'Vla':
    """The checkpoint's model, once a process: large ones do not fit twice."""
    from vla_cache_models.policy import load_model

    with byte_progress(f'loading {policies.checkpoint.name}') as on_progress:
        return load_model(
            policies.checkpoint,
            unnorm_key=policies.unnorm_key,
            embodiment=policies.embodiment,
            dtype=policies.dtype,
            device=policies.device,
            on_progress=on_progress,
        )
