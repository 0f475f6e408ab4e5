"""Bounds of a recording; without the library, since every table of parameters reads them."""

from dataclasses import dataclass

MIB = 2**20
COMPRESSIONS = ('none', 'lz4', 'zstd')


@dataclass(frozen=True)
class WriterLimits:
    """When a file is full and when the disk is.

    Attributes:
        file_bytes: A file that has so many bytes is followed by the next one; 0: never.
        file_s: A file that is so old is followed by the next one; 0: never.
        min_free_bytes: The recording stops while the disk still has so many bytes free, so that
            whatever else needs the disk goes on.
        compression: none, lz4 or zstd.
    """

    file_bytes: int = 2048 * MIB
    file_s: float = 600.0
    min_free_bytes: int = 1024 * MIB
    compression: str = 'none'
