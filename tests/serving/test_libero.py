"""Whole episodes of LIBERO, driven by other people's clients."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vla_cache_models.policy import load_model, make_policy
from vla_cache_ros.resources import resource_folder

REPLAN_STEPS = 5
STEP_LIMIT = 200


@pytest.mark.sim
@pytest.mark.slow
def test_openpis_client_solves_a_task_as_its_libero_example_drives_it(serve, openpi_client):
    from vla_cache_sim.libero import make_env

    model = load_model(resource_folder('weights'))
    server = serve('openpi', lambda: make_policy(model, 'safe'), images='mirrored')
    client = openpi_client('127.0.0.1', server.port)
    env = make_env('libero_object', 0, image_size_px=128)
    try:
        observed, info = env.reset(seed=7, options={'task': 0, 'init_state': 0})
        modes, success, steps = [], False, 0
        while not success and steps < STEP_LIMIT:
            answer = client.infer(published_observation(observed, info['instruction']))
            modes.append(answer['vla_cache']['mode'])
            for action in answer['actions'][:REPLAN_STEPS]:
                _, success, _, info = env.advance(action)
                steps += 1
                if success:
                    break
            observed = env.observe()
    finally:
        env.close()
    assert success
    assert modes[0] == 'keyframe'
    assert 'cached' in modes


def published_observation(observed, words):
    """As openpi's example sends it: OpenGL's rows rotated by 180 degrees, rotation as vector."""
    return {
        'observation/image': np.ascontiguousarray(observed['agentview'][:, ::-1]),
        'observation/wrist_image': np.ascontiguousarray(observed['wrist'][:, ::-1]),
        'observation/state': np.concatenate(
            (
                observed['ee_position_m'],
                Rotation.from_quat(observed['ee_quaternion_xyzw']).as_rotvec(),
                observed['gripper_position_m'],
            )
        ),
        'prompt': words,
    }
