"""Workers on a cluster, through Ray, with one policy for all of them.

    simulators   one actor per worker: EpisodeRunner, one core, no weights
    policy       one actor with the weights: `PolicyServer`, which batches the simulators' requests

Nothing is lost: an episode whose worker or node died is run again by another worker, and so are
those that ran when the policy died, which Ray starts again. Nothing is double: an episode is with
one worker at a time, and whoever was given up cannot deliver any more.
"""

import asyncio
import contextlib
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vla_cache_ros.core.errors import ConfigError, EvaluationError
from vla_cache_ros.core.protocols import Policy
from vla_cache_ros.core.types import ActionChunk, Observation
from vla_cache_ros.evaluation.crew import STEP_TIMEOUT_S, Refusal, judge
from vla_cache_ros.evaluation.environment import PolicyFactory
from vla_cache_ros.evaluation.episode import EpisodeRow, EpisodeSpec
from vla_cache_ros.evaluation.policy_messages import (
    Failure,
    PolicyServerBusyError,
    SessionInfo,
    SessionLostError,
    unpack,
)
from vla_cache_ros.evaluation.policy_server import (
    ActTogether,
    PolicyServer,
    ServerLimits,
    ServerStatistics,
    act_one_by_one,
)
from vla_cache_ros.evaluation.remote_policy import RemotePolicy
from vla_cache_ros.evaluation.runner import EpisodeRunner, Job, failed_row

LOCAL = 'local'
"""The address that starts a Ray of one's own on this machine."""

MAX_LOSSES = 3
"""How often an episode may lose its worker or its policy before that is the result."""

START_TIMEOUT_S = 600.0
"""A cluster that has not started one worker within this time has no room for it."""

_WATCH = 'watch'  # the group of the actors' second thread
_POLL_S = 1.0
_CONNECT_S = 5.0
_OBJECT_STORE_BYTES = 256 * 2**20  # of a local Ray: chunks and observations pass through it
_PASSED_ON = ('LIBERO_CONFIG_PATH', 'MS_ASSET_DIR', 'MUJOCO_GL', 'PYTHONPATH')


