"""What to dub live and how, and what can be seen to be wrong with it before anything is opened."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from polylip.client.closing import MAX_SEGMENT_MS, MIN_SEGMENT_MS, Policy
from polylip.client.errors import InputError
from polylip.client.live.formats import Place, place
from polylip.client.live.sink_targets import outlet
from polylip.client.live.source_open import Opener
from polylip.client.media_probe import check_file
from polylip.client.options import check_wishes
from polylip.client.server import ServerChoice
from polylip.client.vad import VadChoice
from polylip.client.wishes import SpeechWishes

DELAY_S = 12.0  # a segment of 10 s, and 2 s for its pause, its words and its first picture
WORK_S = 2.0  # of the delay, for all that comes after a segment's last word
MAX_DELAY_S = 60.0  # of pictures that wait rendered; more is a recording


@dataclass(frozen=True)
class LiveOptions:
    """A source, a sink, and what is between them."""

    source: str  # URL, file, camera, or `-`
    sink: str  # URL, file, playlist, or `-`
    wishes: SpeechWishes
    server: ServerChoice = field(default_factory=ServerChoice)
    delay_s: float = DELAY_S  # from the source to the output, fixed
    face: str | None = None  # as in DubOptions
    segmentation: Policy = Policy.SEMANTIC
    vad: VadChoice = VadChoice.AUTO
    paced: bool | None = None  # read no faster than in real time; None: files, pipes and HTTP
    listen: bool = False  # wait for a sender
    sound_device: str | None = None  # of a camera: its microphone
    sink_format: str | None = None  # None: by the sink's name
    sink_listen: bool = False  # wait for a player
    duration_s: float | None = None  # end after so much of the source
    report: Path | None = None
    mark: bool = True  # as AI-dubbed, in the container's tags
    name: str | None = None  # of a participant of a call

    @property
    def max_segment_ms(self) -> int:
        """Longer segments are split: what is said first must be dubbed before its picture leaves."""
        return min(MAX_SEGMENT_MS, round((self.delay_s - WORK_S) * 1000))


def check_live_options(options: LiveOptions) -> None:
    """What can be seen without opening anything. Raises InputError."""
    check_wishes(options.wishes, options.face, options.server.url)
    _check_ends(options)
    shortest_s = WORK_S + MIN_SEGMENT_MS / 1000
    if not shortest_s <= options.delay_s <= MAX_DELAY_S:
        raise InputError(
            f"a delay of {options.delay_s:g} s cannot be kept; give {shortest_s:g} to {MAX_DELAY_S:g}: a sentence is "
            f"dubbed once it has been said, {DELAY_S:g} leave time for long ones"
        )
    if options.duration_s is not None and options.duration_s <= 0:
        raise InputError(f"a duration of {options.duration_s:g} s is nothing; give more than 0, or leave it out")


def _check_ends(options: LiveOptions) -> None:
    """Whether there is a file to read, and something can be written. Raises InputError."""
    source, sink = place(options.source), place(options.sink)
    if source.scheme == "file":
        check_file(source.path)
    Opener(source, listen=options.listen, sound=options.sound_device)  # refuses to wait where nobody can send
    outlet(sink, options.sink_format, listen=options.sink_listen, list_size=0, tags={}, timescale=1)
    if same_file(source, sink):
        raise InputError(f"{sink.label}: output and input are the same file; choose another output")


def same_file(one: Place, other: Place) -> bool:
    """Whether both are one local file, under whatever names."""
    if one.scheme != "file" or other.scheme != "file":
        return False
    both = one.path.exists() and other.path.exists()
    return one.path.samefile(other.path) if both else one.path.resolve() == other.path.resolve()
