"""Disturbances of a MuJoCo scene: late frames, a shaking camera, changing light, a distractor.

None of them touches the physics: they change what the renderer is shown, after the fact.
"""

import contextlib
import copy
import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from vla_cache_sim.conditions import CameraShake, Condition, Distractor, Lighting
from vla_cache_sim.renderer import Renderer
from vla_cache_sim.scene import Scene

SHAKING_CAMERA = 'agentview'
"""The wrist camera is screwed to the hand."""

_SHAKE_STREAM, _LIGHT_STREAM, _DISTRACTOR_STREAM = 11, 12, 13
_SKIN_RGBA = (0.80, 0.58, 0.45, 1.0)
# The distractor's path, metres: from the shoulder forwards, to one side, above the ground.
_PATH_FORWARD_M, _PATH_SIDE_M, _PATH_UP_M = (0.35, 0.10), (0.42, 0.20), (0.12, 0.04)


class SceneDisturbance:
    """What disturbs one episode's scene; made when the episode begins, at rest."""

    def __init__(
        self, condition: Condition, key: Sequence[int], scene: Scene, control_step_s: float
    ) -> None:
        """Take note of the initial scene.

        Args:
            condition: What disturbs.
            key: Seeds all that is random, see `conditions.episode_key`.
            scene: The scene at the episode's start.
            control_step_s: Duration of a control step, seconds.
        """
        self._scene = scene
        self._control_step_s = control_step_s
        self._past = _Past(scene, condition.delay_s) if condition.delay_s > 0 else None
        self._shake = condition.shake and _Shake(condition.shake, key, control_step_s)
        self._light = condition.lighting and _Light(condition.lighting, key)
        self._distractor = condition.distractor and _Passer(condition.distractor, key, scene)

    def after_substep(self) -> None:
        """Take note of a physics step; to be called where the kinematics are up to date."""
        if self._past is not None:
            self._past.record()

    def render(
        self, renderer: Renderer, camera: str, camera_index: int, size_px: int, step: int
    ) -> np.ndarray:
        """Render what the camera is to see.

        Args:
            renderer: Of the scene.
            camera: Its name.
            camera_index: Its index in the model.
            size_px: Side of the image.
            step: Control steps since the episode's start.

        Returns:
            uint8 [H, W, 3].
        """
        data = self._scene.data if self._past is None else self._past.data()
        time_s = step * self._control_step_s

        def edit(drawn: Any) -> None:
            if self._light is not None:
                _scale_lights(drawn, self._light.gain(time_s))
            if self._distractor is not None:
                self._distractor.draw(drawn, time_s)

        shaken = contextlib.nullcontext()
        if self._shake is not None and camera == SHAKING_CAMERA:
            shaken = self._shake.applied(data, camera_index, step)
        with shaken:
            return renderer.render(camera_index, size_px, data, edit)


class _Past:
    """The scene as it was some physics steps ago; before the episode: the initial scene."""

    def __init__(self, scene: Scene, delay_s: float) -> None:
        import mujoco

        self._scene = scene
        self._substeps = round(delay_s / scene.model.opt.timestep)
        self._positions: deque[np.ndarray] = deque(maxlen=self._substeps + 1)
        self._initial = copy.copy(scene.data)
        self._shown = mujoco.MjData(scene.model)

    def record(self) -> None:
        self._positions.append(self._scene.data.qpos.copy())

    def data(self) -> Any:
        """What is shown now."""
        import mujoco

        if len(self._positions) <= self._substeps:
            return self._initial
        self._shown.qpos[:] = self._positions[0]
        mujoco.mj_kinematics(self._scene.model, self._shown)
        mujoco.mj_comPos(self._scene.model, self._shown)  # cameras may follow a centre of mass
        mujoco.mj_camlight(self._scene.model, self._shown)
        return self._shown


