"""What a recording holds for a policy: its observations, paired as the policy node pairs them.

The survey finds the topics and reads all that is small; the observations are then read one by one,
since their images rarely fit into memory together.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from vla_cache_ros.core.errors import ObservationError, RecordingError
from vla_cache_ros.core.gripper import GripperMap
from vla_cache_ros.core.types import ActionChunk, Observation
from vla_cache_ros.nodes.chunk_messages import message_to_chunk
from vla_cache_ros.nodes.conversions import stamp_to_ns, to_proprioception
from vla_cache_ros.nodes.image_conversions import compressed_to_rgb, image_to_rgb
from vla_cache_ros.nodes.pairing import PairedInputs, Pairing
from vla_cache_ros.recording.reader import RecordedMessage, Recording

CHUNK = 'vla_cache_interfaces/msg/ActionChunk'
STEP = 'vla_cache_interfaces/msg/StepReport'
STRING = 'std_msgs/msg/String'
JOINTS = 'sensor_msgs/msg/JointState'
POSE = 'geometry_msgs/msg/PoseStamped'
IMAGES = {
    'sensor_msgs/msg/Image': image_to_rgb,
    'sensor_msgs/msg/CompressedImage': compressed_to_rgb,
}
SHOWN = 12
"""Names that a message lists at most."""


@dataclass(frozen=True)
class InputOptions:
    """How a recording's topics become observations; see `vla-cache replay --help`."""

    namespace: str = ''
    cameras: Mapping[str, str] = field(default_factory=dict)
    instruction: str = ''
    gripper: GripperMap = GripperMap(('panda_finger_joint1', 'panda_finger_joint2'))
    joint_states: Sequence[str] = ('joint_states',)
    pairing_tolerance_s: float = 0.01
    stale_image_timeout_s: float = 0.5


@dataclass(frozen=True)
class RecordedStep:
    """What the policy node said of one of its steps.

    Attributes:
        step: Policy steps since its last reset.
        mode: dense, keyframe or cached.
        flush_reason: Why the cache was flushed before it.
        off_reason: Why reuse was switched off; empty while it was on.
        reuse_pressure: How far late refreshes had raised the reuse.
    """

    step: int
    mode: str
    flush_reason: str
    off_reason: str
    reuse_pressure: float

    @property
    def recomputes_all(self) -> bool:
        """Whether nothing of the steps before is left in the cache after it."""
        return self.step == 0 or self.mode in ('dense', 'keyframe')


@dataclass(frozen=True)
class Survey:
    """What a recording holds, but for its observations.

    Attributes:
        topics: Topic -> type.
        counts: Topic -> messages.
        chunks: Observation's stamp -> the chunk that was computed from it; no empty ones.
        steps: Observation's stamp -> what the policy node reported of that step.
        instructions: Time of receipt and text, in order.
        unreadable: Messages that could not be decoded.
    """

    topics: Mapping[str, str]
    counts: Mapping[str, int]
    chunks: Mapping[int, ActionChunk]
    steps: Mapping[int, RecordedStep]
    instructions: Sequence[tuple[int, str]]
    unreadable: Sequence[str]

    @property
    def acted(self) -> Set[int]:
        """Stamps of the observations that the recorded policy acted on, as far as is known."""
        return self.chunks.keys() | self.steps.keys()


@dataclass(frozen=True)
class Sources:
    """The topics that observations are made of; cameras: topic -> camera."""

    cameras: Mapping[str, str]
    joints: Sequence[str]
    pose: str
    instruction: str

    @property
    def topics(self) -> set[str]:
        """All of them."""
        return {*self.cameras, *self.joints, self.pose, self.instruction} - {''}


