"""One camera's thread: reads its source, notices when it hangs, and connects anew by itself.

    opening -> streaming -> ended                       (a file's last picture)
       |           |
       |           +-> stalled -> (the read comes back, or its thread is given up)
       +-----------+-------------> waiting -> opening   (backoff, doubled up to a limit)

A blocked driver cannot be interrupted. A thread whose read does not come back is given up and
gives its source back by itself once it does; so many of these are borne, then none is added.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vla_cache_ros.core.errors import CameraError, ConfigError, PictureError
from vla_cache_ros.core.timing import RateMeter
from vla_cache_ros.nodes.cameras.settings import (
    CameraSettings,
    Clock,
    Frame,
    Opened,
    Source,
    SourceFactory,
)

MAX_STUCK = 3
"""Threads given up that may hang at a time."""

MAX_BAD_PICTURES = 30
"""Damaged pictures in a row after which the source is opened anew."""

_RATE_WINDOW = 60
_SLOW_SHARE = 0.8


@dataclass(frozen=True)
class ReaderSettings:
    """When a source counts as lost, and how it is tried again.

    Attributes:
        stall_timeout_s: Time without a picture after which it is reported; at least three of the
            source's periods.
        give_up_s: Time after that until a blocked read is given up; also the limit of opening.
        first_backoff_s: Wait before the first attempt to connect anew.
        last_backoff_s: Longest wait; it doubles from one attempt to the next.
    """

    stall_timeout_s: float = 1.0
    give_up_s: float = 10.0
    first_backoff_s: float = 0.5
    last_backoff_s: float = 5.0

    def __post_init__(self) -> None:
        """Check the order of the waits.

        Raises:
            ConfigError: A time is not positive, or the last wait is shorter than the first.
        """
        for name in ('stall_timeout_s', 'give_up_s', 'first_backoff_s'):
            if not getattr(self, name) > 0:
                raise ConfigError(f'{name} is {getattr(self, name)}; valid: above 0.')
        if self.last_backoff_s < self.first_backoff_s:
            raise ConfigError(
                f'last_backoff_s {self.last_backoff_s} is below first_backoff_s '
                f'{self.first_backoff_s}; valid: at least that.'
            )

    def backoff_s(self, attempt: int) -> float:
        """Wait before an attempt, seconds; attempts are counted from 0 since the last picture."""
        return min(self.last_backoff_s, self.first_backoff_s * 2 ** min(attempt, 32))


@dataclass(frozen=True)
class CameraStatus:
    """One camera at one moment.

    Attributes:
        state: stopped, opening, streaming, stalled, waiting or ended.
        detail: What is wrong; empty where nothing is.
        frames: Pictures since start.
        rate_hz: Measured over the newest pictures; falls while none comes.
        size_px: Width and height of the newest picture; zeros before the first.
        refused: Setting -> 'asked X, got Y'.
        failures: Times that it could not be opened, failed or hung.
        reconnects: Times that pictures came again after that.
        bad_pictures: Damaged pictures, left out.
        stuck: Threads that hang in the driver now.
    """

    state: str
    detail: str = ''
    frames: int = 0
    rate_hz: float = 0.0
    size_px: tuple[int, int] = (0, 0)
    refused: Mapping[str, str] = field(default_factory=dict[str, str])
    failures: int = 0
    reconnects: int = 0
    bad_pictures: int = 0
    stuck: int = 0


class _Session:
    """One thread and the wish that it ends."""

    def __init__(self, run: Callable[['_Session'], None], name: str) -> None:
        self.stop = threading.Event()
        self.thread = threading.Thread(target=run, args=(self,), name=name, daemon=True)


class CameraReader:
    """Reads one source for as long as it is wanted.

    `start`, `stop`, `watch` and `status` are called from one thread, the owner's.
    """

    def __init__(
        self,
        name: str,
        make_source: SourceFactory,
        on_frame: Callable[[Frame], None],
        asked: CameraSettings,
        settings: ReaderSettings,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        """Prepare; nothing is opened before `start`.

        Args:
            name: The camera's name.
            make_source: Makes a new source for each attempt.
            on_frame: Takes a picture, in the reader's thread; must be quick and must not raise.
            asked: The camera's settings, to which its pictures are compared.
            settings: Timeouts.
            clock: Nanoseconds, monotonic; also stamps the pictures.
        """
        self.name = name
        self._make_source = make_source
        self._on_frame = on_frame
        self._asked = asked
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._session: _Session | None = None
        self._given_up: list[_Session] = []
        self._clear()

    def start(self) -> None:
        """Begin to read; figures start anew."""
        if self._session is None:
            self._clear()
            self._begin()

    def ask_to_stop(self) -> None:
        """Let the thread end; no picture is handed over from now on. Does not wait."""
        with self._lock:
            session, self._session = self._session, None
            self._enter('stopped')
        if session is not None:
            session.stop.set()
            self._given_up.append(session)

    def stop(self, timeout_s: float = 3.0) -> bool:
        """End reading; no picture is handed over after it.

        Returns:
            Whether all threads ended; else one hangs in the driver, and gives its source back by
            itself once its read returns.
        """
        self.ask_to_stop()
        end_ns = time.monotonic_ns() + round(1e9 * timeout_s)
        for session in self._given_up:
            session.thread.join(max(0.0, (end_ns - time.monotonic_ns()) / 1e9))
        self._given_up = [session for session in self._given_up if session.thread.is_alive()]
        return not self._given_up

    def watch(self) -> None:
        """Notice a source that hangs; to be called a few times per second."""
        self._given_up = [session for session in self._given_up if session.thread.is_alive()]
        with self._lock:
            session = self._session
            if self._state == 'streaming' and self._idle_s() > self._stall_timeout_s():
                self._fail('stalled', f'no picture for {self._idle_s():.1f} s')
            is_hanging = self._state in ('opening', 'stalled')
            if session is None or not is_hanging or self._idle_s() < self._give_up_after_s():
                return
            if len(self._given_up) >= MAX_STUCK:
                self._state = 'stalled'
                self._detail = (
                    f'{len(self._given_up) + 1} calls of its driver hang; unplug the camera, or '
                    'restart the node'
                )
                return
            if self._state == 'opening':
                self._fail('stalled', f'it did not open within {self._settings.give_up_s:g} s')
            session.stop.set()
            self._given_up.append(session)
        self._begin()

    def status(self) -> CameraStatus:
        """State and figures now."""
        with self._lock:
            return CameraStatus(
                state=self._state,
                detail=self._detail,
                frames=self._frames,
                rate_hz=self._rate.hz(self._clock()),
                size_px=self._size_px,
                refused=self._all_refused(),
                failures=self._failures,
                reconnects=self._reconnects,
                bad_pictures=self._bad_pictures,
                stuck=sum(session.thread.is_alive() for session in self._given_up),
            )

    # All below: with the lock held, or in the session's thread.

    def _clear(self) -> None:
        self._frames = self._failures = self._reconnects = self._bad_pictures = 0
        self._attempt = 0
        self._is_lost = False
        self._size_px = (0, 0)
        self._opened = Opened()
        self._rate = RateMeter(_RATE_WINDOW)
        self._enter('stopped')

    def _begin(self) -> None:
        session = _Session(self._run, f'camera {self.name}')
        with self._lock:
            self._session = session
            self._enter('opening', self._detail)
        session.thread.start()

    def _enter(self, state: str, detail: str = '') -> None:
        self._state, self._detail = state, detail
        self._progress_ns = self._clock()

    def _fail(self, state: str, detail: str) -> None:
        self._state, self._detail = state, detail
        self._failures += 1
        self._is_lost = True

    def _idle_s(self) -> float:
        return (self._clock() - self._progress_ns) / 1e9

    def _stall_timeout_s(self) -> float:
        rate_hz = self._opened.rate_hz
        return max(self._settings.stall_timeout_s, 3 / rate_hz if rate_hz > 0 else 0.0)

    def _give_up_after_s(self) -> float:
        if self._state == 'opening':
            return self._settings.give_up_s
        return self._stall_timeout_s() + self._settings.give_up_s

    def _run(self, session: _Session) -> None:
        """One attempt after another, until told to stop or a file has ended."""
        while not session.stop.is_set():
            source = self._make_source(self._clock, session.stop.wait)
            try:
                self._set_if_current(session, 'opening')
                opened = source.open()
                with self._lock:
                    if self._session is session:
                        self._opened = opened
                        self._progress_ns = self._clock()
                if self._read_all(session, source):
                    self._set_if_current(session, 'ended')
                    return
                continue  # told to stop
            except CameraError as error:
                reason = str(error)
            except Exception as error:
                # Whatever a driver comes up with, the camera is tried again.
                reason = f'{type(error).__name__}: {error}'
            finally:
                source.close()
            session.stop.wait(self._wait_after(session, reason))

    def _read_all(self, session: _Session, source: Source) -> bool:
        """Hand over every picture; return True at the end of a file, False when told to stop."""
        bad_in_a_row = 0
        while not session.stop.is_set():
            try:
                frame = source.read()
            except PictureError:
                bad_in_a_row += 1
                if bad_in_a_row > MAX_BAD_PICTURES:
                    raise
                with self._lock:
                    self._bad_pictures += self._session is session
                continue
            if frame is None:
                return True
            bad_in_a_row = 0
            with self._lock:
                if self._session is session:
                    self._take(frame)
        return False

    def _take(self, frame: Frame) -> None:
        if self._is_lost:
            self._reconnects += self._frames > 0
            self._rate = RateMeter(_RATE_WINDOW)
            self._is_lost = False
        self._attempt = 0
        self._frames += 1
        self._rate.tick(frame.captured_ns)
        self._size_px = (frame.pixels.shape[1], frame.pixels.shape[0])
        self._enter('streaming')
        self._on_frame(frame)

    def _wait_after(self, session: _Session, reason: str) -> float:
        """Note a failure; return how long to wait before the next attempt, seconds."""
        with self._lock:
            if self._session is not session:
                return 0.0
            wait_s = self._settings.backoff_s(self._attempt)
            self._attempt += 1
            if self._state == 'stalled':  # counted when it was noticed
                self._failures -= 1
            self._fail('waiting', reason)
            return wait_s

    def _set_if_current(self, session: _Session, state: str) -> None:
        with self._lock:
            if self._session is session:
                self._enter(state, self._detail if state == 'opening' else '')

    def _all_refused(self) -> dict[str, str]:
        """What the device refused, and what its pictures show."""
        refused = dict(self._opened.refused)
        if self._frames:
            asked = (self._asked.width_px, self._asked.height_px)
            for name, wanted, got in zip(
                ('width_px', 'height_px'), asked, self._size_px, strict=True
            ):
                refused.pop(name, None)
                if wanted not in (0, got):
                    refused[name] = f'asked {wanted}, got {got}'
        wanted_hz, got_hz = self._asked.frame_rate_hz, self._rate.hz(self._clock())
        if self._frames > _RATE_WINDOW and got_hz < _SLOW_SHARE * wanted_hz:
            refused['frame_rate_hz'] = f'asked {wanted_hz:g}, measured {got_hz:.1f}'
        return refused
