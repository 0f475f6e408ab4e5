"""`vla-cache replay`: the policy over a recording of one's own robot, action by action.

Against the recorded chunks it is a regression test: with the weights, preset, machine and backend
of the recorded run the actions are equal bit for bit. Against another preset it tells what reuse
changes on that robot.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from vla_cache_ros.cli.checkpoints import CheckpointPolicies, PolicyOptions
from vla_cache_ros.cli.progress import Progress
from vla_cache_ros.cli.replay_inputs import InputOptions, Observations, Survey, survey
from vla_cache_ros.cli.replay_steps import (
    ReplayResult,
    against_policy,
    against_recording,
    summarise,
)
from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.core.gripper import GripperMap
from vla_cache_ros.core.protocols import Policy
from vla_cache_ros.recording.reader import Recording

RECORDED = 'recording'
DIFFERS = 1


@dataclass(frozen=True)
class ReplayConfig(PolicyOptions):
    """Run the policy over a recording and compare actions."""

    recording: Positional[Path] = Path()
    """An MCAP file of the recorder or of rosbag2, or a folder of them."""
    cache: str = 'safe'
    """Reuse preset to run: off, safe, paper, .."""
    against: str = RECORDED
    """What to compare with: recording, the recorded chunks; or a reuse preset, e.g. off."""
    tolerance: float | None = None
    """Greatest difference of a delta, in the action's own units, that passes; default: 0 against
    the recording, no verdict against a preset. A gripper command of another sign never passes."""
    steps: int | None = None
    """Steps to compare, the first ones; default: all."""
    namespace: str = ''
    """Namespace of the recorded graph, where the recording holds several."""
    cameras: str = ''
    """Image topics of the policy's cameras where they are called otherwise:
    agentview=/front/image_raw,wrist=/hand/image_raw/compressed."""
    instruction: str = ''
    """The task, instead of the recorded one."""
    gripper_joints: str = 'panda_finger_joint1,panda_finger_joint2'
    """The gripper's joints in the joint states, one or two; this and what follows as the policy
    node had it."""
    gripper_open: str = '0.04,-0.04'
    """Position of each when open."""
    gripper_closed: str = '0,0'
    """Position of each when closed."""
    joint_states: str = 'joint_states'
    """Topics of the joint states, comma-separated."""
    pairing_tolerance_s: float = 0.01
    """Greatest difference between the stamps of one observation."""
    out: Path = Path('runs', 'replay')
    """Folder for replay.json and its chart."""
    json: bool = False
    """Print replay.json on stdout, nothing else."""


def run_replay(config: ReplayConfig, make_policy: Callable[[str], Policy] | None = None) -> int:
    """Replay, print a table and write JSON and PNG.

    Args:
        config: What to replay.
        make_policy: Builds the policy of a preset; default: from the checkpoint.

    Returns:
        0: every step is within the tolerance, or none was asked for; 1: one is beyond it.

    Raises:
        RecordingError: The recording cannot be read, or lacks what the policy needs.
        ConfigError: Options contradict one another.
    """
    options, tolerance = _input_options(config), _tolerance(config)
    recording = Recording(config.recording)
    about = survey(recording, options)
    if make_policy is None:
        make_policy = _policies(config)
    policy = make_policy(config.cache)
    observations = Observations(recording, about, policy.camera_names, options)
    with Progress('steps', _total(about, config.steps)) as progress:
        if config.against == RECORDED:
            result = against_recording(policy, observations, about, progress.advance, config.steps)
        else:
            other = make_policy(config.against)
            result = against_policy(
                policy, other, observations, about, progress.advance, config.steps
            )
    summary = {
        'what': 'replay',
        'recording': [str(path) for path in recording.paths],
        'cache': config.cache,
        'against': config.against,
        **summarise(result, tolerance),
        'losses': [str(loss) for loss in recording.losses],
    }
    _write(config.out, summary, result)
    _show(config, summary)
    return DIFFERS if summary['beyond_tolerance'] else 0


def _input_options(config: ReplayConfig) -> InputOptions:
    if not 0 <= config.pairing_tolerance_s <= 1:
        raise ConfigError(f'--pairing-tolerance-s is {config.pairing_tolerance_s}; valid: 0 to 1.')
    if config.steps is not None and config.steps < 1:
        raise ConfigError(f'--steps is {config.steps}; valid: at least 1.')
    return InputOptions(
        config.namespace,
        _parse_cameras(config.cameras),
        config.instruction.strip(),
        GripperMap(
            _words(config.gripper_joints),
            _numbers('--gripper-open', config.gripper_open),
            _numbers('--gripper-closed', config.gripper_closed),
        ),
        _words(config.joint_states) or ('joint_states',),
        config.pairing_tolerance_s,
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (word.strip() for word in text.split(','))))


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in _words(text))
    except ValueError:
        raise ConfigError(
            f'{option} is {text!r}; valid: a number for each joint, comma-separated.'
        ) from None


def _tolerance(config: ReplayConfig) -> float | None:
    if config.tolerance is None:
        return 0.0 if config.against == RECORDED else None
    if not config.tolerance >= 0:
        raise ConfigError(f'--tolerance is {config.tolerance}; valid: at least 0.')
    return config.tolerance


def _parse_cameras(text: str) -> dict[str, str]:
    cameras: dict[str, str] = {}
    for item in _words(text):
        name, equals, topic = item.partition('=')
        if not (name and equals and topic):
            raise ConfigError(f'--cameras holds {item!r}; valid: NAME=TOPIC, comma-separated.')
        cameras[name] = topic
    return cameras


def _policies(config: ReplayConfig) -> Callable[[str], Policy]:
    """The checkpoint's; reuse must not judge by this machine's times, nor switch itself off."""
    return replace(CheckpointPolicies.chosen(config, config.cache), auto_off=False)


def _total(about: Survey, limit: int | None) -> int:
    """Steps that are to come, for the bar; 0 where that is not known before."""
    steps = len(about.acted)
    return min(steps, limit) if limit is not None else steps


def _write(folder: Path, summary: dict[str, Any], result: ReplayResult) -> None:
    from vla_cache_ros.cli.report.replay_chart import draw_divergence

    folder.mkdir(parents=True, exist_ok=True)
    rows = [asdict(row) for row in result.rows]
    text = json.dumps({**summary, 'rows': rows}, indent=1)
    (folder / 'replay.json').write_text(text + '\n', encoding='utf-8')
    draw_divergence(folder / 'replay.png', result.rows, summary['tolerance'])


def _show(config: ReplayConfig, summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    if config.json:
        console.print(json.dumps(summary, indent=1), markup=False, highlight=False)
        return
    what = 'recorded actions' if config.against == RECORDED else f'actions with {config.against}'
    table = Table('replay', f'{config.cache} against {what}')
    for name, value in _lines(summary):
        table.add_row(name, value)
    console.print(table)
    for line in (*summary['losses'], *summary['notes']):
        console.print(f'note: {line}', markup=False, highlight=False)
    console.print(f'{config.out / "replay.json"}, {config.out / "replay.png"}', markup=False)


def _lines(summary: dict[str, Any]) -> Sequence[tuple[str, str]]:
    def number(value: float | None) -> str:
        return '-' if value is None else f'{value:.3g}'

    tolerance = summary['tolerance']
    verdict = 'not asked for (--tolerance)'
    if tolerance is not None:
        beyond = summary['beyond_tolerance']
        verdict = f'{beyond} steps beyond {tolerance:g}' if beyond else f'all within {tolerance:g}'
    return (
        ('steps compared', str(summary['steps'])),
        ('equal bit for bit', str(summary['identical'])),
        ('greatest difference', number(summary['max_difference'])),
        ('mean difference', number(summary['mean_difference'])),
        ('gripper flips', str(summary['gripper_flips'])),
        ('not finite', str(summary['not_finite'])),
        ('modes', ', '.join(f'{count} {mode}' for mode, count in summary['modes'].items())),
        ('verdict', verdict),
    )
