"""Self-contained HTML from templates: pictures and videos are part of the page."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vla_cache_ros.cli.report.charts import themed_path
from vla_cache_ros.cli.report.palette import DARK

UNKNOWN = '–'
"""What a figure reads as that is not known."""

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
        one=one, two=two, ms=two, ratio=ratio, percent=percent, points=points
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


def one(value: float | None) -> str:
    """One decimal."""
    return UNKNOWN if value is None else f'{value:.1f}'


def two(value: float | None) -> str:
    """Two decimals."""
    return UNKNOWN if value is None else f'{value:.2f}'


def four(value: float | None) -> str:
    """Four decimals."""
    return UNKNOWN if value is None else f'{value:.4f}'


def ratio(value: float | None) -> str:
    """A ratio of times."""
    return UNKNOWN if value is None else f'{value:.2f}x'


def percent(value: float | None, digits: int = 0) -> str:
    """A share."""
    return UNKNOWN if value is None else f'{100 * value:.{digits}f} %'


def points(value: float | None) -> str:
    """A difference of shares: '+1.5', '0.0'."""
    if value is None:
        return UNKNOWN
    text = f'{100 * value:+.1f}'
    return '0.0' if text in ('+0.0', '-0.0') else text.replace('-', '−')