def survey(recording: Recording, options: InputOptions) -> Survey:
    """Read everything but images and states.

    Raises:
        RecordingError: Nothing is in it, or more than one graph and no namespace was named.
    """
    kept: dict[str, list[RecordedMessage]] = {}
    for message in recording.messages():
        if message.kind in (CHUNK, STEP, STRING):
            kept.setdefault(message.topic, []).append(message)
    if not recording.counts:
        raise RecordingError(
            f'{recording.paths[0]} holds no messages'
            + (f' that can be read: {recording.losses[0]}' if recording.losses else '.')
        )
    unreadable: list[str] = []
    chunks: dict[int, ActionChunk] = {}
    steps: dict[int, RecordedStep] = {}
    instructions: list[tuple[int, str]] = []
    found = {
        kind: find_topic(recording.kinds, name, (kind,), options.namespace)
        for kind, name in ((CHUNK, 'vla/action_chunk'), (STEP, 'policy_node/step_report'))
    }
    spoken = find_topic(recording.kinds, 'vla/instruction', (STRING,), options.namespace)
    for message in kept.get(found[CHUNK], ()):
        try:
            chunk = message_to_chunk(message.value())
        except (RecordingError, ObservationError) as error:
            unreadable.append(str(error))
            continue
        if len(chunk.actions):
            chunks[chunk.stamp_ns] = chunk
    for message in kept.get(found[STEP], ()):
        try:
            report = message.value()
        except RecordingError as error:
            unreadable.append(str(error))
            continue
        if not report.dropped and report.mode:
            steps[stamp_to_ns(report.header.stamp)] = RecordedStep(
                report.step,
                report.mode,
                report.flush_reason,
                report.off_reason,
                report.reuse_pressure,
            )
    for message in kept.get(spoken, ()):
        try:
            instructions.append((message.log_ns, message.value().data.strip()))
        except RecordingError as error:
            unreadable.append(str(error))
    return Survey(
        dict(recording.kinds), dict(recording.counts), chunks, steps, instructions, unreadable
    )


def find_topic(
    topics: Mapping[str, str], name: str, kinds: Sequence[str], namespace: str = ''
) -> str:
    """The topic of that name in the recorded graph, below whatever namespace it had.

    Returns:
        The topic; empty where there is none.

    Raises:
        RecordingError: There are several, and no namespace says which.
    """
    if namespace:
        wanted = f'/{namespace.strip("/")}/{name}'
        return wanted if topics.get(wanted) in kinds else ''
    found = [
        topic
        for topic, kind in topics.items()
        if kind in kinds and (topic == name or topic.endswith(f'/{name}'))
    ]
    if len(found) > 1:
        raise RecordingError(
            f'the recording has several topics named {name}: {_listed(found)}. Say which graph '
            'is meant with --namespace.'
        )
    return found[0] if found else ''


def find_sources(about: Survey, camera_names: Sequence[str], options: InputOptions) -> Sources:
    """Find the topics of the policy's cameras and of the robot's state.

    Raises:
        RecordingError: One is missing; the message lists what there is.
    """
    cameras: dict[str, str] = {}
    for camera in camera_names:
        cameras[_camera_topic(about, camera, options)] = camera
    joints = [_state_topic(about, name, JOINTS, options) for name in options.joint_states]
    pose = _state_topic(about, 'ee_pose', POSE, options)
    spoken = find_topic(about.topics, 'vla/instruction', (STRING,), options.namespace)
    has_task = options.instruction or any(text for _, text in about.instructions)
    if not has_task and not any(chunk.instruction for chunk in about.chunks.values()):
        raise RecordingError(
            'the recording holds no instruction (vla/instruction, std_msgs/msg/String); give one '
            'with --instruction.'
        )
    return Sources(cameras, joints, pose, spoken)


def _state_topic(about: Survey, name: str, kind: str, options: InputOptions) -> str:
    if topic := find_topic(about.topics, name.lstrip('/'), (kind,), options.namespace):
        return topic
    raise RecordingError(
        f'the recording lacks {name} ({kind}), which observations are made of; it holds: '
        f'{_listed(about.topics)}.'
    )


