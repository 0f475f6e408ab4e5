"""The environments by their real ids, arguments and observations; physics is the identity."""

import gymnasium
import numpy as np
from gymnasium import spaces

LIMITS = np.array([1, 1, 1, np.pi / 2, np.pi / 2, np.pi / 2, 1], dtype=np.float32)
MADE = []


class Pose:
    """A sapien.Pose: position and quaternion wxyz."""

    def __init__(self, p, q):
        self.p, self.q = np.array(p, dtype=np.float64), np.array(q, dtype=np.float64)

    def inv(self):
        conjugate = self.q * [1, -1, -1, -1]
        return Pose(-rotate(conjugate, self.p), conjugate)

    def __mul__(self, other):
        return Pose(self.p + rotate(self.q, other.p), multiply(self.q, other.q))


def multiply(a, b):
    vector = a[0] * b[1:] + b[0] * a[1:] + np.cross(a[1:], b[1:])
    return np.array([a[0] * b[0] - a[1:] @ b[1:], *vector])


def rotate(q, v):
    return multiply(multiply(q, np.array([0, *v])), q * [1, -1, -1, -1])[1:]


class Robot:
    def __init__(self):
        self.pose = Pose([0, 0, 0], [1, 0, 0, 0])
        self.qpos = np.zeros(11)

    def get_qpos(self):
        return self.qpos


class Agent:
    def __init__(self):
        self.robot = Robot()


class Link:
    pose: Pose


class GoogleRobotEnv(gymnasium.Env):
    def __init__(
        self,
        obs_mode,
        robot,
        sim_freq,
        control_mode,
        control_freq,
        camera_cfgs,
        rgb_overlay_path,
        rgb_overlay_cameras,
        urdf_version,
        scene_name,
        **arguments,
    ):
        MADE.append({**locals(), **arguments})
        self.action_space = spaces.Box(-LIMITS, LIMITS)
        self.observation_space = spaces.Dict()
        self.agent, self.tcp = Agent(), Link()
        self.closed = False

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.options = options = dict(options or {})
        robot = options['robot_init_options']
        self.agent.robot.pose = Pose([*robot['init_xy'], 0.06], robot['init_rot_quat'])
        self.in_base = Pose([0.5, 0, 1], [1, 0, 0, 0])
        self.target = 0.0
        self.actions = []
        return self.get_obs(), {'robot': self.agent.robot.pose}

    def step(self, action):
        self.actions.append(np.array(action))
        self.in_base = Pose(self.in_base.p + action[:3], self.in_base.q)
        self.target = np.clip(self.target + 0.3 * action[6], 0, 1.3)
        success = self.target > 0.5
        return self.get_obs(), 0.0, success, False, {'success': success}

    def get_obs(self):
        self.tcp.pose = self.agent.robot.pose * self.in_base
        self.agent.robot.qpos = np.array([*range(7), self.target, self.target, -0.003, 0.785])
        rgb = np.zeros((512, 640, 3), np.uint8)
        rgb[0] = 255
        return {
            'agent': {'qpos': self.agent.robot.qpos},
            'extra': {},  # the drawers' has no tcp_pose
            'image': {'base_camera': {}, 'overhead_camera': {'rgb': rgb}},
        }

    def get_language_instruction(self):
        return f'do {self.options["obj_init_options"]}'

    def close(self):
        self.closed = True


for name, limit in (
    ('GraspSingleOpenedCokeCanInScene-v0', 80),
    ('MoveNearGoogleBakedTexInScene-v0', 80),
    *(
        (f'{v}{d}DrawerCustomInScene-v0', 113)
        for v in ('Open', 'Close')
        for d in ('Top', 'Middle', 'Bottom')
    ),
):
    gymnasium.register(
        name, entry_point=GoogleRobotEnv, max_episode_steps=limit, disable_env_checker=True
    )
