"""The package's own weights behind each protocol."""

import json_numpy
import numpy as np
import pytest
import requests
from serving_fakes import image, openpi_observation, openvla_observation, state

from vla_cache_models.policy import load_model, make_policy
from vla_cache_ros.core.types import Observation, Proprioception
from vla_cache_ros.resources import resource_folder
from vla_cache_ros.serving.observations import to_quaternion

STEPS = 4
WORDS = 'pick up the alphabet soup and place it in the basket'


@pytest.fixture(scope='module')
def make_small():
    model = load_model(resource_folder('weights'))
    return lambda: make_policy(model, 'safe', auto_off=False)


def moving(seed):
    """Half of the picture stands still."""
    picture = image(0, 128)
    picture[:, :64] = image(seed + 1, 128)[:, :64]
    return picture


def local_chunks(make_small, first=0):
    """What the policy gives without a network."""
    policy = make_small()
    numbers = state()
    arm = Proprioception(
        numbers[:3].astype(np.float32),
        to_quaternion(numbers[3:6]),
        numbers[6:].astype(np.float32),
    )
    return [
        policy.act(Observation({'agentview': moving(n), 'wrist': moving(n)[::-1]}, arm, WORDS))
        for n in range(first, first + STEPS)
    ]


def ask(client, n):
    observation = openpi_observation(prompt=WORDS)
    observation['observation/image'] = moving(n)
    observation['observation/wrist_image'] = moving(n)[::-1]
    return client.infer(observation)


def test_openpis_chunks_are_the_policys_own_bit_for_bit(serve, openpi_client, make_small):
    client = openpi_client('127.0.0.1', serve('openpi', make_small).port)
    for n, chunk in enumerate(local_chunks(make_small)):
        answer = ask(client, n)
        np.testing.assert_array_equal(answer['actions'], chunk.actions)
        assert answer['vla_cache']['mode'] == chunk.report.mode
        reuse = 1 - chunk.report.plan.vision_recompute_ratio
        assert answer['vla_cache']['vision_reuse_ratio'] == reuse
    assert reuse > 0.1


def test_robots_that_take_turns_get_what_each_would_get_alone(serve, openpi_client, make_small):
    server = serve('openpi', make_small)
    clients = [openpi_client('127.0.0.1', server.port) for _ in range(2)]
    alone = [local_chunks(make_small, first) for first in (0, 20)]
    for n in range(STEPS):
        for client, first, chunks in zip(clients, (0, 20), alone, strict=True):
            np.testing.assert_array_equal(ask(client, first + n)['actions'], chunks[n].actions)
    assert not np.array_equal(alone[0][1].actions, alone[1][1].actions)


def test_rest_chunks_are_the_policys_own_with_the_datas_gripper(serve, make_small):
    server = serve('openvla-rest', make_small)
    for n, chunk in enumerate(local_chunks(make_small)):
        observation = openvla_observation(words=WORDS)
        del observation['image']
        observation['full_image'] = moving(n)
        observation['wrist_image'] = moving(n)[::-1]
        body = json_numpy.dumps(observation)
        answer = requests.post(f'{server.http}/act', data=body, timeout=20)
        actions = np.stack(json_numpy.loads(answer.text))
        np.testing.assert_array_equal(actions[:, :6], chunk.actions[:, :6])
        np.testing.assert_allclose(1 - 2 * actions[:, 6], chunk.actions[:, 6], atol=1e-6)
