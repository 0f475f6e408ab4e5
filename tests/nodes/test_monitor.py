"""The monitor: percentiles, rates, deadline misses and levels from the reports it is sent."""

import itertools
import math
import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import TimeReference
from vla_cache_interfaces.msg import (
    CameraReuse,
    GuardStatus,
    Heartbeat,
    ShadowReport,
    StageTime,
    StepReport,
)

from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.conversions import ns_to_stamp
from vla_cache_ros.nodes.monitor import Monitor
from vla_cache_ros.nodes.report_checks import MAX_NAMES
from vla_cache_ros.nodes.report_messages import (
    CommandReport,
    ShadowResult,
    guard_to_message,
    shadow_to_message,
)
from vla_cache_ros.nodes.step_messages import drop_to_message

pytestmark = pytest.mark.ros

MS_NS = 1_000_000


class Source:
    """Sends what policy, guard and simulator would send."""

    def __init__(self, executor, spin_until, simulated=False, **parameters) -> None:
        self.spin_until = spin_until
        values = {'publish_period_s': 0.05, 'deadline_ms': 50.0, **parameters}
        overrides = [Parameter(name, value=value) for name, value in values.items()]
        self.monitor = Monitor(parameter_overrides=overrides)
        node = self.node = Node('source')
        self.steps = qos.publish(node, StepReport, 'policy_node/step_report', qos.report())
        self.status = qos.publish(node, GuardStatus, 'vla/status', qos.report())
        self.shadow = qos.publish(node, ShadowReport, 'policy_node/shadow_report', qos.report())
        self.beats = qos.publish(node, Heartbeat, 'policy_node/heartbeat', qos.heartbeat())
        if simulated:
            topic = 'sim_bridge/time_reference'
            self.time = qos.publish(node, TimeReference, topic, qos.report())
        self.diagnostics: list[DiagnosticArray] = []
        qos.subscribe(node, DiagnosticArray, '/diagnostics', self.diagnostics.append, qos.report())
        executor.add_node(self.monitor)
        executor.add_node(node)
        spin_until(
            lambda: (
                all(
                    publisher.get_subscription_count()
                    for publisher in (
                        self.steps,
                        self.status,
                        self.shadow,
                        self.beats,
                        self.monitor._publisher,
                    )
                )
                and len(self.monitor.unconnected()) == (not simulated)
            )
        )

    def send_step(self, stamp_ns: int, received_ns: int, inference_ms: float, **more) -> None:
        report = StepReport(
            age_ms=3.0,
            received_ns=received_ns,
            published_ns=received_ns + round(inference_ms * MS_NS),
            queue_ms=0.1,
            inference_ms=inference_ms,
            publish_ms=0.2,
            mode='cached',
            stages=[
                StageTime(name='vision', ms=inference_ms / 2),
                StageTime(name='head', ms=inference_ms / 4),
            ],
            recompute_ratio=0.4,
            cameras=[
                CameraReuse(
                    name='wrist',
                    rows=4,
                    columns=4,
                    reused=12,
                    status=[0] * 12 + [1] * 4,
                    age_steps=[2] * 8 + [0] * 8,
                )
            ],
            **more,
        )
        report.header.stamp = ns_to_stamp(stamp_ns)
        self.steps.publish(report)

    def send_command(self, image_stamp_ns, published_ns: int, index=0, reasons=(), **more) -> None:
        report = CommandReport(
            step_ns=0,
            published_ns=published_ns,
            action=np.zeros(7, np.float32),
            is_null=bool(reasons),
            image_stamp_ns=image_stamp_ns,
            index=index,
            reasons=tuple(reasons),
            counts={'passed': 5},
            **more,
        )
        self.status.publish(guard_to_message(report))

    def send_shadow(self, alarm: bool, switched_off: bool = False) -> None:
        result = ShadowResult(1, 0.25, 0.5, 0, 0.2, 1.0, alarm, switched_off, 20.0, 8.0)
        self.shadow.publish(shadow_to_message(result))

    def send_capture(self, stamp_ns: int, captured_ns: int) -> None:
        message = TimeReference(source='CLOCK_MONOTONIC', time_ref=ns_to_stamp(captured_ns))
        message.header.stamp = ns_to_stamp(stamp_ns)
        self.time.publish(message)

    def levels(self) -> dict[str, DiagnosticStatus]:
        self.diagnostics.clear()
        self.spin_until(lambda: self.diagnostics)
        return {status.name.split(': ')[1]: status for status in self.diagnostics[0].status}