class _Shake:
    """x_0 ~ N(0, sigma), x_k+1 = a x_k + sqrt(1 - a^2) N(0, sigma), a = exp(-step / time)."""

    def __init__(self, shake: CameraShake, key: Sequence[int], control_step_s: float) -> None:
        self._rng = np.random.default_rng((*key, _SHAKE_STREAM))
        self._sigma = np.repeat([shake.position_m, shake.rotation_rad], 3)
        self._kept = math.exp(-control_step_s / shake.time_s)
        self._path = [self._sigma * self._rng.standard_normal(6)]

    def offset(self, step: int) -> np.ndarray:
        """Translation, metres, and rotation vector, radians, in the camera's axes, [6]."""
        fresh = math.sqrt(1 - self._kept**2)
        while len(self._path) <= step:
            drawn = self._sigma * self._rng.standard_normal(6)
            self._path.append(self._kept * self._path[-1] + fresh * drawn)
        return self._path[step]

    @contextlib.contextmanager
    def applied(self, data: Any, camera: int, step: int) -> Iterator[None]:
        """Displace a camera of a state for as long as the context lasts."""
        offset = self.offset(step)
        position, matrix = data.cam_xpos[camera].copy(), data.cam_xmat[camera].copy()
        axes = matrix.reshape(3, 3)
        data.cam_xpos[camera] = position + axes @ offset[:3]
        data.cam_xmat[camera] = (axes @ Rotation.from_rotvec(offset[3:]).as_matrix()).ravel()
        try:
            yield
        finally:
            data.cam_xpos[camera], data.cam_xmat[camera] = position, matrix


class _Light:
    """The equation of `conditions.Lighting`."""

    def __init__(self, lighting: Lighting, key: Sequence[int]) -> None:
        self._lighting = lighting
        self._rng = np.random.default_rng((*key, _LIGHT_STREAM))
        self._phase = self._rng.uniform(0, 2 * math.pi)
        self._switches: list[tuple[float, np.ndarray]] = [(0.0, np.ones(3))]

    def gain(self, time_s: float) -> np.ndarray:
        """Factor per channel, [3]."""
        while self._switches[-1][0] <= time_s:
            self._switches.append(self._draw_switch())
        steady = next(gain for start, gain in reversed(self._switches) if start <= time_s)
        turn = 2 * math.pi * time_s / self._lighting.drift_period_s
        return steady * (1 + self._lighting.drift * math.sin(turn + self._phase))

    def _draw_switch(self) -> tuple[float, np.ndarray]:
        interval = self._lighting.interval_s
        start = interval * (len(self._switches) + self._rng.uniform(-0.25, 0.25))
        low, high = np.log(self._lighting.levels)
        colour = self._lighting.colour * self._rng.standard_normal(3)
        return start, np.exp(self._rng.uniform(low, high) + colour)


class _Passer:
    """A capsule on a closed smooth path beside the workspace, on a side drawn at random."""

    def __init__(self, distractor: Distractor, key: Sequence[int], scene: Scene) -> None:
        rng = np.random.default_rng((*key, _DISTRACTOR_STREAM))
        self._distractor = distractor
        self._phases = rng.uniform(0, 2 * math.pi, 3)
        self._side = rng.choice([-1.0, 1.0])
        self._origin = scene.shoulder_position_m()
        self._origin[2] = min(scene.pose(name).position_m[2] for name in scene.objects)

    def position_m(self, time_s: float) -> np.ndarray:
        """Its centre in the world, metres, [3]."""
        # Three periods that do not divide one another: no two sweeps are alike.
        periods = self._distractor.period_s * np.array([1.31, 1.0, 0.73])
        sway = np.sin(2 * math.pi * time_s / periods + self._phases)
        middle, amplitude = np.transpose([_PATH_FORWARD_M, _PATH_SIDE_M, _PATH_UP_M])
        return self._origin + (middle + amplitude * sway) * [1, self._side, 1]

    def draw(self, drawn: Any, time_s: float) -> None:
        """Add it to a renderer's scene."""
        import mujoco

        geom = drawn.geoms[drawn.ngeom]
        size = [
            self._distractor.radius_m,
            self._distractor.radius_m,
            self._distractor.half_length_m,
        ]
        lying = Rotation.from_euler('x', 90, degrees=True).as_matrix().ravel()
        mujoco.mjv_initGeom(
            geom,
            mujoco.mjtGeom.mjGEOM_CAPSULE,
            np.array(size),
            self.position_m(time_s),
            lying,
            np.array(_SKIN_RGBA, dtype=np.float32),
        )
        geom.category = mujoco.mjtCatBit.mjCAT_DYNAMIC
        drawn.ngeom += 1


def _scale_lights(drawn: Any, gain: np.ndarray) -> None:
    for light in drawn.lights[: drawn.nlight]:
        for part in (light.ambient, light.diffuse, light.specular):
            part[:] = part * gain
