import mujoco
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_cache_ros.core.errors import UnknownNameError
from vla_cache_sim.libero import LiberoEnv
from vla_cache_sim.scene import CAMERAS

pytestmark = pytest.mark.sim


def segmentation(env: LiberoEnv, camera: str, name: str, size_px: int) -> np.ndarray:
    """Pixels at which MuJoCo's own segmentation shows an object, upright."""
    scene = env.scene
    renderer = mujoco.Renderer(scene.model, size_px, size_px)
    renderer.enable_segmentation_rendering()
    options = mujoco.MjvOption()
    options.geomgroup[0] = 0
    index = env._domain.sim.model.camera_name2id(CAMERAS[camera])
    renderer.update_scene(scene.data, index, options)
    geoms = renderer.render()[..., 0]
    renderer.close()
    return np.isin(geoms, scene._geoms_below(scene.domain.obj_body_id[name]))


@pytest.mark.parametrize('camera', ['agentview', 'wrist'])
@pytest.mark.parametrize('fixture', ['object_env', 'spatial_env'])
def test_masks_agree_with_rendered_segmentation(
    request: pytest.FixtureRequest, fixture: str, camera: str
):
    env: LiberoEnv = request.getfixturevalue(fixture)
    env.start(seed=0, options={'init_state': 4})
    scene, grid = env.scene, (16, 16)
    masks = scene.relevance_masks(camera, *grid)
    for name, mask in ((scene.target, masks.target), (scene.goal_object, masks.goal)):
        pixels = segmentation(env, camera, name, 128).reshape(16, 8, 16, 8).sum(axis=(1, 3))
        # Occlusion is ignored, so the mask may hold more; it may miss no more than a pixel's edge.
        assert not ((pixels > 4) & ~mask).any()
        assert mask.sum() <= 1.6 * max((pixels > 0).sum(), 4) or camera == 'wrist'
    assert masks.gripper.any()
    assert masks.target.dtype == bool
    assert masks.target.shape == grid


def test_the_grid_need_not_be_square(object_env: LiberoEnv):
    object_env.start(seed=0, options={'task': 0, 'init_state': 0})
    coarse = object_env.scene.target_mask('agentview', (8, 16))
    fine = object_env.scene.target_mask('agentview', (16, 16))
    assert coarse.shape == (8, 16)
    assert not (fine.reshape(8, 2, 16).any(axis=1) & ~coarse).any()


def test_an_unknown_camera_has_no_mask(object_env: LiberoEnv):
    object_env.start(seed=0, options={'task': 0, 'init_state': 0})
    with pytest.raises(UnknownNameError, match='valid: agentview'):
        object_env.scene.relevance_masks('rear', 16, 16)


def test_target_and_goal_are_those_of_the_instruction(
    object_env: LiberoEnv, spatial_env: LiberoEnv
):
    object_env.start(seed=0, options={'task': 0, 'init_state': 0})
    assert object_env.scene.target == 'alphabet_soup_1'
    assert object_env.scene.goal_object == 'basket_1'
    spatial_env.start(seed=0, options={'init_state': 0})
    assert spatial_env.scene.target == 'akita_black_bowl_1'
    assert spatial_env.scene.goal_object == 'plate_1'
    assert spatial_env.scene.fixtures == ('wooden_cabinet_1', 'flat_stove_1')


def test_points_enclose_the_object(object_env: LiberoEnv):
    object_env.start(seed=0, options={'task': 0, 'init_state': 0})
    points = object_env.scene.points_m('alphabet_soup_1')
    extent = np.ptp(points, axis=0)
    assert extent == pytest.approx([0.063, 0.063, 0.076], abs=0.004)
    assert points[:, 2].min() == pytest.approx(0.0, abs=0.002)


@given(
    offset=st.tuples(*[st.floats(-0.08, 0.08)] * 3),
    yaw=st.floats(-0.5, 0.5),
)
def test_the_arm_reaches_any_pose_near_home(
    object_env: LiberoEnv, offset: tuple[float, float, float], yaw: float
):
    if object_env._scene is None:
        object_env.start(seed=0, options={'task': 0, 'init_state': 0})
    scene = object_env.scene
    scene.arm_qpos = scene.home_arm_qpos
    mujoco.mj_kinematics(scene.model, scene.data)
    home = scene.gripper_pose()
    goal = home.position_m + offset
    rotation = Rotation.from_euler('z', yaw).as_matrix() @ home.rotation
    scene.solve_arm(goal, rotation)
    reached = scene.gripper_pose()
    assert reached.position_m == pytest.approx(goal, abs=1e-3)
    assert reached.rotation == pytest.approx(rotation, abs=5e-3)