def _camera_topic(about: Survey, camera: str, options: InputOptions) -> str:
    pictures = {topic: kind for topic, kind in about.topics.items() if kind in IMAGES}
    if camera in options.cameras:
        topic = options.cameras[camera]
        if topic not in pictures:
            raise RecordingError(
                f'{topic}, named for camera {camera}, is no image topic of the recording; image '
                f'topics: {_listed(pictures) or "none"}.'
            )
        return topic
    for name in (f'camera/{camera}/image_raw', f'camera/{camera}/image_raw/compressed'):
        if topic := find_topic(pictures, name, tuple(IMAGES), options.namespace):
            return topic
    if not pictures:
        raise RecordingError(
            f'the recording holds no images; it holds: {_listed(about.topics)}. Record camera/* '
            'too.'
        )
    raise RecordingError(
        f'the recording has no images of camera {camera}, which the policy wants; image topics: '
        f'{_listed(pictures)}. Say which is meant: --cameras {camera}=TOPIC.'
    )


class Observations:
    """The observations of a recording, in order; may be read several times."""

    def __init__(
        self,
        recording: Recording,
        about: Survey,
        camera_names: Sequence[str],
        options: InputOptions,
    ) -> None:
        """Find the topics.

        Args:
            recording: Where they come from.
            about: Its survey.
            camera_names: The policy's cameras.
            options: How topics become observations.

        Raises:
            RecordingError: A topic is missing.
        """
        self._recording, self._about, self._options = recording, about, options
        self._camera_names = tuple(camera_names)
        self._sources = find_sources(about, camera_names, options)
        self.refused: list[str] = []
        """Why inputs of the last pass could not be used."""

    def __iter__(self) -> Iterator[Observation]:
        """Yield every observation that the recording's images and states make up."""
        self.refused = []
        pairing = Pairing(
            self._camera_names,
            self._options.gripper.joint_names,
            tolerance_ns=round(self._options.pairing_tolerance_s * 1e9),
            silence_ns=round(self._options.stale_image_timeout_s * 1e9),
            on_drop=lambda _: None,  # the steps that lack an observation are counted instead
        )
        spoken = ''
        for message in self._recording.messages(self._sources.topics):
            try:
                value = message.value()
                if message.topic == self._sources.instruction:
                    spoken = value.data.strip()
                    continue
                inputs = self._pair(pairing, message, value)
                if inputs is None or not self._is_wanted(inputs.stamp_ns):
                    continue
                observation = self._observation(inputs, spoken)
            except (RecordingError, ObservationError) as error:
                self.refused.append(f'{message.topic}: {error}')
                continue
            yield observation

    def _is_wanted(self, stamp_ns: int) -> bool:
        """Whether the recorded policy acted on it; where that is not known, all are wanted."""
        acted = self._about.acted
        return not acted or stamp_ns in acted

    def _pair(self, pairing: Pairing, message: RecordedMessage, value: Any) -> PairedInputs | None:
        """Do what the policy node does when this message comes."""
        stamp_ns = stamp_to_ns(value.header.stamp)
        if message.topic in self._sources.cameras:
            image = (message.kind, value)
            drop = pairing.add_image(self._sources.cameras[message.topic], image, stamp_ns)
            return pairing.take() if drop is None else None
        if message.topic == self._sources.pose:
            pairing.add_pose(value, stamp_ns)
        else:
            pairing.add_joints(value.name, value.position, stamp_ns)
        return pairing.take() if pairing.waits_for_state else None

    def _observation(self, inputs: PairedInputs, spoken: str) -> Observation:
        """With the instruction and the committed actions that the recorded step had."""
        chunk = self._about.chunks.get(inputs.stamp_ns)
        instruction, committed = spoken, None
        if chunk is not None:
            instruction = chunk.instruction or spoken
            committed = chunk.actions[: chunk.prefix_steps] if chunk.prefix_steps else None
        return Observation(
            images={name: IMAGES[kind](value) for name, (kind, value) in inputs.images.items()},
            proprioception=to_proprioception(inputs.joints, inputs.pose, self._options.gripper),
            instruction=self._options.instruction or instruction,
            stamp_ns=inputs.stamp_ns,
            committed=committed,
        )


def _listed(names: Any) -> str:
    ordered = sorted(names)
    more = f' and {len(ordered) - SHOWN} more' if len(ordered) > SHOWN else ''
    return ', '.join(ordered[:SHOWN]) + more
