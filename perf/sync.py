"""How well offsets of sound and picture are found and corrected: `python -m polylip.perf.sync [--out DIR]`.

Read sentences, once against an analytic mouth (loudness and articulation of its own) and once against a face whose
mouth profile lite's graph moves, found by its detector and measured as the client does. Offsets and clock skews are
injected; four ways to compare are judged by their errors and by what the corrector makes of them. See docs/sync.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from polylip.client.blend import MouthPaster, cut_face, frame_planes, to_frame
from polylip.client.cuts import thumbnail
from polylip.client.drift import EARLY_MS, EVERY_MS, FAR_MS, NS_PER_S, DriftTracker, SyncCorrector
from polylip.client.envelopes import SMOOTH_MS, STEP_MS, Curve, loudness, motion
from polylip.client.speaker import MouthMeter
from polylip.client.sync import MAX_OFFSET_MS, Estimate, best_shift, last_of, pieces
from polylip.export.lips_lite import build_graph
from polylip.perf.demo_clip import SENTENCES, Camera
from polylip.perf.jitter import KEY_EVERY, one_face, track
from polylip.perf.machine import machine
from polylip.perf.spoken import read_aloud
from polylip.serving.boxes import to_corners
from polylip.serving.engines.cascade import MAX_FACES, Cascade
from polylip.serving.mel import SAMPLE_RATE_HZ, mel_windows
from polylip.serving.tracking import LOOK_AHEAD_MS

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]

SECONDS = 60
PAUSES_S = (0.2, 0.8)  # between sentences, even
NOISES = (0.25, 0.6, 1.0)  # of the mouth's own articulation, as a share of what follows the loudness
MOUTH_HZ = 8.0  # no jaw is faster
ARTICULATION_HZ = 5.0
RATES = ("25 fps", "30 fps", "variable")
RENDERED_RATES = ("30 fps", "15 fps", "variable")
SIZE, FPS = (640, 360), 30  # of the rendered face
LEVELS_NOISE = 1.0  # grey levels that a camera adds
LIPS_BATCH = 16
LITE_LEAD_MS = 12.5  # lite's graph opens the mouth for what is heard from 25 ms before a frame to 50 ms behind it
WINDOWS_S = (2, 5, 10)
OFFSETS_MS = (-300, -250, -200, -150, -120, -80, -45, -40, -30, -20, -10, 0, 10, 20, 30, 40, 45, 80, 120, 150, 200, 250,
              300)  # fmt: skip
SKEWS_PPM = (0, 50, -50, 200, -200)  # in turn, where an offset stays what it is called in spite of it

FORMS = ("E ~ motion", "|dE| ~ motion", "E ~ opening", "dE ~ d(opening)")  # sound ~ mouth; the client uses the last

UNRELATED_MS = 997  # from one pairing of unrelated sound and mouth to the next

CLOCKS_PPM = (-200, -50, 50, 200)
CLOCK_MINUTES = (1, 2, 5)
PACKET_S = 0.02
JITTER_MS = (2.0, 6.0)  # of arrivals: standard deviation of a normal part, mean of an exponential one
CLOCK_SEEDS = 5


@dataclass(frozen=True)
class Mouth:
    """What is seen of a mouth, frame by frame."""

    times_ms: Float64
    opening: Float64
    motion: list[float | None]
    lead_ms: float = 0.0  # by which it was made too early

    def curve(self, form: str) -> Curve:
        """The mouth's side of a form."""
        times = self.times_ms.tolist()
        if form.endswith("~ motion"):
            return motion(times, self.motion)
        opening = Curve(self.times_ms, self.opening)
        return opening if form.endswith("~ opening") else opening.slope(SMOOTH_MS)


def sound_curve(sound: Curve, form: str) -> Curve:
    """The sound's side of a form, from its loudness."""
    if form.startswith("E "):
        return sound
    return sound.slope().size() if form.startswith("|dE|") else sound.slope()


def spoken(seconds: float, seed: int) -> Float32:
    """Sentences in changing order with changing pauses: float32 (samples,) at 16 kHz."""
    rng = np.random.default_rng(seed)
    parts: list[Float32] = []
    wanted = round(seconds * SAMPLE_RATE_HZ)
    while sum(len(part) for part in parts) < wanted:
        for index in rng.permutation(len(SENTENCES)):
            parts += [
                read_aloud(SENTENCES[index]),
                np.zeros(round(rng.uniform(*PAUSES_S) * SAMPLE_RATE_HZ), np.float32),
            ]
    return np.concatenate(parts)[:wanted]


