import numpy as np
import pytest

from vla_cache_sim.libero import LiberoEnv

pytestmark = pytest.mark.sim

CAMERAS = ['agentview', 'wrist']


def render_everything(env: LiberoEnv, camera: str, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    nothing = np.zeros(env.scene.model.ngeom, dtype=bool)
    with monkeypatch.context() as patch:
        patch.setattr(env._renderer, '_outside', lambda camera, data: nothing)
        return env.render_camera(camera)


@pytest.mark.parametrize('camera', CAMERAS)
@pytest.mark.parametrize('fixture', ['object_env', 'spatial_env'])
def test_leaving_out_what_is_not_in_view_changes_no_pixel(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, fixture: str, camera: str
):
    env: LiberoEnv = request.getfixturevalue(fixture)
    rng = np.random.default_rng(0)
    culled = 0
    for init_state in (0, 1):
        env.start(seed=0, options={'init_state': init_state})
        for _ in range(2):
            for _ in range(8):
                env.advance(rng.uniform(-1, 1, 7))
            image = env.render_camera(camera)
            assert np.array_equal(image, render_everything(env, camera, monkeypatch))
            index = env._domain.sim.model.camera_name2id(
                {'agentview': 'agentview', 'wrist': 'robot0_eye_in_hand'}[camera]
            )
            culled += int(env._renderer._outside(index, env.scene.data).sum())
    assert culled > 0, 'nothing was ever left out: the test says nothing'


def test_images_are_upright(object_env: LiberoEnv):
    object_env.start(seed=0, options={'task': 0, 'init_state': 0})
    scene = object_env.scene
    low = scene.project('agentview', np.array([[0.0, 0.0, 0.0]]))[0][0]
    high = scene.project('agentview', np.array([[0.0, 0.0, 0.5]]))[0][0]
    assert high[1] < low[1]
    # The robot's bright base stands at the top of the picture, the floor is at the bottom.
    image = object_env.render_camera('agentview', 64).astype(float).mean(axis=2)
    assert image[:20].max() > image[44:].max()


def test_any_size_can_be_rendered(object_env: LiberoEnv):
    object_env.start(seed=0, options={'task': 0, 'init_state': 0})
    small = object_env.render_camera('agentview')
    assert object_env.render_camera('agentview', 700).shape == (700, 700, 3)
    assert np.array_equal(object_env.render_camera('agentview'), small)
