"""Import timm, also where torchvision's operators cannot be loaded.

timm imports torchvision for its image transforms. PyPI's torchvision is built for CUDA: under a
CPU build of torch its extension does not load, and the import ends with "operator torchvision::nms
does not exist", since it gives shape rules to operators that nobody declared. Declaring them is
enough: the towers call none. docs/decisions/0005-timm-and-torchvision.md has the whole story.
"""

import importlib
import sys
from functools import cache
from types import ModuleType

import torch

from vla_cache_ros.core.errors import ConfigError

INSTALL_COMMAND = 'pip install -r requirements/vla.txt'
# The operators whose absence ends torchvision's import.
OPERATORS = (
    'nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
    'qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
)


def import_timm() -> ModuleType:
    """Return the module timm.

    Raises:
        ConfigError: timm or torchvision is not installed.
    """
    try:
        _import_torchvision()
        return importlib.import_module('timm')
    except ModuleNotFoundError as error:
        if error.name not in ('timm', 'torchvision'):
            raise
        raise ConfigError(
            f'the vision towers of the OpenVLA family need the Python package {error.name}, which '
            f'is not installed; get it with: {INSTALL_COMMAND}'
        ) from error


def _import_torchvision() -> None:
    try:
        importlib.import_module('torchvision')
    except RuntimeError as error:
        if 'operator torchvision::' not in str(error):
            raise
        # The failed import leaves its finished parts behind; a second one needs a clean start.
        for name in [name for name in sys.modules if name.startswith('torchvision.')]:
            del sys.modules[name]
        _declare_operators()
        importlib.import_module('torchvision')


@cache
def _declare_operators() -> torch.library.Library:
    """Declare the operators; the cache keeps the library, and with it the declarations, alive."""
    library = torch.library.Library('torchvision', 'FRAGMENT')
    for schema in OPERATORS:
        library.define(schema)
    return library
