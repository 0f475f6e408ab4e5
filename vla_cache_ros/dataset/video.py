"""H.264 clips of one camera and one episode, by PyAV."""

import itertools
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from vla_cache_ros.core.errors import DatasetError

PIXEL_FORMAT = 'yuv444p'
"""Full chroma resolution: at 128 px it costs nothing and gains 1 to 3 dB over yuv420p."""

MAX_PIXELS = 1 << 25
"""Largest picture that is unpacked; more is a damaged header."""

CRF = 20
"""x264's constant rate factor; docs/decisions/0002-lerobot-layout.md has the measurement."""


def encode_video(path: Path, frames: NDArray[np.uint8], fps: int, crf: int = CRF) -> None:
    """Write one clip.

    Args:
        path: The mp4 file to write; its folder must exist.
        frames: RGB, uint8 [F, H, W, 3].
        fps: Frames per second.
        crf: Constant rate factor, 0 (lossless) to 51.
    """
    options = {'crf': str(crf), 'threads': '1'}
    with av.open(str(path), 'w', format='mp4') as container:
        stream = container.add_stream('libx264', rate=fps, options=options)
        stream = cast(av.VideoStream, stream)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = PIXEL_FORMAT
        # One key frame per episode: training decodes whole episodes, and key frames cost most.
        stream.codec_context.gop_size = max(len(frames), 1)
        for image in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format='rgb24')
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def decode_video(path: Path, frames: int) -> NDArray[np.uint8]:
    """Read one clip whole.

    Args:
        path: The mp4 file.
        frames: How many frames it must hold.

    Returns:
        uint8 [F, H, W, 3].

    Raises:
        DatasetError: The file is missing, truncated, or holds another number of frames.
    """
    images: list[NDArray[np.uint8]] = []
    try:
        with av.open(str(path)) as container:
            stream: Any = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for picture in itertools.islice(container.decode(stream), frames + 1):
                if not 0 < picture.width * picture.height <= MAX_PIXELS:
                    raise ValueError(f'a picture of {picture.width}x{picture.height} pixels')
                images.append(cast(NDArray[np.uint8], picture.to_ndarray(format='rgb24')))
            if len({image.shape for image in images}) > 1:
                raise ValueError('pictures of different sizes')
    except (OSError, IndexError, FFmpegError, ValueError, AttributeError) as error:
        # PyAV gives a stream of no known codec no codec context: AttributeError.
        raise DatasetError(
            f'cannot read the video {path}: {error}; it is missing or truncated. Copy the dataset '
            'again, or remove the episode.'
        ) from error
    if len(images) != frames:
        raise DatasetError(
            f'the video {path} holds {"more" if len(images) > frames else len(images)} frames, '
            f'its episode {frames}; it is truncated or of another one. '
            'Copy the dataset again, or record anew.'
        )
    return np.stack(images)
