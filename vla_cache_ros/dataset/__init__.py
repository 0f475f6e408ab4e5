"""LeRobot-layout demonstration datasets: write, read, merge."""

from vla_cache_ros.dataset.episode import Episode, EpisodeInfo
from vla_cache_ros.dataset.index import EpisodeEntry
from vla_cache_ros.dataset.layout import RELEVANCE_BITS, DatasetSpec
from vla_cache_ros.dataset.merge import merge_datasets
from vla_cache_ros.dataset.reader import DemonstrationDataset
from vla_cache_ros.dataset.writer import DatasetWriter

__all__ = [
    'RELEVANCE_BITS',
    'DatasetSpec',
    'DatasetWriter',
    'DemonstrationDataset',
    'Episode',
    'EpisodeEntry',
    'EpisodeInfo',
    'merge_datasets',
]
