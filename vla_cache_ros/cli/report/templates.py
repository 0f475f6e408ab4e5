"""Self-contained HTML from templates: pictures and videos are part of the page."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vla_cache_ros.cli.report.charts import themed_path
from vla_cache_ros.cli.report.palette import DARK

MAX_EMBEDDED_BYTES = 6 * 2**20
"""A larger video stays beside the page."""


@dataclass(frozen=True)
class Chart:
    """A chart on a page; its dark version lies beside it."""

    title: str
    caption: str
    path: Path

    def embedded(self) -> Mapping[str, str]:
        """What the templates need of it."""
        return {
            'title': self.title,
            'caption': self.caption,
            'light': data_url(self.path, 'image/png'),
            'dark': data_url(themed_path(self.path, DARK), 'image/png'),
        }


def render_template(name: str, **values: object) -> str:
    """Render a template of this folder; an unknown name in it is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        one=_one, two=_two, ms=_two, ratio=_ratio, percent=_percent, points=_points
    )
    return environment.get_template(name).render(**values)


def data_url(path: Path, mime: str) -> str:
    """A file as part of the page."""
    return f'data:{mime};base64,{base64.b64encode(path.read_bytes()).decode()}'


def video_url(path: Path, folder: Path) -> str:
    """A video as part of the page, or where it lies beside the page in `folder`."""
    if path.stat().st_size <= MAX_EMBEDDED_BYTES:
        return data_url(path, 'video/mp4')
    return path.relative_to(folder).as_posix()


def _one(value: float | None) -> str:
    return '–' if value is None else f'{value:.1f}'


def _two(value: float | None) -> str:
    return '–' if value is None else f'{value:.2f}'


def _ratio(value: float | None) -> str:
    return '–' if value is None else f'{value:.2f}x'


def _percent(value: float | None, digits: int = 0) -> str:
    return '–' if value is None else f'{100 * value:.{digits}f} %'


def _points(value: float | None) -> str:
    """A difference of shares: '+1.5', '0.0'."""
    if value is None:
        return '–'
    text = f'{100 * value:+.1f}'
    return '0.0' if text in ('+0.0', '-0.0') else text.replace('-', '−')
