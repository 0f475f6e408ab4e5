"""One tiny checkpoint of each layout, written once; a test that damages one takes a copy."""

import shutil

import pytest

from tests.models.tiny_checkpoints import write_tiny_cogact, write_tiny_oft, write_tiny_openvla

WRITERS = {
    'openvla': write_tiny_openvla,
    'openvla_oft': write_tiny_oft,
    'cogact': write_tiny_cogact,
}


@pytest.fixture(scope='session')
def tiny(tmp_path_factory):
    """Format -> folder, not to be changed."""
    root = tmp_path_factory.mktemp('tiny')
    return {name: write(root / name) for name, write in WRITERS.items()}


@pytest.fixture
def copy_of(tiny, tmp_path):
    """Format -> a copy of the folder, to be damaged."""

    def copy(name):
        return shutil.copytree(tiny[name], tmp_path / name)

    return copy