def frame_times(rate: str, seconds: float, seed: int) -> Float64:
    """In ms; `variable` is a camera at 30 fps that now and then leaves out a frame or two."""
    if rate != "variable":
        return np.arange(0.0, seconds * 1000, 1000 / float(rate.split(maxsplit=1)[0]))
    steps = np.random.default_rng(seed).choice([1, 2, 3], round(seconds * FPS), p=[0.7, 0.2, 0.1])
    times = (np.cumsum(steps) - steps[0]) * 1000 / FPS
    return np.asarray(times[times < seconds * 1000])


def analytic_mouth(audio: Float32, noise: float, times_ms: Float64, seed: int) -> Mouth:
    """Low-passed loudness with articulation that the sound does not tell of; still grey levels of no camera."""
    hop = SAMPLE_RATE_HZ * STEP_MS // 1000
    energy = np.sqrt((audio[: len(audio) // hop * hop].reshape(-1, hop).astype(np.float64) ** 2).mean(axis=1))
    follows = _low_pass(energy, MOUTH_HZ)
    own = _low_pass(np.random.default_rng(seed).standard_normal(len(energy)), ARTICULATION_HZ)
    opening = follows / follows.std() + noise * own / own.std()
    seen = np.interp(times_ms, (np.arange(len(opening)) + 0.5) * STEP_MS, opening)
    return Mouth(times_ms, seen, [None, *np.abs(np.diff(seen)).tolist()])


def _low_pass(values: Float64, cut_hz: float) -> Float64:
    """Without delay, on the grid of STEP_MS; 4th order."""
    frequencies = np.fft.rfftfreq(len(values), STEP_MS / 1000)
    return np.fft.irfft(np.fft.rfft(values) / np.sqrt(1 + (frequencies / cut_hz) ** 8), len(values))


@dataclass(frozen=True)
class Film:
    """A speaking face as the client sees it: small pictures, and the face's box in them."""

    times_ms: Float64
    thumbs: list[UInt8]
    boxes: Float64  # corners

    def mouth(self, rate: str, seed: int) -> Mouth:
        """Measured on the frames that a rate leaves of FPS."""
        wanted = frame_times(rate, SECONDS, seed)
        kept = np.unique(np.round(wanted * FPS / 1000).astype(int))
        kept = kept[kept < len(self.thumbs)]
        meter = MouthMeter()
        seen = [meter.measure(self.thumbs[i], {1: tuple(self.boxes[i].tolist())})[1] for i in kept]
        openings, moves = zip(*seen, strict=True)
        return Mouth(self.times_ms[kept], np.array(openings), list(moves), LITE_LEAD_MS)


def film(audio: Float32, seconds: float) -> Film:
    """A still face before a moving camera, found by profile lite's detector and given lite's mouth frame by frame."""
    camera, times_ms = Camera(SIZE), np.arange(0.0, seconds * 1000, 1000 / FPS)
    boxes = _boxes(camera, times_ms)
    lips = ort.InferenceSession(build_graph().SerializeToString(), _options(), providers=["CPUExecutionProvider"])
    rng, paster, thumbs = np.random.default_rng(0), MouthPaster(), []
    padded = np.concatenate([audio, np.zeros(SAMPLE_RATE_HZ, np.float32)])
    for first in range(0, len(times_ms), LIPS_BATCH):
        batch = range(first, min(len(times_ms), first + LIPS_BATCH))
        frames = [av.VideoFrame.from_ndarray(camera.frame(times_ms[i] / 1000), "bgr24") for i in batch]
        pictures = [frame_planes(frame, "yuv420p") for frame in frames]
        cuts = [cut_face(planes, tuple(boxes[i].tolist())) for i, (_, planes) in zip(batch, pictures, strict=True)]
        faces = np.stack([cut.face for cut in cuts if cut is not None])
        mel = mel_windows(padded, np.round(times_ms[batch.start : batch.stop]).astype(np.int64))
        mouths = lips.run(["MOUTHS"], {"MEL": mel, "FACES": faces})[0]
        for i, (pixels, _), cut, mouth in zip(batch, pictures, cuts, mouths, strict=True):
            assert cut is not None  # noqa: S101  the camera never leaves the face
            paster.paste(cut, mouth, 1.0, frame=i, track=1)
            thumb = thumbnail(to_frame(pixels, "yuv420p"))
            noisy = thumb + LEVELS_NOISE * rng.standard_normal(thumb.shape, np.float32)
            thumbs.append(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))
    return Film(times_ms, thumbs, boxes * thumbs[0].shape[1] / SIZE[0])


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return options


def _boxes(camera: Camera, times_ms: Float64) -> Float64:
    """The tracked face, corners (frames, 4), from every KEY_EVERYth frame."""
    detector = Cascade({}, "")
    boxes = np.zeros((len(times_ms), MAX_FACES, 4), np.float32)
    scores = np.zeros((len(times_ms), MAX_FACES), np.float32)
    for key in sorted({*range(0, len(times_ms), KEY_EVERY), len(times_ms) - 1}):
        found, sure = detector.detect(camera.frame(times_ms[key] / 1000)[None])
        boxes[key], scores[key] = found[0], sure[0]
    answers, _ = track(boxes, scores, np.round(times_ms).astype(np.int64), LOOK_AHEAD_MS)
    return to_corners(one_face(answers)[0])


@dataclass(frozen=True)
class Stream:
    """A minute with an injected offset: what was estimated when."""

    offset_ms: float
    skew_ppm: float
    estimates: list[tuple[float, Estimate]]  # at, what

    def truth_ms(self, at_ms: float) -> float:
        return self.offset_ms + at_ms * self.skew_ppm / 1e6

    def errors_ms(self, clear: bool = False) -> list[float]:
        return [
            found.offset_ms - self.truth_ms((found.start_ms + found.end_ms) / 2)
            for _, found in self.estimates
            if found.clear or not clear
        ]

    def corrected(self) -> tuple[bool, float | None]:
        """Whether the corrector moved, and from when on, in seconds, the rest stayed within EARLY_MS."""
        corrector, wrong_ms = SyncCorrector(np.random.default_rng(0)), 0.0
        for at_ms, found in self.estimates:
            corrector.observe(at_ms, found.offset_ms if found.clear else None)
            corrector.pause(at_ms, at_ms + EVERY_MS)
            for time_ms in np.arange(at_ms, at_ms + EVERY_MS, 100):
                if abs(self.truth_ms(time_ms) - corrector.correction_ms(time_ms)) > EARLY_MS:
                    wrong_ms = float(time_ms)
        last_ms = self.estimates[-1][0]
        return corrector.corrections > 0, wrong_ms / 1000 if wrong_ms < last_ms else None


def injected(mouth: Curve, offset_ms: float, skew_ppm: float) -> Curve:
    """The same mouth with the picture late by an offset, and later with the skew."""
    return Curve((mouth.times_ms + offset_ms) * (1 + skew_ppm / 1e6), mouth.values)


def streams(sound: Curve, mouths: Iterable[Mouth], form: str, window_s: int) -> Iterator[Stream]:
    """One for every offset, the mouths in turn."""
    taken = list(mouths)
    heard = sound_curve(sound, form)
    for number, offset_ms in enumerate(OFFSETS_MS):
        skew_ppm = SKEWS_PPM[number % len(SKEWS_PPM)] if not 20 < abs(offset_ms) < 80 else 0
        mouth = taken[number % len(taken)]
        parts = pieces(heard, injected(mouth.curve(form), offset_ms + mouth.lead_ms, skew_ppm))
        estimates = []
        for last in range(window_s, len(parts) + 1, EVERY_MS // 1000):
            found = best_shift(last_of(parts[:last], window_s * 1000))
            if found is not None:
                estimates.append((parts[last - 1].end_ms, found))
        yield Stream(offset_ms, skew_ppm, estimates)


def judge(found: list[Stream]) -> dict[str, Any]:
    """Errors over all windows, and what became of the streams."""
    errors = np.abs(np.concatenate([stream.errors_ms() for stream in found]))
    clear = np.abs(np.concatenate([stream.errors_ms(clear=True) for stream in found]))
    far = [stream.corrected() for stream in found if abs(stream.offset_ms) > FAR_MS]
    near = [stream.corrected()[0] for stream in found if abs(stream.offset_ms) <= EARLY_MS]
    times = [from_s for moved, from_s in far if moved and from_s is not None]
    return {
        "windows": len(errors),
        "mae_ms": round(float(errors.mean()), 1),
        "within_20": round(float((errors <= 20).mean()), 3),
        "within_40": round(float((errors <= 40).mean()), 3),
        "clear": round(len(clear) / len(errors), 3),
        "clear_p99_ms": round(float(np.percentile(clear, 99)), 1) if len(clear) else None,
        "detected": round(len(times) / len(far), 3),
        "false_alarms": round(sum(near) / len(near), 3),
        "resync_s": round(float(np.median(times)), 1) if times else None,
    }


def measure_unrelated(audio: Float32, mouths: list[Mouth]) -> list[dict[str, Any]]:
    """How often the client's form finds something clear between mouths and the same speech backwards."""
    backwards = loudness(audio[::-1], 0.0, silent_around_ms=MAX_OFFSET_MS)
    heard, rows = sound_curve(backwards, FORMS[-1]), []
    curves = [
        injected(mouth.curve(FORMS[-1]), shift_ms, 0.0) for mouth in mouths for shift_ms in range(0, 5000, UNRELATED_MS)
    ]
    pairs = [pieces(heard, curve) for curve in curves]
    for window_s in WINDOWS_S:
        ends = [(parts, last) for parts in pairs for last in range(window_s, len(parts) + 1)]
        found = [best_shift(last_of(parts[:last], window_s * 1000)) for parts, last in ends]
        clear = sum(one is not None and one.clear for one in found)
        rows.append({"window_s": window_s, "windows": len(found), "clear": round(clear / len(found), 4)})
    return rows


def measure_clocks() -> list[dict[str, Any]]:
    """Skews found from packets that arrive with jitter: the largest error in ppm of a few seeds, by minutes heard."""
    rows = []
    for minutes in CLOCK_MINUTES:
        errors = []
        for skew_ppm in CLOCKS_PPM:
            for seed in range(CLOCK_SEEDS):
                found = clock(skew_ppm, minutes, seed).skew_ppm
                errors.append(abs(found - skew_ppm) if found is not None else None)
        known = [error for error in errors if error is not None]
        worst = round(max(known), 1) if known else None
        rows.append({"minutes": minutes, "runs": len(errors), "known": len(known), "worst_ppm": worst})
    return rows


def clock(skew_ppm: float, minutes: float, seed: int) -> DriftTracker:
    """A stream whose own clock is slow by `skew_ppm`."""
    rng, tracker = np.random.default_rng(seed), DriftTracker()
    media_s = np.arange(round(minutes * 60 / PACKET_S)) * PACKET_S
    late_ms = np.abs(rng.normal(0, JITTER_MS[0], len(media_s))) + rng.exponential(JITTER_MS[1], len(media_s))
    clock_s = media_s * (1 + skew_ppm / 1e6) + late_ms / 1000
    for media, arrived in zip(media_s, clock_s, strict=True):
        tracker.add(round(media * NS_PER_S), round(arrived * NS_PER_S))
    return tracker


def measure_all() -> dict[str, Any]:
    """All rows of the page."""
    audio = spoken(SECONDS, seed=0)
    sound = loudness(audio, 0.0, silent_around_ms=MAX_OFFSET_MS)
    kinds: dict[str, list[Mouth]] = {}
    for noise in NOISES:
        kinds[f"analytic {noise:g}"] = [
            analytic_mouth(audio, noise, frame_times(rate, SECONDS, seed), seed) for seed, rate in enumerate(RATES)
        ]
    shown = film(audio, SECONDS)
    kinds["rendered"] = [shown.mouth(rate, seed) for seed, rate in enumerate(RENDERED_RATES)]
    rows = [
        {"mouth": kind, "form": form, "window_s": window_s, **judge(list(streams(sound, mouths, form, window_s)))}
        for kind, mouths in kinds.items()
        for form in FORMS
        for window_s in WINDOWS_S
    ]
    unrelated = measure_unrelated(audio, [mouth for mouths in kinds.values() for mouth in mouths])
    return {
        "seconds": SECONDS,
        "voice": "flite rms",
        "offsets": rows,
        "unrelated": unrelated,
        "clocks": measure_clocks(),
    }


def table(result: dict[str, Any]) -> str:
    """Offsets, what is not related, clocks."""
    lines = [
        "| mouth | compared | window | MAE | within 20 / 40 ms | clear | p99 of these | detected | false alarms "
        "| in sync after |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["offsets"]:
        p99 = "-" if row["clear_p99_ms"] is None else f"{row['clear_p99_ms']:.0f} ms"
        after = "-" if row["resync_s"] is None else f"{row['resync_s']:.0f} s"
        lines.append(
            f"| {row['mouth']} | {row['form'].replace('|', chr(92) + '|')} | {row['window_s']} s "
            f"| {row['mae_ms']:.0f} ms | {row['within_20']:.0%} / {row['within_40']:.0%} | {row['clear']:.0%} | {p99} "
            f"| {row['detected']:.0%} | {row['false_alarms']:.0%} | {after} |"
        )
    lines += ["", "| window | unrelated windows | clear all the same |", "|---|---|---|"]
    for row in result["unrelated"]:
        lines.append(f"| {row['window_s']} s | {row['windows']} | {row['clear']:.2%} |")
    lines += ["", "| minutes heard | runs | skew known | largest error |", "|---|---|---|---|"]
    for row in result["clocks"]:
        worst = "-" if row["worst_ppm"] is None else f"{row['worst_ppm']:.1f} ppm"
        lines.append(f"| {row['minutes']} | {row['runs']} | {row['known']} | {worst} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the tables, write `sync.json`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    result = {"machine": machine(), **measure_all()}
    path = arguments.out / "sync.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{table(result)}\n\n{path}, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
