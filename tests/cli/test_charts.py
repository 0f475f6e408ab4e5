import cv2
import pytest

from vla_cache_ros.cli.report.charts import draw_agreement, draw_engines


def point(reused: float, scale: float) -> dict:
    statistics = {'mean': scale, 'p95_of_step_maximum': 10 * scale}
    return {'reused': reused, 'translation': statistics, 'rotation': statistics}


@pytest.mark.parametrize('exact', [False, True])
def test_agreement_is_drawn_for_light_and_dark_pages(tmp_path, exact):
    scale = 0.0 if exact else 0.01  # exact: nothing to show on a logarithmic axis
    curves = {
        'preset': {'safe': point(0.4, scale)},
        'static_fraction': {'0.1': point(0.1, scale), '0.2': point(0.2, 2 * scale)},
    }
    draw_agreement(tmp_path / 'curve.png', curves, point(0.0, scale))
    light, dark = (cv2.imread(str(tmp_path / name)) for name in ('curve.png', 'curve-dark.png'))
    assert light.shape == dark.shape
    assert light.mean() > 200 > 50 > dark.mean()


def test_engines_are_drawn_for_light_and_dark_pages(tmp_path):
    times = {'torch fp32': {'dense': 90.0, 'cached': 50.0}, 'ort': {'dense': 40.0, 'cached': 20.0}}
    draw_engines(tmp_path / 'engines.png', times, 1.9)
    light, dark = (
        cv2.imread(str(tmp_path / name)) for name in ('engines.png', 'engines-dark.png')
    )
    assert light.shape == dark.shape
    assert light.mean() > 150 > 120 > dark.mean()
