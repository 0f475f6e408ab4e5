"""Recordings, own ones and rosbag2's: a file, or a folder of them, message by message.

A message stays as it is until somebody asks for its value; then it is decoded by the definition
that lies in the file beside it, so that no ROS installation is needed, nor the package that
brought the type.
"""

import contextlib
import io
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from mcap.records import Channel, Schema

from vla_cache_ros.core.errors import RecordingError
from vla_cache_ros.recording.records import Loss, McapFile

METADATA = 'metadata.yaml'
MAX_METADATA_BYTES = 2**20

Decode = Callable[[bytes], Any]


@dataclass(frozen=True)
class RecordedMessage:
    """One message of a recording.

    Attributes:
        topic: Where it was published.
        kind: Its type, e.g. 'sensor_msgs/msg/Image'.
        log_ns: When it was recorded, nanoseconds of the recorder's clock.
        publish_ns: When it was published.
        data: The bytes as recorded.
    """

    topic: str
    kind: str
    log_ns: int
    publish_ns: int
    data: bytes
    _decode: Decode

    def value(self) -> Any:
        """Decode it: an object with the type's own fields.

        Raises:
            RecordingError: Its encoding or definition is unknown here, or the bytes do not fit.
        """
        try:
            return self._decode(self.data)
        except RecordingError:
            raise
        except Exception as error:  # a decoder fed with damaged bytes raises all kinds
            raise RecordingError(
                f'a message on {self.topic} is damaged: {len(self.data)} bytes are no {self.kind} '
                f'({type(error).__name__}: {error}).'
            ) from error


class Recording:
    """A recording, read from the front; may be read several times."""

    def __init__(self, path: Path) -> None:
        """Find its files.

        Args:
            path: An MCAP file, or a folder of them, as rosbag2 makes it.

        Raises:
            RecordingError: There is nothing to read, and why.
        """
        self.paths = find_files(path)
        self.losses: list[Loss] = []
        """What the last pass could not read, settled when it is over."""
        self.counts: Counter[str] = Counter()
        """Topic -> messages that the last pass met, whether asked for or not."""
        self.kinds: dict[str, str] = {}
        """Topic -> type, of those that the last pass met."""

    def messages(self, topics: Collection[str] | None = None) -> Iterator[RecordedMessage]:
        """Yield the messages in the order in which they were recorded.

        Args:
            topics: Those wanted; default: all.

        Raises:
            RecordingError: A file is no MCAP file.
        """
        self.losses, self.counts, self.kinds = [], Counter(), {}
        for path in self.paths:
            file = McapFile(path)
            decoders: dict[tuple[int, int], Decode] = {}
            for channel, message in file.messages():
                self.counts[channel.topic] += 1
                schema = file.schema(channel)
                self.kinds[channel.topic] = kind = schema.name if schema is not None else ''
                if topics is not None and channel.topic not in topics:
                    continue
                key = (channel.id, id(schema))
                if key not in decoders:
                    decoders[key] = decoder(channel, schema)
                yield RecordedMessage(
                    channel.topic,
                    kind,
                    message.log_time,
                    message.publish_time,
                    message.data,
                    decoders[key],
                )
            self.losses += file.losses


def decoder(channel: Channel, schema: Schema | None) -> Decode:
    """What decodes the messages of a channel; where nothing can, what says so."""
    from mcap_ros2.decoder import DecoderFactory

    def refuse(reason: str) -> Decode:
        def decode(_: bytes) -> Any:
            raise RecordingError(f'messages on {channel.topic} cannot be decoded: {reason}')

        return decode

    if schema is None:
        return refuse('the file does not define their type.')
    if channel.message_encoding != 'cdr' or schema.encoding != 'ros2msg':
        return refuse(
            f'they are {channel.message_encoding!r} by a schema in {schema.encoding!r}; valid: '
            "'cdr' by 'ros2msg', as rosbag2 and the recorder write them."
        )
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # it prints what it then raises
            found = DecoderFactory().decoder_for(channel.message_encoding, schema)
    except Exception as error:  # the parser of definitions raises all kinds
        return refuse(f'the definition of {schema.name} is damaged ({error}).')
    assert found is not None  # the encodings were checked
    return found


def find_files(path: Path) -> list[Path]:
    """The MCAP files of a recording, in order.

    Args:
        path: A file, or a folder as rosbag2 makes it: metadata.yaml beside its files. Without
            metadata.yaml, which rosbag2 writes last, all MCAP files of the folder by name.

    Raises:
        RecordingError: There is nothing there, or it is not kept as MCAP.
    """
    if not path.exists():
        raise RecordingError(
            f'{path} does not exist; valid: an MCAP file, or a folder of them as rosbag2 makes it.'
        )
    if not path.is_dir():
        return [path]
    if (path / METADATA).is_file():
        return _listed_files(path)
    files = sorted(path.glob('*.mcap'), key=_natural)
    if not files:
        others = sorted(entry.name for entry in path.iterdir())[:5]
        raise RecordingError(
            f'{path} holds no MCAP file; it holds {", ".join(others) or "nothing"}. A rosbag2 '
            'recording kept otherwise is converted by `ros2 bag convert`.'
        )
    return files


def _listed_files(folder: Path) -> list[Path]:
    """The files that rosbag2's metadata.yaml names."""
    about = _metadata(folder / METADATA)
    storage = about.get('storage_identifier')
    if storage != 'mcap':
        raise RecordingError(
            f'{folder} is kept as {storage!r}; valid: mcap. `ros2 bag convert` makes it so.'
        )
    mode = str(about.get('compression_mode') or 'none').lower()
    if mode not in ('none', 'storage'):
        raise RecordingError(
            f"{folder} is compressed by rosbag2 itself ({mode}); valid: MCAP's own compression. "
            '`ros2 bag convert` makes it so.'
        )
    names = about.get('relative_file_paths')
    if not isinstance(names, list) or not names:
        raise RecordingError(f'{folder / METADATA} names no files (relative_file_paths).')
    files = []
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise RecordingError(
                f'{folder / METADATA} names {name!r}; valid: files of the same folder.'
            )
        files.append(folder / name)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise RecordingError(f'{folder} lacks {", ".join(missing)}, which {METADATA} names.')
    return files


def _metadata(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_METADATA_BYTES:
            raise RecordingError(f'{path} is larger than {MAX_METADATA_BYTES} bytes.')
        read = yaml.safe_load(path.read_text(encoding='utf-8'))
        about = read['rosbag2_bagfile_information']
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise RecordingError(f'{path} is not what rosbag2 writes ({error}).') from error
    except RecursionError as error:
        raise RecordingError(f'{path} is nested too deeply.') from error
    if not isinstance(about, dict):
        raise RecordingError(f'{path} is not what rosbag2 writes.')
    return about


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key by which bag_10 follows bag_9."""
    parts = re.split(r'(\d+)', path.name)
    return [(int(part), '') if part.isdigit() else (0, part) for part in parts]