@pytest.fixture
def source(executor, spin_until):
    return Source(executor, spin_until)


def test_percentiles_of_a_known_run(executor, spin_until):
    source = Source(executor, spin_until, simulated=True)
    now_ns = time.monotonic_ns()
    inference_ms = np.arange(1.0, 41.0)
    for index, value_ms in enumerate(inference_ms):
        stamp_ns = (index + 1) * 50 * MS_NS
        captured_ns = now_ns + index * 50 * MS_NS
        source.send_capture(stamp_ns, captured_ns)
        source.send_step(stamp_ns, captured_ns + MS_NS, value_ms)
        source.send_command(stamp_ns, captured_ns + round((value_ms + 1.5) * MS_NS))
        spin_until(lambda index=index: source.monitor.snapshot().commands == index + 1)
    spin_until(lambda: len(source.monitor.samples('overhead')) == 40)
    snapshot = source.monitor.snapshot()
    whole = snapshot.latency['image_to_command']
    expected = np.percentile(inference_ms + 1.5, (50, 95, 99))
    np.testing.assert_allclose((whole.p50_ms, whole.p95_ms, whole.p99_ms), expected, atol=1e-4)
    assert whole.max_ms == pytest.approx(41.5, abs=1e-4)
    assert snapshot.latency['overhead'].max_ms == pytest.approx(1.5, abs=1e-4)
    assert snapshot.latency['transport'].p50_ms == pytest.approx(1.0, abs=1e-4)
    assert snapshot.latency['vision'].max_ms == pytest.approx(20.0)
    assert snapshot.steps == snapshot.commands == 40
    assert snapshot.deadline_misses == 0


@pytest.mark.parametrize('order', itertools.permutations(('capture', 'step', 'command')))
def test_parts_of_a_step_are_joined_in_any_order(executor, spin_until, order):
    source = Source(executor, spin_until, simulated=True)
    monitor, now_ns = source.monitor, time.monotonic_ns()
    send = {
        'capture': lambda: source.send_capture(7, now_ns),
        'step': lambda: source.send_step(7, now_ns + MS_NS, 50.0),
        'command': lambda: source.send_command(7, now_ns + 60 * MS_NS),
    }
    arrived = {
        'capture': lambda: 7 in monitor._captured_ns,
        'step': lambda: monitor.snapshot().steps == 1,
        'command': lambda: monitor.snapshot().commands == 1,
    }
    for part in order[:-1]:
        send[part]()
        spin_until(arrived[part])
        assert monitor.samples('image_to_command') == ()
    send[order[-1]]()
    spin_until(lambda: monitor.samples('image_to_command') == (60.0,))
    assert monitor.snapshot().deadline_misses == 1


def test_without_capture_times_the_age_at_receipt_counts(source, spin_until):
    now_ns = time.monotonic_ns()
    source.send_step(7, now_ns, 10.0)
    source.send_command(7, now_ns + 11 * MS_NS)
    spin_until(lambda: source.monitor.samples('image_to_command'))
    assert source.monitor.samples('image_to_command') == (14.0,)
    assert source.monitor.samples('overhead') == (4.0,)


