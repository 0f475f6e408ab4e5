import io

from rich.console import Console

from vla_cache_ros.cli.live import ArmStatus, LiveTable

STATUS = ArmStatus(
    episode=3,
    step=7,
    mode='cached',
    reused={'agentview': (128, 256), 'wrist': (0, 256)},
    stage_ms={'vision': 12.5, 'decoder': 20.0},
    refresh_hz=9.5,
    command_hz=38.1,
)


def show(**options) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=100, **options)
    with LiveTable('pick up the cube', ('dense', 'cached'), console) as live:
        live.update('cached', STATUS)
        live.finish_episode('cached', 'success')
        live.finish_episode('dense', 'simulator_error')
    return stream.getvalue()


def test_plain_lines_without_a_terminal():
    text = show(force_terminal=False)
    assert '\x1b' not in text
    assert text.splitlines()[0] == 'pick up the cube'
    line = text.splitlines()[1]
    for part in ('agentview 128/256', 'decoder 20.0', 'total 32.5', '9.5 Hz', '38.1 Hz', '1/1'):
        assert part in line
    assert 'success 0/0' in text.splitlines()[2]  # a simulator's failure is not the policy's


def test_table_on_a_terminal():
    text = show(force_terminal=True)
    for part in ('reused, agentview', '128/256', 'policy refresh, Hz', 'commands, Hz', '1/1'):
        assert part in text
