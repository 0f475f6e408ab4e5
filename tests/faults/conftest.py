"""The graph as a robot runs it, a process per node, around a fake simulator and a fake policy."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / 'benchmarks'))

from node_graph.faults import NO_FAULT, Case, FaultRun
from node_graph.processes import NodeSpec, node_processes
from node_graph.robot_graph import RobotGraph

CHUNK = 40
STAND_IN = {'height_px': 48, 'width_px': 64, 'chunk': CHUNK, 'inference_ms': 5.0}


class Robot:
    """A graph that is up; judges each fault with what this machine can do in mind."""

    def __init__(self, run: FaultRun) -> None:
        self.run = run
        self.baseline = run.suffer(NO_FAULT)
        stall_ms = max(self.baseline['silent_ms'] - run.graph.period_ms, run.graph.period_ms)
        self.slack_ms = 10 * stall_ms  # a busy machine runs everything late, the guard too

    def suffer(self, case: Case) -> dict[str, Any]:
        """Inject a fault; what must hold whatever the machine does is checked here."""
        row = self.run.suffer(case)
        assert row['too_old'] == 0
        assert row['repeated'] == 0
        assert row['not_finite'] == 0
        assert row['recovery_ms'] is not None
        assert self.run.processes.ended() == {}
        return row

    def assert_in_time(self, row: dict[str, Any], reaction: str = 'first_null_ms') -> None:
        """The reaction came when it was due; an arm that never moved is at rest in time."""
        assert row[reaction] is not None or reaction == 'moving_ms', row
        assert (row[reaction] or 0) <= row['due_ms'] + self.slack_ms, row


Bring = Callable[..., Robot]


def graph_in(folder: Path, **changes: Any) -> RobotGraph:
    """A graph whose chunks outlast the limit of age, so that no fault ends by itself."""
    return RobotGraph(
        faults=folder / 'faults',
        stand_in=STAND_IN,
        actions_per_chunk=CHUNK // 2 - 2,
        stale_image_timeout_s=1.0,
        **changes,
    )


@pytest.fixture(scope='module')  # not longer: it would speak on the domain of other tests
def robot(tmp_path_factory) -> Iterator[Robot]:
    """One graph for all of a module's faults that leave it as it was."""
    folder = tmp_path_factory.mktemp('robot')
    with node_processes(folder) as processes:
        graph = graph_in(folder, recordings=folder / 'recordings')
        yield Robot(FaultRun(graph, processes))


@pytest.fixture
def parted(tmp_path) -> Callable[..., Robot]:
    """Bring up a graph on both sides of a cable."""

    def bring(processes: Any, place: Callable[[NodeSpec], NodeSpec]) -> Robot:
        return Robot(FaultRun(graph_in(tmp_path), processes, place=place))

    return bring
