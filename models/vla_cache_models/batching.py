"""Steps of several sessions in one forward, each with a plan and a K/V cache of its own.

    plan      each session plans by itself                          (ReuseController)
    sort      steps on the same weights, of the same shape, of like work form a batch
    widen     their plans are brought to equal counts               (core.common_plan)
    run       vision and decoder once for the batch; heads one by one
    finish    each session commits the plan that ran, and reports it

A widened plan recomputes tokens that the session alone would have reused, so a batch is never less
accurate than the session alone. It isn't the same to the last bit: a matrix product of another
shape sums in another order, and who shares a batch with whom depends on when requests come.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vla_cache_models.decoder import Decoder
from vla_cache_models.policy import Step, VlaPolicy, run_steps
from vla_cache_ros.core.common_plan import common_plans
from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.core.types import ActionChunk, Observation

WORK_SPREAD = 1.5
"""A batch's largest plan recomputes at most this many times its smallest: padding is work, too."""


@dataclass
class _Session:
    """A policy's step on its way through a batch."""

    index: int
    policy: VlaPolicy
    step: Step

    @property
    def work(self) -> float:
        return self.step.planned.plan.recompute_ratio


def act_together(
    policies: Sequence[VlaPolicy],
    observations: Sequence[Observation],
    on_batch: Callable[[int], None] | None = None,
) -> list[ActionChunk | Exception]:
    """Compute the next chunk of several sessions.

    Args:
        policies: One per session, each once. Those on shared weights (`make_policy` on one model)
            run as batches, as far as their plans are alike; engines have graphs for one session
            and run one after another.
        observations: One per policy.
        on_batch: Called with the size of each forward.

    Returns:
        Per session its chunk, or what it raised: the others go on.

    Raises:
        ConfigError: A policy comes twice, or the numbers differ.
    """
    if len(policies) != len(observations) or len({id(policy) for policy in policies}) != len(
        policies
    ):
        raise ConfigError('act_together takes one observation per policy, and each policy once.')
    results: list[ActionChunk | Exception | None] = [None] * len(policies)
    sessions: list[_Session] = []
    for index, (policy, observation) in enumerate(zip(policies, observations, strict=True)):
        try:
            sessions.append(_Session(index, policy, policy.begin(observation)))
        except Exception as error:  # this session's alone
            results[index] = error
    for batch in _batches(sessions):
        if on_batch is not None:
            on_batch(len(batch))
        try:
            actions = _run(batch)
        except Exception as error:  # its controllers find the step uncommitted and start anew
            for session in batch:
                results[session.index] = error
            continue
        for session, own in zip(batch, actions, strict=True):
            try:
                results[session.index] = session.policy.finish(session.step, own)
            except Exception as error:  # this session's alone
                results[session.index] = error
    return [result for result in results if result is not None]


@torch.inference_mode()
def _run(batch: Sequence[_Session]) -> list[NDArray[np.float32]]:
    """Bring the plans to equal counts and run the network."""
    plans = [session.step.planned.plan for session in batch]
    wider = common_plans(plans, batch[0].step.layout)
    for session, plan, own in zip(batch, wider, plans, strict=True):
        if plan is not own:
            session.policy.widen(session.step, plan)
    return run_steps([session.step for session in batch])


def _batches(sessions: Sequence[_Session]) -> list[list[_Session]]:
    """Sort the sessions into batches: same shape, work within WORK_SPREAD."""
    batches: list[list[_Session]] = []
    for session in sorted(sessions, key=lambda session: -session.work):
        for batch in batches:
            largest = batch[0]
            if _shape(session) == _shape(largest) and largest.work <= WORK_SPREAD * session.work:
                batch.append(session)
                break
        else:
            batches.append([session])
    return batches


def _shape(session: _Session) -> Hashable:
    """What the sessions of a batch have in common."""
    step = session.step
    decoder, layout = step.model.decoder, step.layout
    alone = 0 if isinstance(decoder, Decoder) else id(session)
    spans = (layout.cameras, layout.num_tokens, layout.attention, layout.causal)
    return id(decoder), alone, step.planned.plan.groups, spans