def test_refresh_and_command_rates_are_told_apart(source, spin_until):
    begin_ns = time.monotonic_ns() + 10_000 * MS_NS
    for step in range(5):
        source.send_step(step + 1, begin_ns + 400 * MS_NS * step, 0.0)
    for step in range(33):
        source.send_command(step // 8 + 1, begin_ns + 50 * MS_NS * step, index=step % 8)
    spin_until(lambda: source.monitor.snapshot().commands == 33)
    spin_until(lambda: source.monitor.snapshot().steps == 5)
    snapshot = source.monitor.snapshot()
    assert snapshot.refresh_hz == pytest.approx(2.5)
    assert snapshot.command_hz == pytest.approx(20.0)


def test_levels_follow_what_happens(source, spin_until):
    levels = source.levels()
    assert set(levels) == {'policy', 'latency', 'commands', 'cache', 'nodes'}
    assert {status.level for status in levels.values()} == {DiagnosticStatus.STALE}

    source.send_step(1, time.monotonic_ns(), 10.0)
    source.send_command(1, time.monotonic_ns())
    spin_until(lambda: source.monitor.samples('overhead'))
    levels = source.levels()
    assert levels['policy'].level == DiagnosticStatus.OK
    assert levels['latency'].level == DiagnosticStatus.OK
    assert levels['commands'].level == DiagnosticStatus.OK
    values = {pair.key: pair.value for pair in levels['cache'].values}
    assert values['reused wrist'] == '12/16'
    assert values['age_mean_steps wrist'] == '1.00'
    assert values['age_max_steps wrist'] == '2'
    latency = {pair.key for pair in levels['latency'].values}
    assert {f'overhead {key}' for key in ('p50_ms', 'p95_ms', 'p99_ms', 'max_ms')} <= latency

    source.steps.publish(drop_to_message(2, 'bad_image', 'no pixels', {}))
    spin_until(lambda: source.monitor.snapshot().drops)
    levels = source.levels()
    assert levels['policy'].level == DiagnosticStatus.WARN
    assert 'no pixels' in levels['policy'].message
    assert source.levels()['policy'].level == DiagnosticStatus.OK  # it has passed

    source.steps.publish(drop_to_message(3, 'not_due', 'another one is soon', {}))
    spin_until(lambda: 'not_due' in source.monitor.snapshot().drops)
    assert source.levels()['policy'].level == DiagnosticStatus.OK  # part of normal running

    source.steps.publish(drop_to_message(3, 'inference_fault', 'oom', {}))
    source.send_command(None, time.monotonic_ns(), index=None, reasons=['no_action'])
    spin_until(lambda: source.monitor.snapshot().null_commands == 1)
    spin_until(lambda: 'inference_fault' in source.monitor.snapshot().drops)
    levels = source.levels()
    assert levels['policy'].level == DiagnosticStatus.ERROR
    assert levels['commands'].level == DiagnosticStatus.ERROR


def test_silence_is_stale(executor, spin_until):
    source = Source(executor, spin_until, stale_after_s=0.1)
    source.send_step(1, time.monotonic_ns() - 200 * MS_NS, 10.0)
    spin_until(lambda: source.monitor.snapshot().steps == 1)
    assert source.levels()['policy'].level == DiagnosticStatus.STALE


def test_clear_forgets_the_run_before(source, spin_until):
    source.send_step(1, time.monotonic_ns(), 10.0)
    source.send_command(1, time.monotonic_ns())
    spin_until(lambda: source.monitor.samples('overhead'))
    source.monitor.clear()
    snapshot = source.monitor.snapshot()
    assert (snapshot.steps, snapshot.commands, dict(snapshot.latency)) == (0, 0, {})
    assert dict(snapshot.guard) == {}


def test_report_that_cannot_be_read_is_counted(source, spin_until):
    now_ns = time.monotonic_ns()
    source.send_step(1, now_ns, 1.0, reuse_pressure=math.nan)
    spin_until(lambda: source.monitor.snapshot().drops == {'bad_report': 1})
    source.send_command(1, now_ns, degradation='never heard of')
    spin_until(lambda: source.monitor.snapshot().drops == {'bad_report': 2})
    source.shadow.publish(ShadowReport(mean_difference=math.inf))
    spin_until(lambda: source.monitor.snapshot().drops == {'bad_report': 3})
    snapshot = source.monitor.snapshot()
    assert (snapshot.steps, snapshot.commands, snapshot.last_shadow) == (0, 0, None)
    levels = source.levels()
    assert levels['policy'].level == DiagnosticStatus.WARN
    assert 'mean_difference is inf' in levels['policy'].message


def test_invented_reasons_fill_no_memory(source, spin_until):
    for index in range(MAX_NAMES + 50):
        source.steps.publish(drop_to_message(index, f'reason {index}', 'x' * 10_000, {}))
        if index % 50 == 0:
            spin_until(lambda: sum(source.monitor.snapshot().drops.values()) > index)  # noqa: B023
    spin_until(lambda: sum(source.monitor.snapshot().drops.values()) == MAX_NAMES + 50)
    assert source.monitor.snapshot().drops['other'] == 50
    assert len(source.monitor.snapshot().drops) == MAX_NAMES + 1
    assert len(source.monitor.snapshot().last_drop) < 1000


def test_a_late_policy_and_a_guard_on_its_chunk_are_warnings(source, spin_until):
    source.send_step(1, time.monotonic_ns(), 10.0, deadline_missed=True)
    source.send_command(1, time.monotonic_ns())
    source.send_command(1, time.monotonic_ns(), index=1, degradation='on_chunk')
    spin_until(lambda: source.monitor.snapshot().commands == 2)
    spin_until(lambda: source.monitor.snapshot().late_refreshes == 1)
    assert source.monitor.snapshot().degradations == {'nominal': 1, 'on_chunk': 1}
    levels = source.levels()
    assert levels['policy'].level == DiagnosticStatus.WARN
    assert '1 late refreshes' in levels['policy'].message
    assert levels['commands'].level == DiagnosticStatus.WARN
    assert '1 of 2 ran on' in levels['commands'].message


def test_a_latched_stop_is_an_error_and_a_dry_run_is_said(source, spin_until):
    source.send_command(1, time.monotonic_ns(), dry_run=True)
    spin_until(lambda: source.monitor.snapshot().commands == 1)
    status = source.levels()['commands']
    assert (status.level, 'dry run' in status.message) == (DiagnosticStatus.OK, True)

    source.send_command(None, time.monotonic_ns(), None, ['e_stop'], e_stop=True)
    spin_until(lambda: source.monitor.snapshot().commands == 2)
    status = source.levels()['commands']
    assert (status.level, status.message) == (
        DiagnosticStatus.ERROR,
        'the emergency stop is latched',
    )


def test_divergence_of_the_shadow_is_judged_by_its_budgets(source, spin_until):
    assert 'shadow' not in source.levels()  # nobody asked for one
    source.send_shadow(alarm=False)
    spin_until(lambda: source.monitor.snapshot().last_shadow)
    status = source.levels()['shadow']
    assert (status.level, status.message) == (DiagnosticStatus.OK, 'mean difference 0.2500')
    source.send_shadow(alarm=True)
    spin_until(lambda: source.monitor.snapshot().shadow_alarms == 1)
    assert source.levels()['shadow'].level == DiagnosticStatus.WARN
    assert source.levels()['shadow'].level == DiagnosticStatus.OK  # it has passed
    source.send_shadow(alarm=True, switched_off=True)
    spin_until(lambda: source.monitor.snapshot().shadow_alarms == 2)
    assert source.levels()['shadow'].level == DiagnosticStatus.ERROR
    assert source.levels()['shadow'].level == DiagnosticStatus.ERROR  # until a later one says so


def test_a_cache_that_is_off_is_a_warning(source, spin_until):
    source.send_step(1, time.monotonic_ns(), 10.0, off_reason='does not pay')
    spin_until(lambda: source.monitor.snapshot().steps == 1)
    status = source.levels()['cache']
    assert status.level == DiagnosticStatus.WARN
    assert 'does not pay' in status.message


def test_signs_of_life_are_followed(executor, spin_until):
    source = Source(executor, spin_until, heartbeat_timeout_s=0.3, heartbeat_nodes=['policy_node'])
    assert source.levels()['nodes'].level == DiagnosticStatus.STALE

    def beat(state: str) -> DiagnosticStatus:
        source.beats.publish(Heartbeat(node='policy_node', state=state))
        spin_until(lambda: source.monitor.snapshot().nodes['policy_node'].state == state)
        return source.levels()['nodes']

    assert beat('inactive').level == DiagnosticStatus.WARN
    assert beat('active').level == DiagnosticStatus.OK
    silent = source.monitor.snapshot().nodes['policy_node']
    assert silent.silent_s is not None
    assert silent.silent_s < 0.3
    spin_until(lambda: source.levels()['nodes'].level == DiagnosticStatus.ERROR)
    assert 'policy_node' in source.levels()['nodes'].message
    assert beat('active').level == DiagnosticStatus.OK  # it came back
