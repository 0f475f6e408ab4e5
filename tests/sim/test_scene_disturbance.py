import mujoco
import numpy as np
import pytest

from vla_cache_ros.core.errors import UnknownNameError
from vla_cache_sim.conditions import CONDITIONS, CameraShake, Lighting
from vla_cache_sim.libero import LiberoEnv
from vla_cache_sim.scene_disturbance import SceneDisturbance, _Light, _Shake

pytestmark = pytest.mark.sim

SCENE_CONDITIONS = ('camera_shake', 'lighting', 'distractor', 'delay_100ms')
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (40, 7)) - [0, 0, 0.3, 0, 0, 0, 0]

Film = list[dict[str, np.ndarray]]


def play(env: LiberoEnv, condition: str | None, steps: int = 4, every: int = 1, seed=0) -> Film:
    """Observations of an episode with fixed actions, the first and every so many steps."""
    options: dict[str, object] = {'task': 0, 'init_state': 4}
    if condition is not None:
        options['condition'] = condition
    observation, _ = env.reset(seed=seed, options=options)
    film = [observation]
    for step in range(1, steps + 1):
        env.advance(ACTIONS[step])
        if step % every == 0:
            film.append(env.observe())
    return film


def disturbance_of(env: LiberoEnv) -> SceneDisturbance:
    assert env._scene_disturbance is not None
    return env._scene_disturbance


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray], *names: str) -> bool:
    return all(np.array_equal(first[name], second[name]) for name in names or first)


@pytest.fixture(scope='module')
def undisturbed(object_env: LiberoEnv) -> Film:
    return play(object_env, None)


def test_the_info_says_which_condition_and_none_is_the_default(object_env: LiberoEnv):
    _, info = object_env.reset(seed=0, options={'init_state': 0, 'condition': 'noise'})
    assert info['condition'] == 'noise'
    assert object_env.advance(ACTIONS[0])[3]['condition'] == 'noise'
    _, info = object_env.reset(seed=0, options={'init_state': 0})
    assert info['condition'] == 'none'


def test_an_unknown_condition_is_refused_by_name(object_env: LiberoEnv):
    with pytest.raises(UnknownNameError, match="condition 'fog'; valid: none, camera_shake"):
        object_env.reset(seed=0, options={'init_state': 0, 'condition': 'fog'})


@pytest.mark.parametrize('condition', SCENE_CONDITIONS)
def test_a_disturbance_changes_images_alone(
    object_env: LiberoEnv, undisturbed: Film, condition: str
):
    film = play(object_env, condition)
    state = [name for name in film[0] if name not in object_env.cameras]
    assert all(same(one, other, *state) for one, other in zip(film, undisturbed, strict=True))
    assert not same(film[-1], undisturbed[-1], 'agentview')
    physics = object_env.scene.data.qpos.copy()
    play(object_env, None, every=4)
    assert np.array_equal(physics, object_env.scene.data.qpos)


def test_after_a_disturbed_episode_images_are_bit_for_bit_what_they_were(
    object_env: LiberoEnv, undisturbed: Film
):
    for condition in SCENE_CONDITIONS:
        play(object_env, condition, steps=1)
    after = play(object_env, None)
    assert all(same(one, other) for one, other in zip(after, undisturbed, strict=True))


@pytest.mark.parametrize('condition', ['camera_shake', 'noise', 'distractor'])
def test_an_episode_repeats_whatever_was_looked_at_and_another_seed_differs(
    object_env: LiberoEnv, condition: str
):
    first = play(object_env, condition, steps=2)[-1]
    assert same(first, play(object_env, condition, steps=2, every=2)[-1])
    assert not same(first, play(object_env, condition, steps=2, every=2, seed=1)[-1], 'agentview')


# Delay


@pytest.mark.parametrize(('condition', 'steps'), [('delay_50ms', 1), ('delay_100ms', 2)])
def test_a_delayed_image_is_the_one_of_before_bit_for_bit(
    object_env: LiberoEnv, undisturbed: Film, condition: str, steps: int
):
    late = play(object_env, condition)
    for step, observation in enumerate(late):
        assert same(observation, undisturbed[max(0, step - steps)], *object_env.cameras)
        assert same(observation, undisturbed[step], 'ee_position_m', 'joint_position_rad')


def test_a_delay_is_resolved_within_the_control_step(object_env: LiberoEnv, undisturbed: Film):
    late = play(object_env, 'delay_10ms')
    past = disturbance_of(object_env)._past
    assert past is not None
    assert past._substeps == 5
    now, before = undisturbed[-1]['wrist'].astype(int), undisturbed[-2]['wrist'].astype(int)
    shown = late[-1]['wrist'].astype(int)
    assert 0 < np.abs(shown - now).mean() < np.abs(before - now).mean()


