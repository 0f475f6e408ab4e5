"""Supervision in a world of simulated nodes that crash, hang, refuse and come back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.errors import ConfigError, UnknownNameError
from vla_cache_ros.core.supervised_node import RANKS, TARGETS, SupervisionConfig
from vla_cache_ros.core.supervision import Supervisor

NODES = ('guard', 'sink', 'camera', 'policy')
TICK_S = 0.1
CONFIG = SupervisionConfig(
    nodes=NODES,
    processes=('camera', 'policy'),
    holders=('guard', 'sink'),
    configure_timeout_s=3.0,
    transition_timeout_s=1.0,
    startup_timeout_s=2.0,
    hang_timeout_s=1.0,
    restart_window_s=1000.0,
)


class World:
    """Nodes that beat, answer and obey a supervisor; every request is checked as it comes."""

    def __init__(self, config: SupervisionConfig = CONFIG) -> None:
        self.now_s = 0.0
        self.supervisor = Supervisor(config, self.now_s)
        self.alive = {name: name not in config.processes for name in config.nodes}
        self.state = dict.fromkeys(config.nodes, 'unconfigured')
        self.hanging: set[str] = set()
        self.refusing: set[str] = set()
        self.may_activate = False  # whether somebody has said so since the last loss
        self.requests: list[tuple[str, str]] = []

    def crash(self, name: str) -> None:
        if self.alive[name]:
            self.alive[name] = False
            self.state[name] = 'unconfigured'
            if self.node(name).state != 'lost':
                self.may_activate = self.supervisor.config.reactivate
            if name in self.supervisor.config.processes:
                self.supervisor.process_ended(name, 'died by signal 9', self.now_s)

    def respawn(self, name: str) -> None:
        """As ros2 launch does it."""
        if name not in self.supervisor.config.processes:
            self.alive[name] = True

    def tell(self, what: str) -> None:
        getattr(self.supervisor, what)()
        self.may_activate = what == 'activate'

    def run(self, duration_s: float) -> None:
        for _ in range(round(duration_s / TICK_S)):
            self.tick()

    def tick(self) -> None:
        self.now_s += TICK_S
        for name in NODES:
            if self.alive[name] and name not in self.hanging:
                self.supervisor.heard(name, self.state[name], self.now_s)
        for request in self.supervisor.tick(self.now_s):
            self.requests.append((request.node, request.action))
            self.check(request.node, request.action)
            self.obey(request.node, request.action)

    def check(self, name: str, action: str) -> None:
        known = {node.name: node.state for node in self.supervisor.nodes}
        order = list(known)
        before, after = order[: order.index(name)], order[order.index(name) + 1 :]
        if action == 'activate':
            assert self.may_activate, 'activated without being told'
            assert all(known[other] == 'active' for other in before)
            assert all(known[other] == 'inactive' for other in after)
        if action == 'deactivate':
            holders = CONFIG.holders
            assert all(known[other] != 'active' for other in after if other not in holders)
        if action in ('start', 'stop'):
            assert name in self.supervisor.config.processes
        if action in TARGETS:
            assert known[name] in ('unconfigured', 'inactive', 'active')

    def obey(self, name: str, action: str) -> None:
        supervisor = self.supervisor
        if action == 'start':
            assert not self.alive[name]
            self.alive[name], self.state[name] = True, 'unconfigured'
            self.hanging.discard(name)
            return
        if action == 'stop':
            self.alive[name] = False
            supervisor.process_ended(name, 'was stopped', self.now_s)
            return
        if not self.alive[name] or name in self.hanging:
            return
        if action == 'ask':
            supervisor.observed(name, self.state[name], self.now_s)
            return
        success = name not in self.refusing
        if success:
            self.state[name] = TARGETS[action]
        elif action == 'activate':
            self.may_activate = False
        supervisor.answered(name, action, success, self.now_s)

    def active(self) -> set[str]:
        return {name for name in NODES if self.state[name] == 'active' and self.alive[name]}

    def node(self, name: str):
        return next(node for node in self.supervisor.nodes if node.name == name)


def active_world(config: SupervisionConfig = CONFIG) -> World:
    world = World(config)
    world.tell('activate')
    world.run(3.0)
    assert world.supervisor.state == 'active'
    return world


def test_everything_is_configured_in_order_then_activated_in_order():
    world = active_world()
    transitions = [request for request in world.requests if request[1] in TARGETS]
    assert transitions == [
        *((name, 'configure') for name in NODES),
        *((name, 'activate') for name in NODES),
    ]


def test_nothing_is_configured_before_it_is_told():
    world = World()
    world.run(3.0)
    assert world.supervisor.state == 'down'
    assert {action for _, action in world.requests} == {'start', 'ask'}


def test_killed_policy_is_restarted_and_configured_and_waits_to_be_told():
    world = active_world()
    world.crash('policy')
    assert world.supervisor.state == 'degraded'
    world.run(3.0)
    assert world.state == {
        'guard': 'active',
        'sink': 'active',
        'camera': 'inactive',
        'policy': 'inactive',
    }
    assert world.supervisor.state == 'inactive'
    assert world.node('policy').restarts == 1
    world.tell('activate')
    world.run(1.0)
    assert world.supervisor.state == 'active'


def test_with_reactivate_it_goes_up_again_after_all_came_down():
    config = SupervisionConfig(**{**vars(CONFIG), 'reactivate': True})
    world = active_world(config)
    del world.requests[:]
    world.crash('policy')
    world.run(3.0)
    assert world.supervisor.state == 'active'
    transitions = [request for request in world.requests if request[1] in TARGETS]
    assert transitions == [
        ('camera', 'deactivate'),
        ('policy', 'configure'),
        ('camera', 'activate'),
        ('policy', 'activate'),
    ]


def test_being_told_to_deactivate_overrules_reactivate_and_holders():
    config = SupervisionConfig(**{**vars(CONFIG), 'reactivate': True})
    world = active_world(config)
    world.crash('policy')
    world.tell('deactivate')
    world.run(3.0)
    assert not world.active()
    assert world.supervisor.state == 'inactive'


def test_silent_node_is_lost_within_the_timeout_and_comes_back_deactivated():
    world = active_world()
    world.hanging.add('policy')
    world.may_activate = False
    world.run(CONFIG.heartbeat_timeout_s + 2 * TICK_S)
    assert world.node('policy').state == 'lost'
    assert 'silent' in world.node('policy').detail
    assert world.active() == {'guard', 'sink', 'policy'}
    world.hanging.clear()
    world.run(1.0)
    assert world.active() == {'guard', 'sink'}
    assert world.node('policy').restarts == 0


def test_hanging_process_is_stopped_and_started_again():
    world = active_world()
    world.hanging.add('policy')
    world.may_activate = False
    world.run(4.0)
    assert ('policy', 'stop') in world.requests
    assert world.node('policy').state == 'inactive'
    assert world.node('policy').restarts == 1


def test_what_was_known_to_be_lost_when_told_to_activate_comes_back_active():
    world = active_world()
    world.hanging.add('policy')
    world.run(CONFIG.heartbeat_timeout_s + 2 * TICK_S)
    assert world.node('policy').state == 'lost'
    world.tell('activate')
    world.crash('policy')
    world.run(3.0)
    assert world.supervisor.state == 'active'


def test_node_that_launch_respawns_is_configured_again_and_counted():
    world = active_world()
    world.crash('guard')
    world.run(1.0)
    assert world.supervisor.state == 'degraded'
    assert world.active() == {'sink'}
    world.respawn('guard')
    world.run(1.0)
    assert world.state['guard'] == 'inactive'
    assert world.node('guard').restarts == 1
    assert world.supervisor.state == 'inactive'


def test_node_that_somebody_else_deactivates_counts_as_lost():
    world = active_world()
    world.state['camera'] = 'inactive'
    world.may_activate = False
    world.run(1.0)
    assert world.active() == {'guard', 'sink'}
    assert 'unasked' in world.node('camera').detail


def test_node_is_given_up_after_too_many_restarts_until_told_again():
    world = active_world()
    for _ in range(CONFIG.max_restarts + 1):
        world.crash('policy')
        world.run(2.0)
    assert world.supervisor.state == 'failed'
    assert 'given up after 3 restarts' in world.node('policy').detail
    assert not world.alive['policy']
    world.tell('activate')
    world.run(3.0)
    assert world.supervisor.state == 'active'


def test_a_process_that_refuses_to_come_down_is_stopped_at_the_end():
    world = active_world()
    world.refusing.add('policy')
    world.tell('end')
    world.run(5.0)
    assert not world.alive['policy']
    assert world.requests.count(('policy', 'stop')) == 1


def test_refused_configure_is_not_repeated_until_told_again():
    world = World()
    world.refusing.add('camera')
    world.tell('activate')
    world.run(5.0)
    assert world.supervisor.state == 'failed'
    assert world.requests.count(('camera', 'configure')) == 1
    assert not world.active()
    world.refusing.clear()
    world.tell('activate')
    world.run(3.0)
    assert world.supervisor.state == 'active'


def test_unanswered_transition_makes_the_node_lost():
    world = World()
    world.run(1.0)
    world.tell('activate')
    world.hanging.add('policy')
    world.run(CONFIG.configure_timeout_s + CONFIG.hang_timeout_s + 1.0)
    assert ('policy', 'configure') in world.requests
    assert ('policy', 'stop') in world.requests


def test_old_heartbeat_after_an_answer_changes_nothing():
    world = active_world()
    world.supervisor.heard('policy', 'inactive', world.now_s)
    world.run(1.0)
    assert world.supervisor.state == 'active'


def test_end_shuts_down_in_reverse_order_and_stops_the_processes():
    world = active_world()
    del world.requests[:]
    world.tell('end')
    world.run(5.0)
    actions = [request for request in world.requests if request[1] in TARGETS]
    assert actions == [
        *((name, 'deactivate') for name in reversed(NODES)),
        *((name, 'shutdown') for name in reversed(NODES)),
    ]
    assert not world.alive['policy']
    assert world.supervisor.state == 'down'


@pytest.mark.parametrize('nodes', [(), ('guard', 'guard')])
def test_nodes_are_named_once_each(nodes):
    with pytest.raises(ConfigError, match='at least one, each named once'):
        SupervisionConfig(nodes=nodes)


@pytest.mark.parametrize('field', ['processes', 'holders'])
def test_processes_and_holders_are_among_the_nodes(field):
    with pytest.raises(UnknownNameError, match='valid: guard'):
        SupervisionConfig(nodes=('guard',), **{field: ('gaurd',)})


EVENTS = st.one_of(
    st.tuples(st.just('tell'), st.sampled_from(['activate', 'deactivate', 'end'])),
    st.tuples(st.sampled_from(['crash', 'respawn', 'hang', 'wake']), st.sampled_from(NODES)),
    st.tuples(st.sampled_from(['refuse', 'comply']), st.sampled_from(NODES)),
    st.tuples(st.just('run'), st.integers(1, 30)),
)


def apply(world: World, what: str, subject) -> None:
    if what == 'run':
        world.run(subject * TICK_S)
    elif what == 'hang':
        world.hanging.add(subject)
    elif what == 'wake':
        world.hanging.discard(subject)
    elif what == 'refuse':
        world.refusing.add(subject)
    elif what == 'comply':
        world.refusing.discard(subject)
    else:
        getattr(world, what)(subject)


@given(st.lists(EVENTS, max_size=40))
def test_whatever_happens_no_rule_is_broken_and_it_can_be_brought_up_again(events):
    world = World()
    for what, subject in events:
        apply(world, what, subject)  # World.check holds the rules
    world.hanging.clear()
    world.refusing.clear()
    for name in NODES:
        world.respawn(name)
    world.run(5.0)
    world.tell('activate')
    for name in NODES:
        if world.state[name] == 'finalized' and name not in CONFIG.processes:
            world.state[name] = 'unconfigured'  # its process was started again
    world.run(10.0)
    assert world.supervisor.state == 'active'
    assert world.active() == set(NODES)


@given(st.lists(st.sampled_from(['camera', 'policy']), max_size=20), st.integers(0, 5))
def test_no_process_is_started_more_often_than_allowed(crashes, max_restarts):
    config = SupervisionConfig(**{**vars(CONFIG), 'max_restarts': max_restarts})
    world = active_world(config)
    for name in crashes:
        world.crash(name)
        world.run(1.5)
    for name in ('camera', 'policy'):
        assert world.requests.count((name, 'start')) <= 1 + max_restarts
        assert world.node(name).failed == (crashes.count(name) > max_restarts)


@given(st.lists(st.tuples(st.sampled_from(NODES), st.sampled_from([*RANKS, 'configuring']))))
def test_heartbeats_alone_never_change_what_is_known(beats):
    world = active_world()
    for name, state in beats:
        world.supervisor.heard(name, state, world.now_s)
    assert all(node.state == 'active' for node in world.supervisor.nodes)
