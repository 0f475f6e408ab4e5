"""What a server lets its clients do."""

from dataclasses import dataclass

from vla_cache_ros.core.errors import ConfigError

MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Bounds of one server.

    Attributes:
        message_bytes: Longest message; longer ones are refused unread.
        image_side_px: Longest side of a camera image.
        sessions: Sessions at once, each with a cache of its own.
        rate_hz: Messages per second of one session; faster clients are slowed down.
        idle_s: Seconds after which a silent session is ended.
    """

    message_bytes: int = 16 * MEBIBYTE
    image_side_px: int = 2048
    sessions: int = 8
    rate_hz: float = 200.0
    idle_s: float = 600.0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: A bound is not positive.
        """
        for name in ('message_bytes', 'image_side_px', 'sessions', 'rate_hz', 'idle_s'):
            if not getattr(self, name) > 0:
                raise ConfigError(f'{name} must be positive; got {getattr(self, name)}.')
