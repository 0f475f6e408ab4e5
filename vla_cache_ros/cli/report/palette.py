"""One colour per meaning, the same in the video, the charts and the page (Okabe and Ito's set)."""

from collections.abc import Sequence
from dataclasses import dataclass

from vla_cache_ros.core.plan import PatchStatus

STATUS_COLOURS: dict[PatchStatus, str] = {
    PatchStatus.REUSED: '#0072b2',
    PatchStatus.CHANGED: '#d55e00',
    PatchStatus.PROTECTED: '#cc79a7',
    PatchStatus.EXPIRED: '#f0e442',
    PatchStatus.REFRESHED: '#999999',
}

STATUS_LABELS: dict[PatchStatus, str] = {
    PatchStatus.REUSED: 'reused (stronger = older)',
    PatchStatus.CHANGED: 'recomputed: changed',
    PatchStatus.PROTECTED: 'recomputed: task-relevant',
    PatchStatus.EXPIRED: 'recomputed: too old',
    PatchStatus.REFRESHED: 'recomputed: keyframe, camera motion',
}

ARM_COLOURS = {'dense': '#e69f00', 'cached': '#0072b2'}

PRESET_COLOURS = {
    'off': ARM_COLOURS['dense'],
    'safe': ARM_COLOURS['cached'],
    'paper': '#009e73',
    'random': '#d55e00',
    'static_only': '#cc79a7',
}
"""Arms of an evaluation; others take what is left of the series."""

SERIES_COLOURS = ('#009e73', '#0072b2', '#d55e00', '#cc79a7', '#e69f00')
"""Of series without a meaning of their own."""

OTHER_ARM_COLOURS = ('#56b4e9', '#999999', '#a6761d', '#666699')
"""Of arms that are no preset alone, 'off@7' for one."""

STAGE_COLOURS: dict[str, str] = {
    'preprocess': '#56b4e9',
    'diff': '#d55e00',
    'selection': '#cc79a7',
    'vision': '#009e73',
    'decoder': '#0072b2',
    'head': '#e69f00',
    'graph': '#999999',
}


@dataclass(frozen=True)
class Theme:
    """Background and ink of a chart."""

    name: str
    background: str
    ink: str
    muted: str
    grid: str


LIGHT = Theme('light', '#ffffff', '#1b1f24', '#57606a', '#e3e6ea')
DARK = Theme('dark', '#14171a', '#e6e8ea', '#9aa4ae', '#2b3036')


def arm_colours(arms: Sequence[str]) -> dict[str, str]:
    """A colour for each arm of an evaluation, the same wherever the arm appears."""
    others = [arm for arm in arms if arm not in PRESET_COLOURS]
    return {
        arm: PRESET_COLOURS[arm]
        if arm in PRESET_COLOURS
        else OTHER_ARM_COLOURS[others.index(arm) % len(OTHER_ARM_COLOURS)]
        for arm in arms
    }


def rgb(colour: str) -> tuple[int, int, int]:
    """Turn '#rrggbb' into three bytes."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
