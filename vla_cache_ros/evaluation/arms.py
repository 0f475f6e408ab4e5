"""The arms of a comparison: which reuse, and how many actions of each chunk are executed.

off           dense: every token recomputed at every refresh
safe, paper   reuse presets (core.config)
off@7         dense, but 7 actions of each chunk executed: fewer refreshes, no cache at all
"""

import re
from dataclasses import dataclass

from vla_cache_ros.core.config import PRESETS
from vla_cache_ros.core.errors import ConfigError, UnknownNameError

PAIRED = ('off', 'safe')
"""What 'paired' stands for."""


@dataclass(frozen=True)
class Arm:
    """One way to run a policy.

    Attributes:
        preset: Reuse preset.
        execute_steps: Actions executed of each chunk; None leaves it to the policy.
    """

    preset: str
    execute_steps: int | None = None

    def __str__(self) -> str:
        """Format as 'safe' or 'off@7'."""
        return self.preset if self.execute_steps is None else f'{self.preset}@{self.execute_steps}'


def parse_arm(text: str) -> Arm:
    """Parse 'safe' or 'off@7'.

    Raises:
        UnknownNameError: There is no such preset.
        ConfigError: The count behind '@' is not a positive number.
    """
    name, at, count = text.strip().partition('@')
    if name not in PRESETS:
        raise UnknownNameError('arm', name, PRESETS, 'Add @7 to execute 7 actions of each chunk.')
    if not at:
        return Arm(name)
    if not re.fullmatch(r'[1-9]\d*', count):
        raise ConfigError(f'{text!r}: behind @ stands how many actions of a chunk to execute.')
    return Arm(name, int(count))


def parse_arms(text: str) -> list[str]:
    """Parse a comma-separated list of arms, each once; 'paired' stands for off,safe.

    Raises:
        UnknownNameError: There is no such preset.
        ConfigError: The list is empty, or a count is not positive.
    """
    names = [part.strip() for part in text.split(',') if part.strip()]
    arms = [arm for name in names for arm in (PAIRED if name == 'paired' else (name,))]
    if not arms:
        raise ConfigError('no arm was named; valid: paired, or any of off, safe, paper, off@7, ..')
    return list(dict.fromkeys(str(parse_arm(arm)) for arm in arms))
