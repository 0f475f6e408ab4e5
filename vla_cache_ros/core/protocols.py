"""The seams between the domains."""

from typing import Any, Protocol, runtime_checkable

from vla_cache_ros.core.layout import TokenLayout
from vla_cache_ros.core.types import ActionChunk, Observation


@runtime_checkable
class ReuseControl(Protocol):
    """What a policy with reuse lets its surroundings decide."""

    def set_pressure(self, pressure: float) -> None:
        """Raise the reuse from the next step on: 0 not at all, 1 to its safe limit."""
        ...

    def switch_off(self, reason: str) -> None:
        """Have every step run dense, for that reason, until `switch_on`."""
        ...

    def switch_on(self) -> None:
        """Allow reuse again."""
        ...

    def dense_twin(self) -> Any:
        """A policy on the same weights that reuses nothing, with `act` and `follow`.

        `follow` takes over what the leader's next action depends on besides the observation.
        """
        ...


@runtime_checkable
class Policy(Protocol):
    """Everything that turns an observation into an action chunk."""

    @property
    def chunk_size(self) -> int:
        """T, actions per chunk."""
        ...

    @property
    def camera_names(self) -> tuple[str, ...]:
        """The cameras that an observation must hold, in the model's order."""
        ...

    @property
    def image_size_px(self) -> int:
        """Side of the camera images that the training data had; simulators render at it.

        Images of other sizes are resized.
        """
        ...

    @property
    def layout(self) -> TokenLayout:
        """The model's token layout."""
        ...

    def reset(self, reason: str = 'reset') -> None:
        """Forget the episode: flush the cache; `reason` appears in the next step's report."""
        ...

    def act(self, observation: Observation) -> ActionChunk:
        """Compute the next action chunk.

        Raises:
            ObservationError: The observation cannot be used; the policy's state is unchanged.
        """
        ...
