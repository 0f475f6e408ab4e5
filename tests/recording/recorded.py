"""Recordings for the tests, made without ROS: messages by rosbags, files by three writers."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from mcap.writer import CompressionType, Writer
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as Rosbag2Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from vla_cache_ros.recording.container import RawMessage, Topic
from vla_cache_ros.recording.limits import WriterLimits
from vla_cache_ros.recording.schemas import definition
from vla_cache_ros.recording.writer import RecordingWriter

INTERFACES = Path(__file__).parents[2] / 'interfaces' / 'vla_cache_interfaces' / 'msg'
STRING = 'std_msgs/msg/String'
IMAGE = 'sensor_msgs/msg/Image'
COMPRESSED = 'sensor_msgs/msg/CompressedImage'
JOINTS = 'sensor_msgs/msg/JointState'
POSE = 'geometry_msgs/msg/PoseStamped'
CHUNK = 'vla_cache_interfaces/msg/ActionChunk'
STEP = 'vla_cache_interfaces/msg/StepReport'
AXES = ('ee_x', 'ee_y', 'ee_z', 'ee_rx', 'ee_ry', 'ee_rz', 'gripper')


@cache
def typestore() -> Any:
    """The types of ROS 2 and of this project."""
    store = get_typestore(Stores.ROS2_JAZZY)
    types: dict[str, Any] = {}
    for path in sorted(INTERFACES.glob('*.msg')):
        name = f'vla_cache_interfaces/msg/{path.stem}'
        types |= get_types_from_msg(path.read_text(encoding='utf-8'), name)
    store.register(types)
    return store


@cache
def schema(kind: str) -> str:
    """The type's definition, from rosbags' own tables or this project's files."""

    def find(package: str, name: str) -> str:
        if package == 'vla_cache_interfaces':
            return (INTERFACES / f'{name}.msg').read_text(encoding='utf-8')
        text, _ = typestore().generate_msgdef(f'{package}/msg/{name}', ros_version=2)
        return text.split('=' * 80)[0]

    return definition(kind, find)


@dataclass(frozen=True)
class Said:
    """One message: where, what kind, its bytes, when."""

    topic: str
    kind: str
    data: bytes
    log_ns: int

    @property
    def raw(self) -> RawMessage:
        return RawMessage(self.topic, self.data, self.log_ns, self.log_ns)


def cdr(kind: str, **fields: Any) -> bytes:
    """A message's bytes."""
    made = typestore().types[kind](**fields)
    return bytes(typestore().serialize_cdr(made, kind))


def header(stamp_ns: int) -> Any:
    types = typestore().types
    stamp = types['builtin_interfaces/msg/Time'](*divmod(stamp_ns, 10**9))
    return types['std_msgs/msg/Header'](stamp, 'base')


def text(words: str, log_ns: int = 0, topic: str = '/vla/instruction') -> Said:
    return Said(topic, STRING, cdr(STRING, data=words), log_ns)


def image(topic: str, pixels: np.ndarray, stamp_ns: int, encoding: str = 'rgb8') -> Said:
    height, width = pixels.shape[:2]
    data = cdr(
        IMAGE,
        header=header(stamp_ns),
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=0,
        step=pixels.strides[0],
        data=np.ascontiguousarray(pixels).reshape(-1),
    )
    return Said(topic, IMAGE, data, stamp_ns)


def joints(positions: dict[str, float], stamp_ns: int, topic: str = '/joint_states') -> Said:
    nothing = np.zeros(0)
    data = cdr(
        JOINTS,
        header=header(stamp_ns),
        name=list(positions),
        position=np.array(list(positions.values()), np.float64),
        velocity=nothing,
        effort=nothing,
    )
    return Said(topic, JOINTS, data, stamp_ns)


def pose(position_m: Sequence[float], stamp_ns: int, topic: str = '/ee_pose') -> Said:
    types = typestore().types
    point = types['geometry_msgs/msg/Point'](*position_m)
    turn = types['geometry_msgs/msg/Quaternion'](0.0, 0.0, 0.0, 1.0)
    made = types['geometry_msgs/msg/Pose'](point, turn)
    return Said(topic, POSE, cdr(POSE, header=header(stamp_ns), pose=made), stamp_ns)


def chunk(
    actions: np.ndarray,
    stamp_ns: int,
    instruction: str = 'do it',
    prefix_steps: int = 0,
    topic: str = '/vla/action_chunk',
) -> Said:
    data = cdr(
        CHUNK,
        header=header(stamp_ns),
        image_stamp=header(stamp_ns).stamp,
        instruction=instruction,
        axes=list(AXES),
        control_frequency_hz=20.0,
        prefix_steps=prefix_steps,
        actions=np.ascontiguousarray(actions, np.float32).reshape(-1),
    )
    return Said(topic, CHUNK, data, stamp_ns)


def step_report(stamp_ns: int, step: int, mode: str, **fields: Any) -> Said:
    none = np.zeros(0, np.uint32)
    given = {
        'header': header(stamp_ns),
        'step': step,
        'mode': mode,
        'group_start_layer': none,
        'group_stop_layer': none,
        'group_recompute_ratio': np.zeros(0, np.float32),
        **fields,
    }
    defaults = {'string': '', 'bool': False, 'float32': 0.0, 'float64': 0.0}
    for name, kind in typestore().fielddefs[STEP][1]:
        word = kind[1] if isinstance(kind[1], str) else kind[1][0]
        given.setdefault(name, [] if kind[0] > 2 else defaults.get(word, 0))
    return Said('/policy_node/step_report', STEP, cdr(STEP, **given), stamp_ns)


def record(
    folder: Path, said: Sequence[Said], compression: str = 'none', per_chunk: int = 1
) -> Path:
    """Write with the project's writer, so many messages to a chunk."""
    limits = WriterLimits(compression=compression, min_free_bytes=0)
    writer = RecordingWriter(folder, 'test', time.monotonic, limits)
    for message in said:
        writer.add_topic(Topic(message.topic, message.kind, schema(message.kind)))
    for start in range(0, len(said), per_chunk):
        writer.write([message.raw for message in said[start : start + per_chunk]])
    writer.close()
    return writer.path


def record_by_library(path: Path, said: Sequence[Said], **writer_arguments: Any) -> Path:
    """Write with the MCAP library's own writer, chunked as rosbag2's plugin does."""
    with path.open('wb') as file:
        writer = Writer(file, **{'compression': CompressionType.ZSTD, **writer_arguments})
        writer.start('ros2')
        schemas: dict[str, int] = {}
        channels: dict[str, int] = {}
        for message in said:
            if message.kind not in schemas:
                schemas[message.kind] = writer.register_schema(
                    message.kind, 'ros2msg', schema(message.kind).encode()
                )
            if message.topic not in channels:
                channels[message.topic] = writer.register_channel(
                    message.topic, 'cdr', schemas[message.kind]
                )
            writer.add_message(
                channels[message.topic], message.log_ns, message.data, message.log_ns
            )
        writer.finish()
    return path


def record_by_rosbags(folder: Path, said: Sequence[Said], compressed: bool = False) -> Path:
    """Write a folder as rosbag2 does: metadata.yaml beside an MCAP file."""
    writer = Rosbag2Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP)
    if compressed:
        writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
    with writer:
        connections = {(message.topic, message.kind): None for message in said}
        for topic, kind in connections:
            connections[topic, kind] = writer.add_connection(topic, kind, typestore=typestore())
        for message in said:
            connection = connections[message.topic, message.kind]
            writer.write(connection, message.log_ns, message.data)
    return folder
