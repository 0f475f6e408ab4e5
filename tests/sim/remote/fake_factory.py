"""A simulator for the tests of the remote environment: NumPy alone, misbehaves on request."""

import os
import signal
import sys
import time

import numpy as np


class RefusedOptionError(ValueError):
    kind = 'config'


class FakeSimulator:
    cameras = ('agentview', 'wrist')
    control_frequency_hz = 20.0

    def __init__(self, image_size_px=8, behaviour='', wrist_shape=None):
        sys.stdout.write('a banner on stdout that is no frame\n')
        if behaviour == 'fails to build':
            raise RuntimeError('no assets here')
        self.size = image_size_px
        self.behaviour = behaviour
        self.wrist_shape = wrist_shape or (image_size_px, image_size_px, 3)
        self.instruction = 'wait'
        self.steps = 0
        image = {'low': 0, 'high': 255, 'dtype': 'uint8'}
        self.spaces = {
            'action': {'low': -1.0, 'high': 1.0, 'shape': [7], 'dtype': 'float32'},
            'observation': {
                'agentview': {'shape': [self.size, self.size, 3], **image},
                'wrist': {'shape': list(self.wrist_shape), **image},
                'ee_position_m': {
                    'low': None,
                    'high': [1, 2, 3],
                    'shape': [3],
                    'dtype': 'float32',
                },
            },
        }

    def reset(self, seed=None, options=None):
        if 'unknown' in (options or {}):
            raise RefusedOptionError("unknown reset option 'unknown'; valid: task")
        self.steps = 0
        self.instruction = f'do task {(options or {}).get("task")} with seed {seed}'
        return self.observe(), {'episode': np.int64(3), 'path': object, 'loss': float('nan')}

    def advance(self, action):
        sys.stdout.write('prints while it works\n')
        sys.stdout.flush()
        self.steps += 1
        self.position = np.asarray(action[:3], dtype=np.float32)
        if self.behaviour == 'crashes':
            sys.stderr.write('segmentation fault ahead\n')
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.behaviour == 'exits':
            os._exit(7)
        if self.behaviour == 'hangs':
            sys.stderr.write('waiting for a lock\n')
            time.sleep(60)
        if self.behaviour == 'raises':
            raise ZeroDivisionError('the solver diverged')
        if self.behaviour == 'floods stderr':
            for line in range(20_000):
                sys.stderr.write(f'line {line} {"x" * 100}\n')
        if self.behaviour == 'floods stderr and exits':
            sys.stderr.write('noise\n' * 100_000 + 'the last word\n')
            sys.stderr.flush()
            os._exit(1)
        if self.behaviour == 'reads stdin':
            assert sys.stdin.read() == ''
        return 0.5, self.steps == 3, self.steps == 5, {'steps': self.steps}

    def observe(self):
        if self.behaviour == 'observes objects':
            return {'agentview': np.array([object()])}
        rows = np.arange(self.size * self.size * 3, dtype=np.uint8)
        return {
            'agentview': rows.reshape(self.size, self.size, 3)[::-1],  # not contiguous
            'wrist': np.full(self.wrist_shape, self.steps, dtype=np.uint8),
            'ee_position_m': getattr(self, 'position', np.zeros(3, np.float32)),
        }

    def close(self):
        pass


def make(**arguments):
    return FakeSimulator(**arguments)
