r"""DDIM sampling of an action chunk, and where its noise comes from.

The base process of N steps has (squared cosine schedule, arXiv:2102.09672)

    beta_t = min(1 - f((t + 1) / N) / f(t / N), 0.999),   f(u) = cos^2(pi/2 (u + 0.008) / 1.008)
    a_t    = (1 - beta_0) .. (1 - beta_t)

DDIM (arXiv:2010.02502, eta = 0) visits every stride-th step, from the last down to 0; from t to
the next one t', with a_t' = 1 after the last:

    x0  = (x - sqrt(1 - a_t) noise) / sqrt(a_t),                  not clipped
    x'  = sqrt(a_t') x0 + sqrt(1 - a_t') noise
        = sqrt(a_t' / a_t) x + (sqrt(1 - a_t') - sqrt(a_t' / a_t) sqrt(1 - a_t)) noise

so each step is two numbers. They are computed in float64 and multiply tensors of x's own type. The
published code rounds its float64 table to float32 and derives the noise a second time from x0,
which differs by rounding alone.

A chunk that must begin with known actions y (those that run while it is computed: real-time
chunking's hard prefix, arXiv:2506.07339) is inpainted: before each visit of t, and after the last
one with a = 1, the known entries are

    x_known = sqrt(a_t) y + sqrt(1 - a_t) e,      e the noise that the sampling started from

so that the network continues y. The published soft mask and its guidance by gradients are left
out: they cost a backward pass in every step.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_cache_ros.core.errors import ConfigError

MAX_BETA = 0.999
COSINE_OFFSET = 0.008


def squared_cosine_alpha_bars(diffusion_steps: int) -> NDArray[np.float64]:
    """a_t of every step of the base process, [N]."""
    u = np.arange(diffusion_steps + 1) / diffusion_steps
    f = np.cos(np.pi / 2 * (u + COSINE_OFFSET) / (1 + COSINE_OFFSET)) ** 2
    betas = np.minimum(1 - f[1:] / f[:-1], MAX_BETA)
    return np.cumprod(1 - betas, dtype=np.float64)


@dataclass(frozen=True)
class DdimSchedule:
    """Which steps of the base process are visited, and what each does.

    Attributes:
        diffusion_steps: N of the base process that the network was trained on.
        sampling_steps: Calls of the network per chunk. There must be an integer stride that
            gives so many of the N steps; the smallest such stride is taken.
        timesteps: Steps of the base process in the order of execution, the last one 0. The
            network is given these.
        coefficients: For each of them, what x and the noise are multiplied with.
        signal: For each of them, sqrt(a_t) and sqrt(1 - a_t).
    """

    diffusion_steps: int = 100
    sampling_steps: int = 10
    timesteps: tuple[int, ...] = field(init=False)
    coefficients: tuple[tuple[float, float], ...] = field(init=False)
    signal: tuple[tuple[float, float], ...] = field(init=False)

    def __post_init__(self) -> None:
        """Lay out the steps.

        Raises:
            ConfigError: No stride gives that many sampling steps.
        """
        visited = self._visited()
        a = squared_cosine_alpha_bars(self.diffusion_steps)[visited]
        following = np.append(1.0, a[:-1])
        scale = np.sqrt(following / a)
        noise = np.sqrt(1 - following) - scale * np.sqrt(1 - a)
        pairs = zip(scale.tolist(), noise.tolist(), strict=True)
        object.__setattr__(self, 'timesteps', tuple(reversed(visited)))
        object.__setattr__(self, 'coefficients', tuple(reversed(list(pairs))))
        signal = zip(np.sqrt(a).tolist(), np.sqrt(1 - a).tolist(), strict=True)
        object.__setattr__(self, 'signal', tuple(reversed(list(signal))))

    def _visited(self) -> range:
        """The visited steps of the base process, ascending."""
        steps = self.diffusion_steps
        strided = {
            len(range(0, steps, stride)): range(0, steps, stride)
            for stride in range(steps - 1, 0, -1)
        }
        if self.sampling_steps not in strided:
            valid = ', '.join(map(str, sorted(strided))) or 'none, diffusion_steps must be >= 2'
            raise ConfigError(
                f'sampling_steps is {self.sampling_steps!r} with diffusion_steps {steps!r}; '
                f'valid: {valid}.'
            )
        return strided[self.sampling_steps]

    def step(self, x: Tensor, noise: Tensor, i: int) -> Tensor:
        """Go from the i-th visited step to the next one.

        Args:
            x: Noisy actions at timesteps[i], [B, T, A].
            noise: The network's prediction, same shape; brought to x's type.
            i: Position in timesteps.

        Returns:
            Actions at timesteps[i + 1], or the result after the last step; x's shape and type.
        """
        scale, noise_scale = self.coefficients[i]
        return scale * x + noise_scale * noise.to(x.dtype)

    def sample(
        self,
        noise_fn: Callable[[Tensor, Tensor], Tensor],
        noise: Tensor,
        known: Tensor | None = None,
    ) -> Tensor:
        """Turn noise into actions.

        Args:
            noise_fn: Predicts the noise [B, T, A] in x [B, T, A] at step t, int64 [B].
            noise: Where the sampling starts, [B, T, A]; its type carries the state.
            known: Entries that are given, [B, T, A], NaN where they are to be sampled.

        Returns:
            [B, T, A], not clipped.
        """
        x = noise
        for i, timestep in enumerate(self.timesteps):
            if known is not None:
                kept, added = self.signal[i]
                x = torch.where(known.isnan(), x, kept * known + added * noise)
            t = torch.full((len(x),), timestep, dtype=torch.int64, device=x.device)
            x = self.step(x, noise_fn(x, t), i)
        return x if known is None else torch.where(known.isnan(), x, known)


class NoiseSource:
    """Standard normal noise that is the same on every device and in every run of an episode.

    Drawn on the CPU and moved, so that a dense and a cached run, or a CPU and a GPU, that are
    reset with the same seed start each chunk from the same noise: their actions then differ by
    what the cache does alone.
    """

    def __init__(self, seed: int) -> None:
        """Seed the source."""
        self._seed = seed
        self._generator = torch.Generator()
        self.reset()

    def reset(self) -> None:
        """Begin again; call it where an episode starts."""
        self._generator.manual_seed(self._seed)

    def follow(self, leader: 'NoiseSource') -> None:
        """Draw next what the leader draws next."""
        self._generator.set_state(leader._generator.get_state())

    def draw(self, shape: tuple[int, ...], device: torch.device | str = 'cpu') -> Tensor:
        """Noise of the given shape, float32."""
        return torch.randn(shape, generator=self._generator).to(device)