class RayCrew:
    """Runs the episodes on a Ray cluster.

    Attributes:
        statistics: Of the policy server, once a run has ended; of its last start, where it died.
        reruns: Why episodes were run again, one line each.
    """

    def __init__(
        self,
        address: str = LOCAL,
        workers: int = 0,
        step_timeout_s: float = STEP_TIMEOUT_S,
        *,
        act_together: ActTogether = act_one_by_one,
        gpus: float = 0,
        limits: ServerLimits | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            address: 'local' starts a Ray on this machine; 'auto' joins the cluster that this
                machine belongs to, host:port or ray://host:port one elsewhere.
            workers: Simulators at a time; 0: as many as there are CPUs, on a cluster beside the
                policy's.
            step_timeout_s: A worker whose simulator has not returned from a call for so long is
                killed; its episode is a simulator's error.
            act_together: How the policy server computes a batch.
            gpus: GPUs of the policy server.
            limits: Of the policy server.

        Raises:
            ConfigError: A value is out of its range, or Ray is not installed.
        """
        if workers < 0:
            raise ConfigError(f'workers is {workers}; valid: at least 1, or 0 for one per CPU.')
        if not step_timeout_s > 0:
            raise ConfigError(f'step_timeout_s is {step_timeout_s}; valid: greater than 0.')
        self._address = address
        self._workers = workers
        self._step_timeout_s = step_timeout_s
        self._act_together = act_together
        self._gpus = gpus
        self._limits = limits
        self._ray = import_ray()
        self.statistics: ServerStatistics | None = None
        self.reruns: list[str] = []

    def run(self, job: Job, specs: Sequence[EpisodeSpec]) -> Generator[EpisodeRow, None, None]:
        """See `Crew.run`."""
        if not specs:
            return
        with _connected(self._ray, self._address, self._workers or os.cpu_count() or 1):
            free = int(self._ray.cluster_resources().get('CPU', 1)) - 1
            count = min(self._workers or max(1, free), len(specs))
            server = self._start_server(job.policy_factory)
            remote = replace(job, policy_factory=_RemotePolicies(server))
            crew: list[_Worker] = []
            try:
                crew += [_Worker(self._ray, remote) for _ in range(count)]
                yield from self._drive(crew, remote, specs)
                self.statistics = self._ray.get(server.statistics.remote(), timeout=_CONNECT_S)
            finally:
                for actor in (*(worker.actor for worker in crew), server):
                    self._ray.kill(actor)

    def _start_server(self, policy_factory: PolicyFactory) -> Any:
        options = {'num_gpus': self._gpus} if self._gpus else {}
        kind = self._ray.remote(
            num_cpus=1,
            max_restarts=MAX_LOSSES,
            runtime_env={'env_vars': _environment()},
            **options,
        )
        return kind(_PolicyActor).remote(policy_factory, self._act_together, self._limits)

    def _drive(
        self, crew: list['_Worker'], job: Job, specs: Sequence[EpisodeSpec]
    ) -> Iterator[EpisodeRow]:
        """Hand out the episodes and collect the rows until there is one of each."""
        pending = deque(specs)
        losses: Counter[EpisodeSpec] = Counter()
        missing, stillborn = len(specs), 0
        poll_s = min(_POLL_S, self._step_timeout_s / 4)
        started_s = time.monotonic()
        while missing:
            refs = [worker.ref for worker in crew if worker.ref is not None]
            ready, _ = self._ray.wait(refs, timeout=poll_s)
            for worker in tuple(crew):
                outcome = worker.look(worker.ref in ready, self._step_timeout_s)
                if isinstance(outcome, _Lost):
                    losses[outcome.spec] += 1
                    if losses[outcome.spec] < MAX_LOSSES:
                        self.reruns.append(outcome.note)
                        pending.appendleft(outcome.spec)
                        outcome = None
                    elif outcome.is_servers:
                        raise EvaluationError(f'the policy server is lost: {outcome.note}')
                    else:
                        note = f'{MAX_LOSSES} workers died of it: {outcome.note}'
                        outcome = failed_row(outcome.spec, note)
                if worker.is_dead:
                    if not worker.has_started:
                        stillborn += 1
                        self._check_births(stillborn, worker.note)
                    crew.remove(worker)
                    if len(crew) < len(pending) + sum(w.spec is not None for w in crew):
                        crew.append(_Worker(self._ray, job))
                elif worker.is_idle and pending:
                    worker.assign(pending.popleft())
                if outcome is not None:
                    missing -= 1
                    yield outcome
            if not any(worker.has_started for worker in crew):
                self._check_start(time.monotonic() - started_s)
            else:
                started_s = time.monotonic()

    def _check_births(self, stillborn: int, note: str) -> None:
        """Give up a cluster whose workers die before their first episode."""
        if stillborn > MAX_LOSSES:
            raise EvaluationError(
                f'{stillborn} workers died at their start ({note}); does every node have this '
                'package and its simulator, in the same versions? Logs: /tmp/ray/session_latest.'
            )

    def _check_start(self, waited_s: float) -> None:
        """Give up a cluster that has no room for a single worker."""
        if waited_s > START_TIMEOUT_S:
            raise EvaluationError(
                f'no worker could be started within {START_TIMEOUT_S:g} s; the cluster has '
                f'{self._ray.cluster_resources()}, and a worker needs one CPU beside the policy.'
            )


@dataclass(frozen=True)
class _Lost:
    """An episode that has to be run again."""

    spec: EpisodeSpec
    note: str
    is_servers: bool = False


class _Worker:
    """A simulator actor and the episode it is busy with."""

    def __init__(self, ray: Any, job: Job) -> None:
        self._ray = ray
        kind = ray.remote(
            num_cpus=1,
            concurrency_groups={_WATCH: 1},
            runtime_env={'env_vars': _environment()},
        )
        self.actor = kind(_SimulatorActor).remote(job)
        self.spec: EpisodeSpec | None = None
        self.has_started = False
        self.is_dead = False
        self.note = ''
        self.ref: Any = self.actor.pulse.remote()
        self._pulse: Any = None
        self._pulse_asked_s = 0.0

    @property
    def is_idle(self) -> bool:
        return self.has_started and self.spec is None

    def assign(self, spec: EpisodeSpec) -> None:
        self.spec = spec
        self.ref = self.actor.run.remote(spec)
        self._pulse = None

    def look(self, is_ready: bool, timeout_s: float) -> EpisodeRow | _Lost | None:
        """What has become of the episode; None while it runs, or where there is none."""
        if is_ready:
            return self._collect()
        return None if self.spec is None else self._watch(timeout_s)

    def _collect(self) -> EpisodeRow | _Lost | None:
        spec, self.spec = self.spec, None
        ref, self.ref = self.ref, None
        try:
            result = self._ray.get(ref)
        except self._ray.exceptions.RayActorError as error:
            self.note = _first_line(error)
            self._give_up()
            if spec is None:
                return None
            return _Lost(spec, f'the worker died: {self.note}')
        self.has_started = True
        if spec is None:  # that was the start
            return None
        if isinstance(result, Failure):
            return _Lost(spec, result.message, is_servers=True)
        return judge(spec, result)

    def _watch(self, timeout_s: float) -> EpisodeRow | None:
        """Kill a worker that is stuck in its simulator, or that does not answer any more."""
        now = time.monotonic()
        call, silent_s = '', 0.0
        if self._pulse is None:
            pulse = self.actor.pulse.options(concurrency_group=_WATCH)
            self._pulse, self._pulse_asked_s = pulse.remote(), now
        elif self._ray.wait([self._pulse], timeout=0)[0]:
            with contextlib.suppress(self._ray.exceptions.RayActorError):  # `_collect` will see
                call, silent_s = self._ray.get(self._pulse)
            self._pulse = None
        else:
            call, silent_s = 'the worker', now - self._pulse_asked_s
        if silent_s <= timeout_s:
            return None
        spec, self.spec = self.spec, None
        assert spec is not None  # only busy workers are watched
        self._give_up()
        return failed_row(
            spec, f'{call} did not return within {timeout_s:g} s; the worker was killed'
        )

    def _give_up(self) -> None:
        self.is_dead = True
        self.ref = None
        self._ray.kill(self.actor)


class _SimulatorActor:
    """Runs episodes; its pulse is asked for on a thread of its own."""

    def __init__(self, job: Job) -> None:
        os.dup2(2, 1)  # simulators are chatty
        self._call, self._since_s = '', 0.0
        self._runner = EpisodeRunner(job, self._beat)

    def run(self, spec: EpisodeSpec) -> EpisodeRow | Refusal | Failure:
        """Run an episode; a Failure means that its policy's session was lost."""
        try:
            return self._runner.run(spec)
        except SessionLostError as error:
            return Failure.of(error)
        except Exception as error:  # whatever the policy raised must reach the driver
            return Refusal.of(error)

    def pulse(self) -> tuple[str, float]:
        """Which call of the simulator runs, and for how long; 0 outside of calls."""
        call, since_s = self._call, self._since_s
        return call, time.monotonic() - since_s if call else 0.0

    def _beat(self, call: str) -> None:
        self._call, self._since_s = '', time.monotonic()
        self._call = call


class _PolicyActor:
    """`PolicyServer` behind Ray: every method answers with a value or a `Failure`."""

    def __init__(
        self, policy_factory: PolicyFactory, act_together: ActTogether, limits: Any
    ) -> None:
        self._server = PolicyServer(policy_factory, act_together, limits)

    async def open(self, preset: str) -> SessionInfo | Failure:
        return await _answer(self._server.open, preset)

    async def reset(self, session: str, reason: str) -> None | Failure:
        return await _answer(self._server.reset, session, reason)

    async def act(self, session: str, observation: Observation) -> ActionChunk | Failure:
        try:
            return await asyncio.wrap_future(self._server.submit(session, observation))
        except Exception as error:  # what the policy raised is its client's
            return Failure.of(error)

    async def close(self, session: str) -> None:
        self._server.close(session)

    async def statistics(self) -> ServerStatistics:
        return self._server.statistics()


async def _answer(call: Callable[..., Any], *args: Any) -> Any:
    """The call's value, or a Failure; it may take long, and others are served meanwhile."""
    try:
        return await asyncio.to_thread(call, *args)
    except Exception as error:  # what the policy raised is its client's
        return Failure.of(error)


class _RayConnection:
    """See `PolicyConnection`."""

    def __init__(self, server: Any) -> None:
        self._ray = import_ray()
        self._server = server

    def open(self, preset: str) -> SessionInfo:
        try:
            return unpack(self._ray.get(self._server.open.remote(preset)))
        except self._ray.exceptions.ActorDiedError as error:
            raise SessionLostError(f'the policy server died: {_first_line(error)}') from error
        except self._ray.exceptions.RayActorError as error:
            raise PolicyServerBusyError(f'it is being restarted: {_first_line(error)}') from error

    def reset(self, session: str, reason: str = 'reset') -> None:
        self._ask(self._server.reset, session, reason)

    def act(self, session: str, observation: Observation) -> ActionChunk:
        return self._ask(self._server.act, session, observation)

    def close(self, session: str) -> None:
        self._ask(self._server.close, session)

    def _ask(self, method: Any, *args: Any) -> Any:
        try:
            return unpack(self._ray.get(method.remote(*args)))
        except self._ray.exceptions.RayActorError as error:
            raise SessionLostError(f'the policy server died: {_first_line(error)}') from error


@dataclass(frozen=True)
class _RemotePolicies:
    """Opens a session per preset; travels to the workers."""

    server: Any

    def __call__(self, preset: str) -> Policy:
        return RemotePolicy(_RayConnection(self.server), preset)


def import_ray() -> Any:
    """Ray, without telemetry, and without its messages, which go to stdout.

    Raises:
        ConfigError: It is not installed.
    """
    os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
    os.environ.setdefault('RAY_DEDUP_LOGS_SKIP_REGEX', '^')  # all; read at the import
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ConfigError(
            'running on a cluster needs Ray, which is not installed here; install it with '
            '`make setup-ray`, or `pip install -r requirements/ray.txt`.'
        ) from error
    return ray


@contextlib.contextmanager
def _connected(ray: Any, address: str, workers: int) -> Iterator[None]:
    """Join a cluster, or have one for the while; one that this process has joined is used.

    Raises:
        ConfigError: There is no cluster at this address.
    """
    if ray.is_initialized():
        yield
        return
    quiet = {'log_to_driver': False, 'logging_level': 'ERROR'}
    if address == LOCAL:
        ray.init(
            address=LOCAL,
            num_cpus=workers + 1,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            **quiet,
        )
    else:
        _check_address(address)
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _no_cluster(address, str(error)) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """See at once whether anybody listens: Ray itself waits for minutes.

    Raises:
        ConfigError: Nobody does, or it is no address.
    """
    if address == 'auto':
        return
    host, colon, port = address.removeprefix('ray://').rpartition(':')
    if not (host and colon and port.isdigit()):
        raise ConfigError(
            f'--ray {address!r} is no address; valid: {LOCAL} (start one here), auto (the '
            'cluster of this machine), host:port, ray://host:port.'
        )
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise _no_cluster(address, str(error)) from error


def _no_cluster(address: str, why: str) -> ConfigError:
    return ConfigError(
        f'no Ray cluster answers at {address} ({why.strip().splitlines()[0]}); start one with '
        f'`ray start --head --port 6379`, or take --ray {LOCAL}. A cluster that was started with '
        'token authentication wants its token here, too.'
    )


def _environment() -> dict[str, str]:
    """What the actors' libraries read at their import."""
    given = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {'MUJOCO_GL': 'egl', 'TTY_COMPATIBLE': '0', **given}


def _first_line(error: BaseException) -> str:
    """What happened, without Ray's pages of advice."""
    return str(error).strip().splitlines()[0]
