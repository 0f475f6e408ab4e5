"""The inference thread: one policy step after the other, and what is asked of it meanwhile."""

import time
from typing import Any

from vla_cache_ros.core.protocols import Policy, ReuseControl
from vla_cache_ros.core.types import ActionChunk
from vla_cache_ros.nodes.latest_worker import LatestWorker
from vla_cache_ros.nodes.pairing import Drop, PairedInputs
from vla_cache_ros.nodes.parameter_tables.policy_node import PolicyParameters
from vla_cache_ros.nodes.policy_outputs import PolicyOutputs
from vla_cache_ros.nodes.policy_refresh import Refresh, Refresher
from vla_cache_ros.nodes.policy_requests import Orders, RefusedError, Request
from vla_cache_ros.nodes.policy_shadow import ShadowRunner, shadow_config
from vla_cache_ros.nodes.step_messages import StepTimes


class Inference:
    """A policy at work, in a thread of its own.

    Attributes:
        policy: The policy; between `start` and `stop` the thread's alone.
    """

    def __init__(
        self, policy: Policy, parameters: PolicyParameters, outputs: PolicyOutputs, name: str
    ) -> None:
        """Prepare; the thread begins with `start`.

        Args:
            policy: The policy.
            parameters: The node's.
            outputs: Where chunks, reports and drops go.
            name: Name of the thread.

        Raises:
            ConfigError: Parameters contradict one another, or the policy cannot be shadowed.
        """
        self.policy = policy
        self._name = name
        self._outputs = outputs
        self._orders = Orders()
        self._refresher = Refresher(policy, parameters)
        shadow = shadow_config(parameters)
        self._shadow = ShadowRunner(policy, shadow) if shadow.enabled else None
        self._worker: LatestWorker[Request] | None = None

    @property
    def is_running(self) -> bool:
        """Whether there is a thread."""
        return self._worker is not None

    # The executor's thread

    def start(self) -> None:
        """Begin an episode."""
        self.reset('activate')
        self._worker = LatestWorker(self._work, self._name)

    def stop(self) -> None:
        """Revoke the chunk at once, void what is in work, then wait for it. Idempotent."""
        if self._worker is None:
            return
        self.reset('deactivate')
        self._outputs.revoke()
        self._worker.close()
        self._worker = None

    def reset(self, reason: str, forgives: bool = False) -> None:
        """Have the policy reset before its next step, and void what is in work; any thread.

        Args:
            reason: Appears in the next step's report.
            forgives: Whether a reuse that shadow mode switched off is on again.
        """
        self._orders.reset(reason, forgives)
        waiting = None if self._worker is None else self._worker.clear()
        if waiting is not None:
            self._drop('superseded', 'a reset came first.', waiting)

    def switch_reuse(self, on: bool) -> bool:
        """Switch the reuse by hand from the next step on; return whether there is one."""
        if not isinstance(self.policy, ReuseControl):
            return False
        self._orders.switch(on)
        return True

    def commit(self, message: Any) -> None:
        """Take note of what the guard will run next.

        Raises:
            ObservationError: The message is no chunk.
        """
        self._refresher.commit(message)

    def submit(
        self, inputs: PairedInputs, instruction: str, received_ns: int, age_ms: float
    ) -> None:
        """Have an observation worked on; one that still waits is superseded."""
        if self._worker is None:
            return
        replaced = self._worker.submit(
            Request(inputs, instruction, self._orders.epoch, received_ns, age_ms)
        )
        if replaced is not None:
            self._drop('superseded', 'a newer image came before work on this one began.', replaced)

    # The thread

    def _work(self, request: Request) -> None:
        """Take one policy step; whatever it raises, the thread outlives it."""
        try:
            self._step(request)
        except RefusedError as refused:
            if refused.flushes:
                self.reset('fault')
            self._drop(refused.reason, str(refused), request)
        except Exception as error:
            self.reset('fault')
            self._drop('inference_fault', f'{type(error).__name__}: {error}', request)

    def _step(self, request: Request) -> None:
        """Run the policy, publish its chunk, then its report; then, perhaps, check it."""
        refresh = self._refresh(request)
        if not self._publish_if_current(request, refresh.chunk):
            self._drop('superseded', 'a reset came during inference.', request)
            return
        times = StepTimes(
            request.age_ms,
            request.received_ns,
            refresh.started_ns,
            refresh.finished_ns,
            time.monotonic_ns(),
        )
        late = self._refresher.published(times)
        self._outputs.step(refresh.chunk, self.policy.layout, times, late)
        self._check(refresh)

    def _refresh(self, request: Request) -> Refresh:
        observation, resized = self._refresher.observe(request)
        forgives = self._orders.carry_out(self.policy)
        if resized:
            self._outputs.warn(f'{resized} has another resolution now; the cache is flushed')
            self.policy.reset('resolution change')
        if self._shadow is not None:
            if forgives:
                self._shadow.reset()
            self._shadow.before()
        return self._refresher.run(observation)

    def _publish_if_current(self, request: Request, chunk: ActionChunk) -> bool:
        """Publish a chunk unless a reset came; none can come between the look and the deed."""
        with self._orders.hold() as epoch:
            if request.epoch != epoch:
                return False
            self._outputs.chunk(chunk)
        return True

    def _check(self, refresh: Refresh) -> None:
        """Compare the chunk that is out with the dense one, where that is due."""
        worker, shadow = self._worker, self._shadow
        if shadow is None or worker is None or not shadow.due(refresh.chunk, worker.is_idle):
            return
        epoch = self._orders.epoch
        try:
            found = shadow.compare(refresh.observation, refresh.chunk, refresh.inference_ms)
        except Exception as error:  # the check must not stop what it checks
            self._outputs.warn(f'shadow mode failed: {type(error).__name__}: {error}')
            return
        if found is None:
            self._outputs.warn('shadow mode: the dense chunk holds NaN or infinity')
            return
        if epoch != self._orders.epoch:
            return  # of an episode that is over
        result, off_reason = found
        if off_reason:
            self._orders.switch_off(off_reason)
        self._outputs.shadow(result, off_reason)

    def _drop(self, reason: str, detail: str, request: Request) -> None:
        self._outputs.drop(Drop(reason, detail, request.inputs.stamp_ns))
