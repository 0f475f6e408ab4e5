"""Statistics of the training data: how a checkpoint scales actions and the robot's state.

With the 1 % and 99 % quantiles q01 and q99 of a dimension (OpenVLA; OpenVLA-OFT for the state):

    action = 0.5 (a + 1)(q99 - q01) + q01                          a in [-1, 1], where masked in
    state  = clip(2 (x - q01) / (q99 - q01 + 1e-8) - 1, -1, 1)

Dimensions that are masked out pass as they are; normally that is the gripper.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.errors import CheckpointError, ConfigError, UnknownNameError
from vla_cache_ros.core.json_text import parse_json

CONFIG_NAME = 'config.json'
STATISTICS_NAME = 'dataset_statistics.json'
NO_NOOPS = '_no_noops'


@dataclass(frozen=True)
class Bounds:
    """Quantiles of one vector of the training data.

    Attributes:
        q01: 1 % quantile of each dimension, [A], in the data's units.
        q99: 99 % quantile, [A].
        mask: [A]; False leaves the dimension as it is.
    """

    q01: NDArray[np.float64]
    q99: NDArray[np.float64]
    mask: NDArray[np.bool_]

    def denormalise(self, actions: NDArray[np.floating]) -> NDArray[np.float64]:
        """Map [..., A] from [-1, 1] to the data's units.

        Raises:
            CheckpointError: The statistics describe vectors of another length.
        """
        self._require_length(actions)
        scaled = 0.5 * (actions + 1) * (self.q99 - self.q01) + self.q01
        return np.where(self.mask, scaled, actions)

    def normalise(self, state: NDArray[np.floating]) -> NDArray[np.float64]:
        """Map [..., A] from the data's units to [-1, 1]; what lies outside is clipped.

        Raises:
            CheckpointError: The statistics describe vectors of another length.
        """
        self._require_length(state)
        scaled = 2 * (state - self.q01) / (self.q99 - self.q01 + 1e-8) - 1
        return np.where(self.mask, scaled, state).clip(-1, 1)

    def normalise_actions(self, actions: NDArray[np.floating]) -> NDArray[np.float64]:
        """The inverse of `denormalise`, not clipped; a dimension without spread becomes 0.

        Raises:
            CheckpointError: The statistics describe vectors of another length.
        """
        self._require_length(actions)
        spread = self.q99 - self.q01
        scaled = np.zeros(actions.shape)
        np.divide(2 * (actions - self.q01), spread, out=scaled, where=spread > 0)
        return np.where(self.mask, np.where(spread > 0, scaled - 1, 0.0), actions)

    def _require_length(self, vectors: NDArray[np.floating]) -> None:
        if vectors.shape[-1:] != self.q01.shape:
            raise CheckpointError(
                f'the statistics describe vectors of {len(self.q01)} numbers, but the model has '
                f'an array {list(vectors.shape)}; choose an unnorm_key of a dataset with '
                f'{vectors.shape[-1] if vectors.ndim else 0} of them.'
            )


@dataclass(frozen=True)
class NormStats:
    """Statistics of one dataset.

    Attributes:
        key: Its name, the unnorm_key.
        action: Of the actions.
        proprioception: Of the robot's state; None where the file has none.
    """

    key: str
    action: Bounds
    proprioception: Bounds | None


def read_norm_stats(config: Mapping[str, Any], folder: Path) -> dict[str, NormStats]:
    """Read the statistics of every dataset that a checkpoint knows.

    Args:
        config: Content of its config.json; norm_stats is used where the folder has no
            dataset_statistics.json, which fine-tuned checkpoints bring.
        folder: The checkpoint.

    Raises:
        CheckpointError: There are no statistics, or an entry is malformed.
    """
    path = folder / STATISTICS_NAME
    if path.is_file():
        source = str(path)
        try:
            entries = parse_json(path.read_bytes())
        except ValueError as error:
            raise CheckpointError(f'{path} is not readable JSON: {error}') from error
    else:
        source = f'norm_stats in {folder / CONFIG_NAME}'
        entries = config.get('norm_stats')
    if not isinstance(entries, Mapping) or not entries:
        raise CheckpointError(
            f'{source}: no statistics of the training data, without which actions have no '
            f'scale; copy the {STATISTICS_NAME} of the training run into {folder}.'
        )
    return {key: _read_entry(source, key, entry) for key, entry in entries.items()}


def choose_norm_stats(stats: Mapping[str, NormStats], unnorm_key: str = '') -> NormStats:
    """Choose the statistics of one dataset.

    Args:
        stats: By key.
        unnorm_key: A key, or a key with '_no_noops' appended or removed; empty where there is
            only one.

    Raises:
        ConfigError: No key is given, and there are several.
        UnknownNameError: There is no such key.
    """
    if not unnorm_key and len(stats) == 1:
        return next(iter(stats.values()))
    if not unnorm_key:
        raise ConfigError(
            f'the checkpoint knows {len(stats)} datasets; give the one of your robot as '
            f'unnorm_key. Valid: {", ".join(sorted(stats))}.'
        )
    for key in (unnorm_key, unnorm_key + NO_NOOPS, unnorm_key.removesuffix(NO_NOOPS)):
        if key in stats:
            return stats[key]
    nearest = difflib.get_close_matches(unnorm_key, stats, n=1, cutoff=0.0)
    raise UnknownNameError(
        'unnorm_key', unnorm_key, sorted(stats), f'Nearest: {nearest[0]!r}.' if nearest else ''
    )


def _read_entry(source: str, key: str, entry: Any) -> NormStats:
    if not isinstance(entry, Mapping) or not isinstance(entry.get('action'), Mapping):
        raise CheckpointError(
            f"{source}, dataset {key!r}: field 'action' is missing; valid: an object with the "
            'lists q01 and q99, and optionally mask.'
        )
    proprioception = entry.get('proprio')
    if proprioception is not None and not isinstance(proprioception, Mapping):
        raise CheckpointError(
            f"{source}, dataset {key!r}: field 'proprio' is no object; valid: an object with "
            'the lists q01 and q99, or none at all.'
        )
    return NormStats(
        key,
        _read_bounds(f'{source}, dataset {key!r}, action', entry['action']),
        None
        if proprioception is None
        else _read_bounds(f'{source}, dataset {key!r}, proprio', proprioception),
    )


def _read_bounds(where: str, fields: Mapping[str, Any]) -> Bounds:
    q01 = _read_quantiles(where, fields, 'q01')
    q99 = _read_quantiles(where, fields, 'q99')
    if len(q01) != len(q99):
        raise CheckpointError(
            f'{where}: q01 has {len(q01)} numbers and q99 has {len(q99)}; they must agree.'
        )
    if (q01 > q99).any():
        raise CheckpointError(
            f'{where}: q01 is above q99 in dimension {int(np.argmax(q01 > q99))}; '
            'valid: q01 <= q99.'
        )
    mask = fields.get('mask', [True] * len(q01))
    if (
        not isinstance(mask, list)
        or len(mask) != len(q01)
        or not all(isinstance(value, bool) for value in mask)
    ):
        raise CheckpointError(f'{where}: mask is {mask!r}; valid: a list of {len(q01)} booleans.')
    return Bounds(q01, q99, np.array(mask, dtype=np.bool_))


def _read_quantiles(where: str, fields: Mapping[str, Any], name: str) -> NDArray[np.float64]:
    if name not in fields:
        raise CheckpointError(
            f'{where}: field {name} is missing; given: {", ".join(fields) or "none"}. Statistics '
            'with min and max alone belong to models scaled by them, which are not supported.'
        )
    try:
        values = np.array(fields[name], dtype=np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise CheckpointError(
            f'{where}: field {name} is {str(fields[name])[:120]}; valid: a list of finite numbers.'
        )
    return values
