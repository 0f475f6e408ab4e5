"""Starts for training: the arm and the objects somewhere near, never exactly at, official places.

LIBERO's own reset varies by a centimetre or two, and the official initial states are fifty fixed
draws of it. A policy trained on those alone never sees a displaced hand or object, so it never
learns to correct. Here every start differs in the arm's pose by several centimetres and some
yaw, and every object stands a few centimetres beyond its official region.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.transform import Rotation

from vla_cache_ros.core.errors import ConfigError, SimulatorError

if TYPE_CHECKING:
    from vla_cache_sim.libero import LiberoEnv
    from vla_cache_sim.scene import Pose, Scene

ARM_LOW_M = np.array([-0.07, -0.09, -0.06])
ARM_HIGH_M = np.array([0.07, 0.09, 0.07])
"""Displacement of the grip site from its home position, world axes."""
ARM_YAW_RAD = 0.4
ARM_TILT_RAD = 0.05
OBJECT_SHIFT_M = 0.04
"""Displacement of an object (with what stands on it) on the ground, in x and in y."""
OBJECT_YAW_RAD = 0.3
FIXED_SHIFT_M = 0.012
"""The same for an object that stands in or on furniture, where the place is the task."""

MAX_SPREAD = 2.0
_ATTEMPTS = 40
_DRAWS_PER_ATTEMPT = 40
_SETTLING_STEPS = 40
_REST_SPEED = 0.05
"""Largest joint velocity at rest, m/s or rad/s."""
_SETTLED_SHIFT_M = 0.015
_SETTLED_TURN_RAD = 0.15


def randomize_start(env: 'LiberoEnv', rng: np.random.Generator, spread: float = 1.0) -> None:
    """Put an environment into a random, physically valid state with everything at rest.

    Args:
        env: An environment whose simulator is built.
        rng: The only source of randomness.
        spread: Scale of every deviation; 0 leaves LIBERO's own reset.

    Raises:
        ConfigError: The spread is out of range.
        SimulatorError: No valid state was found.
    """
    import mujoco

    if not 0 <= spread <= MAX_SPREAD:
        raise ConfigError(f'spread must lie in 0..{MAX_SPREAD:g}, not {spread}')
    scene = env.scene
    for _ in range(_ATTEMPTS):
        env.rebuild_arrangement(seed=int(rng.integers(2**32)))
        _settle(env)
        groups = _groups(scene)
        settled = scene.data.qpos.copy()
        placed = False
        for _ in range(_DRAWS_PER_ATTEMPT):
            scene.data.qpos[:] = settled
            scene.data.qvel[:] = 0
            for names, on_furniture in groups:
                _shift(scene, names, on_furniture, rng, spread)
            _place_arm(scene, rng, spread)
            mujoco.mj_forward(scene.model, scene.data)
            if not _collides(scene, groups):
                placed = True
                break
        if not placed:
            continue
        before = {name: scene.pose(name) for name in scene.objects}
        env.hold_arm()
        env.wait()
        after = {name: scene.pose(name) for name in scene.objects}
        if not env.check_success() and all(_rests(before[n], after[n]) for n in scene.objects):
            return
    raise SimulatorError(
        f'no valid random start found in {_ATTEMPTS} attempts for {env.instruction!r}; '
        f'try a spread below {spread}'
    )


def _settle(env: 'LiberoEnv') -> None:
    """Wait until everything rests: a bowl put on a ramekin slides off and needs a second."""
    env.wait()
    for _ in range(_SETTLING_STEPS):
        if np.abs(env.scene.data.qvel).max() < _REST_SPEED:
            break
        env.wait(1)


def _groups(scene: 'Scene') -> list[tuple[list[str], bool]]:
    """Objects that touch each other move together; whether furniture carries them."""
    owners = scene.geom_owners()
    pairs = {
        frozenset((owners[a], owners[b]))
        for a, b in scene.data.contact.geom[: scene.data.ncon]
        if owners[a] and owners[b] and owners[a] != owners[b]
    }
    groups = [{name} for name in scene.objects]
    for pair in pairs:
        joined = [group for group in groups if group & pair]
        if len(joined) == 2:
            groups = [group for group in groups if group not in joined] + [joined[0] | joined[1]]
    fixtures = set(scene.fixtures)
    return [
        (sorted(group), any(pair & group and pair & fixtures for pair in pairs))
        for group in sorted(groups, key=min)
    ]


def _shift(
    scene: 'Scene',
    names: Sequence[str],
    on_furniture: bool,
    rng: np.random.Generator,
    spread: float,
) -> None:
    """Displace and turn a group of objects about the vertical through its lowest member."""
    limit = FIXED_SHIFT_M if on_furniture else OBJECT_SHIFT_M
    move = spread * rng.uniform(-limit, limit, 2)
    turn = Rotation.from_euler('z', spread * rng.uniform(-OBJECT_YAW_RAD, OBJECT_YAW_RAD))
    pivot = min((scene.pose(name).position_m for name in names), key=lambda p: p[2])
    for name in names:
        pose = scene.pose(name)
        position = pivot + turn.apply(pose.position_m - pivot)
        position[:2] += move
        x, y, z, w = (turn * Rotation.from_matrix(pose.rotation)).as_quat()
        scene.free_joint_qpos(name)[:] = (*position, w, x, y, z)


def _place_arm(scene: 'Scene', rng: np.random.Generator, spread: float) -> None:
    """Displace the gripper from its home pose by damped least squares on the arm's joints."""
    import mujoco

    scene.arm_qpos = scene.home_arm_qpos
    mujoco.mj_kinematics(scene.model, scene.data)
    home = scene.gripper_pose()
    position = home.position_m + spread * rng.uniform(ARM_LOW_M, ARM_HIGH_M)
    tilt = rng.uniform(-ARM_TILT_RAD, ARM_TILT_RAD, 2)
    yaw = rng.uniform(-ARM_YAW_RAD, ARM_YAW_RAD)
    rotation = Rotation.from_rotvec(spread * np.array([*tilt, yaw]))
    goal = (rotation * Rotation.from_matrix(home.rotation)).as_matrix()
    scene.solve_arm(position, goal)


def _collides(scene: 'Scene', groups: list[tuple[list[str], bool]]) -> bool:
    """Whether the robot touches anything or two groups touch each other."""
    owners = scene.geom_owners()
    group_of = {name: index for index, (names, _) in enumerate(groups) for name in names}
    robot = scene.robot_geoms
    for a, b in scene.data.contact.geom[: scene.data.ncon]:
        if robot[a] != robot[b]:
            return True
        first, second = group_of.get(owners[a]), group_of.get(owners[b])
        if first is not None and second is not None and first != second:
            return True
    return False


def _rests(before: 'Pose', after: 'Pose') -> bool:
    """Whether an object stayed where it was put."""
    shift = float(np.linalg.norm(after.position_m - before.position_m))
    turn = Rotation.from_matrix(after.rotation @ before.rotation.T).magnitude()
    return shift < _SETTLED_SHIFT_M and turn < _SETTLED_TURN_RAD
