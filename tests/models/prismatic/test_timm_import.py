import subprocess
import sys

import pytest

from vla_cache_models.prismatic.timm_import import import_timm
from vla_cache_ros.core.errors import ConfigError

DECLARES = """
from vla_cache_models.prismatic import timm_import
timm_import.import_timm()
print(timm_import._declare_operators.cache_info().currsize)
"""


def declarations(folder, torchvision: str) -> str:
    """Import timm in a fresh Python, beside this text as torchvision; how often it declared."""
    (folder / 'torchvision').mkdir()
    (folder / 'torchvision' / '__init__.py').write_text(torchvision)
    (folder / 'timm.py').write_text('import torchvision; assert torchvision.whole')
    process = subprocess.run(
        [sys.executable, '-c', f'import sys; sys.path.insert(0, {str(folder)!r})\n{DECLARES}'],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def test_timm_is_importable_here():
    assert import_timm().is_model('vit_so400m_patch14_siglip_224')
    assert import_timm() is import_timm()


def test_nothing_is_declared_where_torchvision_has_its_operators(tmp_path):
    assert declarations(tmp_path, 'whole = True') == '0'


def test_operators_are_declared_where_torchvision_lacks_them(tmp_path):
    registers = "@torch.library.register_fake('torchvision::{0}')\ndef {0}(a, b, c): ...\n"
    text = 'import torch\n' + registers.format('nms') + registers.format('qnms') + 'whole = True'
    assert declarations(tmp_path, text) == '1'


@pytest.mark.parametrize('package', ['timm', 'torchvision'])
def test_a_missing_package_is_named_with_its_command(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f'package {package},.* pip install -r .*vla.txt'):
        import_timm()


def test_other_failures_of_torchvision_stay_as_they_are(monkeypatch, tmp_path):
    (tmp_path / 'torchvision.py').write_text('raise RuntimeError("no disk")')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'torchvision', raising=False)
    with pytest.raises(RuntimeError, match='no disk'):
        import_timm()