# Shake


def test_the_shaken_camera_is_the_outer_one_and_its_pose_is_given_back(
    object_env: LiberoEnv, undisturbed: Film
):
    film = play(object_env, 'camera_shake')
    for one, other in zip(film, undisturbed, strict=True):
        assert same(one, other, 'wrist')
        assert not same(one, other, 'agentview')
    index = object_env._domain.sim.model.camera_name2id('agentview')
    pose = object_env.scene.data.cam_xpos[index].copy()
    object_env.observe()
    assert np.array_equal(object_env.scene.data.cam_xpos[index], pose)


def test_nothing_in_the_shaken_view_is_left_out(
    object_env: LiberoEnv, monkeypatch: pytest.MonkeyPatch
):
    film = play(object_env, 'camera_shake')
    everything = np.zeros(object_env.scene.model.ngeom, dtype=bool)
    monkeypatch.setattr(object_env._renderer, '_outside', lambda camera, data: everything)
    assert same(object_env.observe(), film[-1])


def test_the_shake_has_the_documented_size_and_memory():
    shake = _Shake(CameraShake(0.002, 0.0035, 0.2), (0,), 0.05)
    path = np.array([shake.offset(step) for step in range(20_000)])
    assert path.std(axis=0) == pytest.approx([0.002] * 3 + [0.0035] * 3, rel=0.06)
    lag = int(0.2 / 0.05)
    kept = [np.corrcoef(column[lag:], column[:-lag])[0, 1] for column in path.T]
    assert kept == pytest.approx([np.exp(-1)] * 6, abs=0.05)


# Light


def test_light_is_untouched_until_the_first_switch_and_then_within_its_range():
    lighting = Lighting((0.5, 1.4), 0.0, 2.0, 0.1, 6.0)
    light = _Light(lighting, (0,))
    times = np.arange(0, 40, 0.05)
    gains = np.array([light.gain(time) for time in times])
    assert np.abs(gains[times < 1.5] - 1).max() <= 0.1 + 1e-9
    assert gains.min() >= 0.5 * 0.9
    assert gains.max() <= 1.4 * 1.1
    steps = np.abs(np.diff(np.log(gains[:, 0])))
    assert np.sort(steps)[-10] > 0.02  # switches
    assert np.median(steps) < 0.01  # and slow drift between them
    assert np.array_equal(_Light(lighting, (0,)).gain(7.0), light.gain(7.0))


def test_light_scales_the_image(object_env: LiberoEnv):
    play(object_env, 'lighting', steps=0)
    bright = object_env.render_camera('agentview').astype(float)
    light = disturbance_of(object_env)._light
    assert light is not None
    light.gain = lambda time_s: np.array([0.6, 0.3, 0.3])
    dark = object_env.render_camera('agentview').astype(float)
    red, green = (dark[..., c].mean() / bright[..., c].mean() for c in (0, 1))
    assert red == pytest.approx(0.6, abs=0.1)
    assert green == pytest.approx(0.3, abs=0.1)


# Distractor


def test_the_distractor_is_occluded_by_what_stands_before_it(object_env: LiberoEnv):
    play(object_env, 'distractor')
    play(object_env, 'distractor', steps=0)
    passer = disturbance_of(object_env)._distractor
    assert passer is not None
    scene = object_env.scene
    camera = scene.data.cam_xpos[object_env._domain.sim.model.camera_name2id('agentview')]
    basket = scene.goal_position_m() + [0, 0, 0.04]
    images = []
    for share in (0.0, 0.8, 1.3):  # not in view, before the basket, and behind it
        passer.position_m = lambda time_s, at=camera + share * (basket - camera): at
        images.append(object_env.render_camera('agentview'))
    nothing, before, behind = images
    assert (before != nothing).sum() > 4 * (behind != nothing).sum()


def test_the_distractor_moves_smoothly_beside_the_workspace(object_env: LiberoEnv):
    play(object_env, 'distractor', steps=0)
    passer = disturbance_of(object_env)._distractor
    assert passer is not None
    path = np.array([passer.position_m(time) for time in np.arange(0, 20, 0.05)])
    speed = np.linalg.norm(np.diff(path, axis=0), axis=1) / 0.05
    assert 0.2 < speed.max() < 1.0
    assert np.abs(path[:, 1]).min() > 0.2
    contacts = object_env.scene.data.ncon
    mujoco.mj_forward(object_env.scene.model, object_env.scene.data)
    assert object_env.scene.data.ncon == contacts


def test_every_condition_can_be_had(object_env: LiberoEnv):
    for name in CONDITIONS:
        observation, info = object_env.reset(seed=0, options={'init_state': 0, 'condition': name})
        assert object_env.observation_space.contains(observation)
        assert info['condition'] == name
