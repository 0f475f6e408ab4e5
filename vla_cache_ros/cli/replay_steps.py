"""A policy over recorded observations, its chunks beside those of the recording or another policy.

What a policy computes depends on what its cache holds, so on the steps before. A replay therefore
follows the recorded run: it acts on the observations that were acted on, resets where the policy
was reset, and raises or switches off reuse where that was done. Where the recorded steps are not
all there, at its beginning or behind a gap, it waits for the next step that recomputed everything.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from vla_cache_ros.cli.replay_inputs import Observations, RecordedStep, Survey
from vla_cache_ros.core.errors import ObservationError, RecordingError
from vla_cache_ros.core.protocols import Policy, ReuseControl
from vla_cache_ros.core.shadow import compare_actions
from vla_cache_ros.core.types import ActionChunk, Observation

NO_STEP = RecordedStep(-1, '', '', '', 0.0)


@dataclass(frozen=True)
class ReplayRow:
    """One step and how its actions differ; see core.shadow.Divergence.

    Attributes:
        stamp_ns: The observation's stamp.
        instruction: Its task.
        mode: How the policy ran it: dense, keyframe or cached.
        reference_mode: How the other one ran it.
        mean_difference, max_difference: Of the six deltas; None where one has NaN or infinity.
        gripper_flips: Actions whose gripper command has another sign.
        identical: Whether the chunks are equal bit for bit.
        compared: Actions compared: those that both chunks have.
    """

    stamp_ns: int
    instruction: str
    mode: str
    reference_mode: str
    mean_difference: float | None
    max_difference: float | None
    gripper_flips: int
    identical: bool
    compared: int


@dataclass
class ReplayResult:
    """What came of a replay.

    Attributes:
        rows: The steps that were compared.
        skipped: Recorded steps before the first that a replay can begin with, and behind gaps.
        missing: Recorded steps whose observation is not in the recording.
        refused: Why the policy refused observations.
        notes: What else is worth knowing.
    """

    rows: list[ReplayRow] = field(default_factory=list)
    skipped: int = 0
    missing: int = 0
    refused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def against_recording(
    policy: Policy,
    observations: Observations,
    about: Survey,
    on_step: Callable[[], None] = lambda: None,
    limit: int | None = None,
) -> ReplayResult:
    """Run the policy where the recorded one ran, and compare with what that one published.

    Args:
        policy: With the weights and preset of the recorded run, for equal actions.
        observations: Of the recording.
        about: Of the recording.
        on_step: Called after each recorded step, compared or not.
        limit: Steps to compare at most; None: all.

    Raises:
        RecordingError: The recording has no chunks, or none that can be compared.
    """
    if not about.chunks:
        raise RecordingError(
            'the recording holds no action chunks (vla/action_chunk) to compare with; it holds: '
            f'{", ".join(sorted(about.topics))}. Compare two presets instead: --against off.'
        )
    acted = {stamp: index for index, stamp in enumerate(sorted(about.acted))}
    result = ReplayResult()
    position, is_anchored, is_off = 0, False, False
    for observation in observations:
        here = acted[observation.stamp_ns]
        if here > position:
            result.missing += here - position
            is_anchored = False
        position = here + 1
        step = about.steps.get(observation.stamp_ns, NO_STEP)
        on_step()
        if not is_anchored and about.steps and not step.recomputes_all:
            result.skipped += 1
            continue
        if not is_anchored or step.step == 0:
            policy.reset(step.flush_reason or 'replay')
        is_anchored = True
        is_off = _follow(policy, step, is_off)
        try:
            chunk = policy.act(observation)
        except ObservationError as error:
            result.refused.append(str(error))
            is_anchored = False
            continue
        recorded = about.chunks.get(observation.stamp_ns)
        if recorded is not None:
            result.rows.append(compare(observation, chunk, recorded, step.mode))
        if limit is not None and len(result.rows) >= limit:
            break
    else:
        result.missing += len(acted) - position
    _explain(result, observations, about)
    return result


def against_policy(
    policy: Policy,
    other: Policy,
    observations: Observations,
    about: Survey,
    on_step: Callable[[], None] = lambda: None,
    limit: int | None = None,
) -> ReplayResult:
    """Run two policies over the same observations: those acted on where they are known.

    Args:
        policy: One.
        other: The one that it is compared with, e.g. the same weights without reuse.
        observations: Of the recording.
        about: Of the recording.
        on_step: Called after each step.
        limit: Steps to compare at most; None: all.

    Raises:
        RecordingError: The recording makes up no observation.
    """
    result = ReplayResult()
    for arm in (policy, other):
        arm.reset('replay')
    for observation in observations:
        if result.rows and about.steps.get(observation.stamp_ns, NO_STEP).step == 0:
            for arm in (policy, other):
                arm.reset(about.steps[observation.stamp_ns].flush_reason or 'replay')
        try:
            chunk, reference = policy.act(observation), other.act(observation)
        except ObservationError as error:
            result.refused.append(str(error))
            for arm in (policy, other):
                arm.reset('refused observation')
            continue
        mode = '' if reference.report is None else reference.report.mode
        result.rows.append(compare(observation, chunk, reference, mode))
        on_step()
        if limit is not None and len(result.rows) >= limit:
            break
    _explain(result, observations, about)
    return result


def compare(
    observation: Observation, chunk: ActionChunk, reference: ActionChunk, reference_mode: str
) -> ReplayRow:
    """Compare the actions that both chunks have."""
    steps = min(len(chunk.actions), len(reference.actions))
    divergence = compare_actions(chunk.actions[:steps], reference.actions[:steps])
    return ReplayRow(
        stamp_ns=observation.stamp_ns,
        instruction=observation.instruction,
        mode='' if chunk.report is None else chunk.report.mode,
        reference_mode=reference_mode,
        mean_difference=None if divergence is None else divergence.mean,
        max_difference=None if divergence is None else divergence.max,
        gripper_flips=0 if divergence is None else divergence.gripper_flips,
        identical=np.array_equal(chunk.actions, reference.actions, equal_nan=True),
        compared=steps,
    )


def summarise(result: ReplayResult, tolerance: float | None) -> dict[str, Any]:
    """Figures of the whole replay, and the verdict where a tolerance was named.

    Beyond it is a step with a greater difference, with a gripper command of another sign, or with
    a NaN or infinity in one of the chunks that the other does not have.
    """
    rows = result.rows
    known = [row for row in rows if row.max_difference is not None]
    beyond = [] if tolerance is None else [row for row in rows if _is_beyond(row, tolerance)]
    modes = [row.mode for row in rows]
    return {
        'steps': len(rows),
        'identical': sum(row.identical for row in rows),
        'max_difference': max((row.max_difference or 0.0 for row in known), default=None),
        'mean_difference': (
            float(np.mean([row.mean_difference or 0.0 for row in known])) if known else None
        ),
        'gripper_flips': sum(row.gripper_flips for row in rows),
        'not_finite': len(rows) - len(known),
        'tolerance': tolerance,
        'beyond_tolerance': len(beyond),
        'first_beyond': asdict(beyond[0]) if beyond else None,
        'modes': {mode: modes.count(mode) for mode in dict.fromkeys(modes)},
        'skipped': result.skipped,
        'missing': result.missing,
        'refused': len(result.refused),
        'notes': result.notes,
    }


def _is_beyond(row: ReplayRow, tolerance: float) -> bool:
    if row.identical:
        return False
    return row.max_difference is None or row.max_difference > tolerance or row.gripper_flips > 0


def _follow(policy: Policy, step: RecordedStep, is_off: bool) -> bool:
    """Raise reuse and switch it off or on as the recorded run did; True while it is off.

    Only policies with a cache of their own can; for others there is nothing to follow.
    """
    if not isinstance(policy, ReuseControl):
        return False
    policy.set_pressure(min(1.0, max(0.0, step.reuse_pressure)))
    wants_off = bool(step.off_reason) and step.mode == 'dense'
    if wants_off and not is_off:
        policy.switch_off(step.off_reason)
    elif is_off and not wants_off:
        policy.switch_on()
    return wants_off


def _explain(result: ReplayResult, observations: Observations, about: Survey) -> None:
    """Note what was left out, and refuse a replay that compared nothing."""
    notes = result.notes
    if result.skipped:
        notes.append(
            f'{result.skipped} steps skipped until one that recomputed everything: what the '
            'cache held before is not recorded.'
        )
    if result.missing:
        notes.append(f'{result.missing} recorded steps have no observation in the recording.')
    if about.chunks and not about.steps:
        notes.append(
            'no step reports (policy_node/step_report): resets and switched-off reuse of the '
            'recorded run are unknown.'
        )
    switched_off = sum(bool(step.off_reason) and step.mode == 'dense' for step in _all(about))
    if switched_off:
        notes.append(f'{switched_off} recorded steps ran with reuse off or switched off.')
    for what, reasons in (
        ('observations', result.refused),
        ('inputs', observations.refused),
        ('messages', about.unreadable),
    ):
        if reasons:
            notes.append(f'{len(reasons)} {what} could not be used, the first one: {reasons[0]}')
    if not result.rows:
        raise RecordingError(
            f'no step can be compared. {" ".join(notes) or "Images and states never pair up."} '
            f'The recording holds {_counted(about.counts)}.'
        )


def _all(about: Survey) -> Iterator[RecordedStep]:
    yield from about.steps.values()


def _counted(counts: Mapping[str, int]) -> str:
    return ', '.join(f'{count} on {topic}' for topic, count in sorted(counts.items()))
