"""One episode of a policy in a simulator, without ROS, and the row that is kept of it.

The simulator advances `execute_steps` actions of each chunk and renders only the frames that the
policy reads.
"""

import contextlib
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vla_cache_ros.core.errors import ConfigError, SimulatorError
from vla_cache_ros.core.protocols import Policy
from vla_cache_ros.core.types import Observation, Proprioception, StepReport

CONTROL_PERIOD_NS = 50_000_000
"""Simulated time of one action: LIBERO runs at 20 Hz."""


class Environment(Protocol):
    """What an episode needs of a simulator; `vla_cache_sim.libero.LiberoEnv` has it."""

    @property
    def instruction(self) -> str:
        """The present task in words."""
        ...

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start the episode and return its first observation."""
        ...

    def advance(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        """Advance one control step without rendering."""
        ...

    def observe(self) -> dict[str, np.ndarray]:
        """Render the present state."""
        ...

    def close(self) -> None:
        """Free the simulator."""
        ...


@dataclass(frozen=True)
class EpisodeSpec:
    """Which episode to run; equal specs are the same episode."""

    suite: str
    task: int
    init_state: int
    cache: str = 'off'
    """Reuse preset of the policy: 'off', 'paper' or 'safe'."""
    seed: int = 0


@dataclass(frozen=True)
class EpisodeRow:
    """What is kept of a finished episode: one line of the JSONL file.

    Attributes:
        suite, task, init_state, cache, seed: The spec.
        outcome: 'success', 'failure' (of the policy) or 'simulator_error'.
        steps: Control steps taken.
        policy_steps: Chunks computed.
        wall_s: Wall-clock time of the episode, reset included.
        stage_ms: Stage -> median over the policy's steps, milliseconds.
        step_ms: Median of a policy step's total, milliseconds.
        recompute_ratio: Mean share of token-layers recomputed.
        modes: Policy step's mode -> how many.
        flushes, keyframes: Reason -> how many.
        fingerprint: Names the weights and settings that produced the row.
        note: What went wrong, when something did.
    """

    suite: str
    task: int
    init_state: int
    cache: str
    seed: int
    outcome: str
    steps: int = 0
    policy_steps: int = 0
    wall_s: float = 0.0
    stage_ms: Mapping[str, float] = field(default_factory=dict[str, float])
    step_ms: float | None = None
    recompute_ratio: float | None = None
    modes: Mapping[str, int] = field(default_factory=dict[str, int])
    flushes: Mapping[str, int] = field(default_factory=dict[str, int])
    keyframes: Mapping[str, int] = field(default_factory=dict[str, int])
    fingerprint: str = ''
    note: str = ''

    @property
    def spec(self) -> EpisodeSpec:
        """The episode that was run."""
        return EpisodeSpec(self.suite, self.task, self.init_state, self.cache, self.seed)

    @property
    def success(self) -> bool:
        """Whether the policy solved the task."""
        return self.outcome == 'success'

    @property
    def judged(self) -> bool:
        """Whether the episode says something about the policy."""
        return self.outcome != 'simulator_error'


def to_observation(
    observed: Mapping[str, np.ndarray],
    camera_names: Sequence[str],
    instruction: str,
    stamp_ns: int,
) -> Observation:
    """Turn an environment's observation into a policy's."""
    return Observation(
        images={name: observed[name] for name in camera_names},
        proprioception=Proprioception(
            observed['ee_position_m'],
            observed['ee_quaternion_xyzw'],
            observed['gripper_position_m'],
        ),
        instruction=instruction,
        stamp_ns=stamp_ns,
    )


def default_execute_steps(policy: Policy) -> int:
    """Actions executed of each chunk: what the policy says, else half of its chunk."""
    return int(getattr(policy, 'execute_steps', max(1, policy.chunk_size // 2)))


def run_episode(
    env: Environment, policy: Policy, spec: EpisodeSpec, execute_steps: int | None = None
) -> EpisodeRow:
    """Run one episode to its success, its step limit or an invalid action.

    Args:
        env: The simulator.
        policy: The policy; it is reset first.
        spec: The episode; its `cache` is only recorded, the policy was built with it.
        execute_steps: Actions executed of each chunk; None leaves it to the policy.

    Returns:
        The row. An action that is not finite ends the episode as a failure, with a note.

    Raises:
        SimulatorError: The simulator failed; the episode says nothing about the policy.
    """
    execute_steps = execute_steps or default_execute_steps(policy)
    begin = time.perf_counter()
    reports: list[StepReport] = []
    steps, outcome, note = 0, '', ''

    with _simulator('reset'):
        observed, info = env.reset(
            seed=spec.seed, options={'task': spec.task, 'init_state': spec.init_state}
        )
    policy.reset('episode start')
    while not outcome:
        stamp_ns = steps * CONTROL_PERIOD_NS
        chunk = policy.act(
            to_observation(observed, policy.camera_names, info['instruction'], stamp_ns)
        )
        if chunk.report is not None:
            reports.append(chunk.report)
        if not np.isfinite(chunk.actions).all():
            outcome, note = 'failure', f'the chunk at step {steps} holds NaN or infinity'
            break
        for action in chunk.actions[:execute_steps]:
            with _simulator('advance'):
                _, success, truncated, info = env.advance(action)
            steps += 1
            if success or truncated:
                outcome = 'success' if success else 'failure'
                break
        else:
            with _simulator('observe'):
                observed = env.observe()

    return EpisodeRow(
        **dataclasses.asdict(spec),
        outcome=outcome,
        steps=steps,
        policy_steps=len(reports),
        wall_s=time.perf_counter() - begin,
        **summarize_reports(reports),
        note=note,
    )


def summarize_reports(reports: Sequence[StepReport]) -> dict[str, Any]:
    """Medians and counts over an episode's reports, by the names of `EpisodeRow`."""
    if not reports:
        return {}
    stages = list(dict.fromkeys(stage for report in reports for stage in report.stage_ms))
    return {
        'stage_ms': {
            stage: float(np.median([r.stage_ms[stage] for r in reports if stage in r.stage_ms]))
            for stage in stages
        },
        'step_ms': float(np.median([report.total_ms for report in reports])),
        'recompute_ratio': float(np.mean([report.plan.recompute_ratio for report in reports])),
        'modes': dict(Counter(report.mode for report in reports)),
        'flushes': dict(Counter(r.flush_reason for r in reports if r.flush_reason)),
        'keyframes': dict(Counter(r.keyframe_reason for r in reports if r.keyframe_reason)),
    }


@contextlib.contextmanager
def _simulator(call: str) -> Iterator[None]:
    """Blame the simulator for whatever is raised inside, configuration errors excepted."""
    try:
        yield
    except (ConfigError, SimulatorError):
        raise
    except Exception as error:  # a simulator raises anything; none of it is the policy's failure
        raise SimulatorError(f'{call} failed: {type(error).__name__}: {error}') from error


def append_row(path: Path, row: EpisodeRow) -> None:
    """Append one line; it is on disk when this returns."""
    with path.open('a', encoding='utf-8') as file:
        file.write(json.dumps(dataclasses.asdict(row)) + '\n')


def read_rows(path: Path) -> list[EpisodeRow]:
    """Read the rows of a JSONL file; a missing file has none.

    A last line that was cut short by an interruption is removed from the file.

    Raises:
        ConfigError: A line is not an episode row.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding='utf-8')
    if text and not text.endswith('\n'):
        text = text[: text.rfind('\n') + 1]
        path.write_text(text, encoding='utf-8')
    rows: list[EpisodeRow] = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            rows.append(EpisodeRow(**json.loads(line)))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f'{path}:{number} is not an episode row ({error}); '
                'move the file away or write to another one.'
            ) from error
    return rows
