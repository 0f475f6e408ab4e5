"""Offscreen rendering of one MuJoCo model, safe beside other renderers of the same process."""

import atexit
import os
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from vla_cache_ros.core.errors import SimulatorError
from vla_cache_sim.libero_assets import RENDERER_PACKAGES

_COLLISION_GROUP, _VISUAL_GROUP, _CULLED_GROUP = 0, 1, 5
_BUFFER_PX = (640, 480)
_OPEN: 'weakref.WeakSet[Renderer]' = weakref.WeakSet()


class Renderer:
    """Renders fixed cameras of one model, upright.

    Rendering without a GPU costs what the triangles cost (some 300 000 in a LIBERO scene, whatever
    the image's size), so geoms outside a camera's view are left out. This does not change a
    pixel: LIBERO's lights cast no shadows, and what a mirror in view may show is drawn too.
    """

    def __init__(self, model: Any, data: Any) -> None:
        """Create the OpenGL context.

        Args:
            model: mjModel.
            data: mjData.

        Raises:
            SimulatorError: No OpenGL context can be created.
        """
        import mujoco

        self._model, self._data = model, data
        width, height = _BUFFER_PX
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        self._gl: Any = None
        self._gl = _create_gl_context(width, height)
        _close_all_at_exit()
        self._gl.make_current()
        self._context = self._create_buffers()
        self._scene = mujoco.MjvScene(model, maxgeom=1000 + model.ngeom)
        self._options = mujoco.MjvOption()
        self._options.geomgroup[_COLLISION_GROUP] = 0
        self._options.geomgroup[_VISUAL_GROUP] = 1
        self._options.geomgroup[_CULLED_GROUP] = 0
        self._perturbation = mujoco.MjvPerturb()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        material = model.geom_matid
        plane, box = mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_BOX
        shiny = (material >= 0) & (model.mat_reflectance[material] > 0)
        visible = model.geom_group == _VISUAL_GROUP
        self._mirrors = shiny & visible & np.isin(model.geom_type, (plane, box))
        self._mirror_height = np.where(model.geom_type == box, model.geom_size[:, 2], 0.0)
        self._always = model.geom_rbound <= 0  # planes are unbounded
        _OPEN.add(self)

    def render(
        self,
        camera: int,
        size_px: int,
        data: Any = None,
        edit: Callable[[Any], None] | None = None,
    ) -> np.ndarray:
        """Render a square image.

        Args:
            camera: Index of the camera in the model.
            size_px: Side of the image.
            data: mjData of another state of the model; None: the renderer's own.
            edit: Called with the mjvScene before it is drawn, to change lights or add geoms.

        Returns:
            uint8 [H, W, 3], RGB, first row on top.
        """
        import mujoco

        self._gl.make_current()  # another environment of this process may have rendered
        if size_px > self._context.offHeight:
            self._enlarge(size_px)
        self._camera.fixedcamid = camera
        data = self._data if data is None else data
        groups = self._model.geom_group.copy()
        self._model.geom_group[self._outside(camera, data)] = _CULLED_GROUP
        mujoco.mjv_updateScene(
            self._model,
            data,
            self._options,
            self._perturbation,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        self._model.geom_group[:] = groups
        if edit is not None:
            edit(self._scene)
        viewport = mujoco.MjrRect(0, 0, size_px, size_px)
        mujoco.mjr_render(viewport, self._scene, self._context)
        image = np.empty((size_px, size_px, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(image, None, viewport, self._context)
        return image[::-1].copy()  # OpenGL's rows run from the bottom up

    def close(self) -> None:
        """Free the buffers in their own OpenGL context, then the context; may be repeated.

        Also done when the renderer is collected and when Python ends: freed later, the buffers'
        names would be those of another context's buffers.
        """
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None

    def __del__(self) -> None:
        """Free the context of a renderer that was not closed."""
        self.close()

    def _outside(self, camera: int, data: Any) -> np.ndarray:
        """Geoms whose bounding box lies outside a camera's view, bool [geoms].

        The view is a pyramid of four planes through the camera with inward normals n. A box with
        centre c, axes a_i and half sizes h_i lies outside when for one of the planes

            n . (c - camera) + sum_i |n . a_i| h_i < 0
        """
        model = self._model
        half = np.deg2rad(model.cam_fovy[camera]) / 2
        cos, sin = np.cos(half), np.sin(half)
        # The camera looks along -z.
        planes = np.array([(cos, 0, -sin), (-cos, 0, -sin), (0, cos, -sin), (0, -cos, -sin)])
        normals = planes @ data.cam_xmat[camera].reshape(3, 3).T  # [4, 3]
        position = data.cam_xpos[camera]
        outside = self._outside_view(data, position, normals)
        for mirror in np.flatnonzero(self._mirrors & ~outside):
            # What a mirror shows is what the camera behind the mirror sees.
            normal = data.geom_xmat[mirror].reshape(3, 3)[:, 2]
            on_mirror = data.geom_xpos[mirror] + self._mirror_height[mirror] * normal
            behind = position - 2 * ((position - on_mirror) @ normal) * normal
            mirrored = normals - 2 * np.outer(normals @ normal, normal)
            outside &= self._outside_view(data, behind, mirrored)
        return outside

    def _outside_view(self, data: Any, position: np.ndarray, normals: np.ndarray) -> np.ndarray:
        """The test of `_outside` for one view: apex [3] and inward normals [4, 3]."""
        boxes = self._model.geom_aabb
        axes = data.geom_xmat.reshape(-1, 3, 3)  # [geoms, 3, 3], columns
        centre = data.geom_xpos + np.einsum('gij,gj->gi', axes, boxes[:, :3])
        reach = np.einsum('gpi,gi->gp', np.abs(normals @ axes), boxes[:, 3:])
        distance = (centre - position) @ normals.T
        return (distance + reach < 0).any(axis=1) & ~self._always

    def _create_buffers(self) -> Any:
        import mujoco

        context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_150)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
        return context

    def _enlarge(self, size_px: int) -> None:
        self._context.free()
        self._model.vis.global_.offwidth = self._model.vis.global_.offheight = size_px
        self._context = self._create_buffers()


def _create_gl_context(width: int, height: int) -> Any:
    """Create the context of the platform named by MUJOCO_GL, whatever was imported before."""
    platform = os.environ.get('MUJOCO_GL', 'egl').lower()
    try:
        if platform == 'osmesa':
            from mujoco.osmesa import GLContext
        else:
            from mujoco.egl import GLContext
        return GLContext(width, height)
    # PyOpenGL raises AttributeError and its own error types for a missing driver.
    except Exception as error:
        command = RENDERER_PACKAGES.get(platform, RENDERER_PACKAGES['egl'])
        raise SimulatorError(
            f'cannot create an OpenGL context (MUJOCO_GL={platform}): {error!r}; '
            f'install its driver with: {command}'
        ) from error


@cache
def _close_all_at_exit() -> None:
    """Close every renderer before the display goes, which registers its end at its creation."""
    atexit.register(lambda: [renderer.close() for renderer in tuple(_OPEN)])
