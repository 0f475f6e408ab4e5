"""All nodes in one process on one executor: the graph that demo, evaluation and tests run.

    >>> with Graph(params_file='config/libero_small_vla.yaml') as graph:
    ...     result = graph.run_episode(task=0, init_state=3)
    ...     print(result.success, graph.monitor.snapshot().latency['overhead'].p50_ms)

Images cross the process without leaving it, yet by the same topics, QoS and messages as between
processes: a recorder, a viewer or a second policy may join at any time.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import rclpy
from rclpy.executors import Executor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter

from vla_cache_ros.core.errors import ConfigError, SimulatorError
from vla_cache_ros.nodes.command_guard import CommandGuardNode
from vla_cache_ros.nodes.monitor import Monitor
from vla_cache_ros.nodes.policy_loading import PolicyFactory
from vla_cache_ros.nodes.policy_node import PolicyNode
from vla_cache_ros.nodes.running import make_executor, spin
from vla_cache_ros.nodes.sim_bridge import EnvFactory, EpisodeResult, SimBridge

_DISCOVERY_S = 5.0
_LATE_REPORTS_S = 0.02

Overrides = Mapping[str, Mapping[str, Any]]


class Graph:
    """Simulator, policy, guard and monitor in this process.

    Attributes:
        policy_node: The policy's node.
        sim_bridge: The simulator's node.
        command_guard: The guard's node.
        monitor: The monitor's node.
        executor: Spins all of them; more nodes may be added to it.
    """

    def __init__(
        self,
        *,
        policy_factory: PolicyFactory | None = None,
        env_factory: EnvFactory | None = None,
        params_file: str | Path | None = None,
        overrides: Overrides | None = None,
        namespace: str = '',
        executor: Executor | None = None,
    ) -> None:
        """Create, configure and activate the nodes.

        Args:
            policy_factory: Makes the policy; default: by policy_node's parameters.
            env_factory: Makes the environment; default: by sim_bridge's parameters.
            params_file: ROS parameter file.
            overrides: Node name -> parameter -> value; these win over the file. use_sim_time is
                set for every node but the simulator, whose clock it is.
            namespace: ROS namespace of all nodes.
            executor: Spins the nodes; default: `running.make_executor`'s.

        Raises:
            ConfigError: The parameter file does not exist, a parameter is wrong, or a node could
                not be configured (its reason is in the log).
        """
        arguments = []
        if params_file is not None:
            if not Path(params_file).is_file():
                raise ConfigError(f'parameter file {params_file} does not exist.')
            arguments = ['--ros-args', '--params-file', str(params_file)]
        self._owns_context = not rclpy.ok()
        if self._owns_context:
            rclpy.init()
        self._nodes: list[Any] = []
        try:
            self.executor = executor or make_executor()

            def create(node_class: Callable[..., Any], name: str, *factory: Any) -> Any:
                values = {
                    'use_sim_time': name != 'sim_bridge',
                    **(overrides or {}).get(name, {}),
                    'autostart': False,  # the graph itself brings its nodes up
                }
                node = node_class(
                    *factory,
                    namespace=namespace,
                    cli_args=arguments,
                    parameter_overrides=[Parameter(key, value=v) for key, v in values.items()],
                )
                self._nodes.append(node)
                self.executor.add_node(node)
                return node

            self.command_guard: CommandGuardNode = create(CommandGuardNode, 'command_guard')
            self.monitor: Monitor = create(Monitor, 'monitor')
            self.policy_node: PolicyNode = create(PolicyNode, 'policy_node', policy_factory)
            self.sim_bridge: SimBridge = create(SimBridge, 'sim_bridge', env_factory)
            self._activate()
        except BaseException:
            self.close()
            raise

    def _activate(self) -> None:
        for node in (self.command_guard, self.policy_node, self.sim_bridge):
            for transition in (node.trigger_configure, node.trigger_activate):
                if transition() != TransitionCallbackReturn.SUCCESS:
                    raise ConfigError(
                        f'{node.get_name()} could not be configured; its reason is in the log.'
                    )

        # Policy, guard and simulator wait for one another at each reset; nobody waits for the
        # monitor, yet its figures shall begin with the first step.
        end_s = time.monotonic() + _DISCOVERY_S
        while self.monitor.unconnected() and time.monotonic() < end_s:
            self.executor.spin_once(0.01)

    def __enter__(self) -> 'Graph':
        """Enter a with block, at whose end the graph is closed."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the graph."""
        self.close()

    def run_episode(self, task: int, init_state: int, seed: int = 0) -> EpisodeResult:
        """Spin through one episode.

        Raises:
            UnknownNameError: There is no such task or initial state.
            SimulatorError: The simulator failed, or the graph was shut down meanwhile.
        """
        results: list[EpisodeResult] = []
        self.sim_bridge.begin_episode(task, init_state, seed)
        remove = self.sim_bridge.add_episode_listener(results.append)
        try:
            spin(self.executor, until=lambda: bool(results))
            self._read_late_reports()
        finally:
            remove()
        if not results:
            raise SimulatorError('the graph was shut down during the episode.')
        result = results[0]
        if result.reason.startswith('error'):
            raise SimulatorError(
                f'episode {result.episode} (task {task}, initial state {init_state}): '
                f'{result.reason}'
            )
        return result

    def _read_late_reports(self) -> None:
        """Let the reports of the last step reach the monitor."""
        end_s = time.monotonic() + _LATE_REPORTS_S
        while (left_s := end_s - time.monotonic()) > 0:
            self.executor.spin_once(left_s)

    def close(self) -> None:
        """Destroy the nodes; idempotent."""
        for node in reversed(self._nodes):
            self.executor.remove_node(node)
            node.destroy_node()
        self._nodes = []
        if self._owns_context:
            rclpy.try_shutdown()
