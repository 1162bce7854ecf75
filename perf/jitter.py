"""Jitter and error of tracked boxes against raw detections: `python -m polylip.perf.jitter [--clip FILE] [--out DIR]`.

Raw detections are made on every frame, tracks from every fifth of the same detections, one key frame per call as a live
stream sends them. Synthetic heads have a known truth; on a clip the lite profile's detector runs. See docs/tracking.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from polylip.client.faces import Letterbox
from polylip.client.media_in import VideoReader, probe_media
from polylip.perf.machine import machine
from polylip.serving.boxes import MATCH_IOU, detections, iou, to_corners
from polylip.serving.engines.cascade import Cascade
from polylip.serving.tracking import LOOK_AHEAD_MS, Tracker, Tracks

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

KEY_EVERY = 5  # frames
FRAME_RATES = (25, 30)
SECONDS = 20
SEEDS = 5
LOOK_AHEADS_MS = (0, 200, 400, 600, 800)
CENTRE_PX = (320.0, 180.0)  # of 640 x 360
SIDE_PX = 100.0
OUTLIER_PX = 30.0
MEAN_FRAMES = 15  # of a clip, half a second
SPEED_CANDIDATES = 256  # of each of three faces

HEADS = {"still": (0.0, 0.0), "slow": (60.0, 0.5), "fast": (80.0, 1.0)}  # sway to each side in px, frequency in Hz


@dataclass(frozen=True)
class Detector:
    """How detections lie about the truth, in px for a face of SIDE_PX."""

    edge_px: float  # standard deviation of each edge, independent
    scale_step: float = 1.0  # above 1: boxes are square, their side one of the powers of this
    scale_sd: float = 0.0  # standard deviation of the logarithm of the side before it is rounded to a step
    missed: float = 0.0  # share of frames without detection
    outliers: float = 0.0  # share of frames with a box that is OUTLIER_PX off


DETECTORS = {
    "white 1.5 px": Detector(1.5),
    "white 3 px": Detector(3.0),
    "cascade-like": Detector(2.0, scale_step=1.1, scale_sd=0.04, missed=0.05, outliers=0.02),
}


@dataclass(frozen=True)
class Quality:
    """Of boxes whose truth is known. Jitter is the standard deviation of the second difference of what is not truth."""

    jitter_px: float  # of the centre, x and y
    size_jitter_px: float  # of width and height
    whole_jitter_px: float  # of the centre, the head's own movement included
    mean_error_px: float  # distance of the centre
    rms_error_px: float


def head(name: str, times_s: Float64) -> Float64:
    """Centre and size (frames, 4) of a synthetic head."""
    sway_px, frequency_hz = HEADS[name]
    boxes = np.tile([*CENTRE_PX, SIDE_PX, SIDE_PX], (len(times_s), 1))
    boxes[:, 0] += sway_px * np.sin(2 * np.pi * frequency_hz * times_s)
    return boxes


def detect(truth: Float64, detector: Detector, seed: int) -> tuple[Float64, Bool]:
    """Centre and size (frames, 4) as detected on every frame, and where there is a detection at all."""
    random = np.random.default_rng(seed)
    low, high = random.normal(0.0, detector.edge_px, (2, len(truth), 2))
    found = truth.copy()
    found[:, :2] += (low + high) / 2
    found[:, 2:] += high - low
    if detector.scale_step > 1.0:
        step = np.log(detector.scale_step)
        sides = np.log(truth[:, 2]) + random.normal(0.0, detector.scale_sd, len(truth))
        found[:, 2:] = np.exp(np.round(sides / step) * step)[:, None]
    off = random.random(len(truth)) < detector.outliers
    angle = random.uniform(0.0, 2.0 * np.pi, len(truth))
    found[off, :2] += OUTLIER_PX * np.stack([np.cos(angle), np.sin(angle)], axis=1)[off]
    seen = random.random(len(truth)) >= detector.missed
    seen[: KEY_EVERY + 1] = True  # a stream that starts with a face
    return found, seen


def track(boxes: Float32, scores: Float32, frame_ms: Int64, look_ahead_ms: int) -> tuple[list[Tracks], int]:
    """Answers for all frames from the candidates (frames, k, 4) of every fifth, and how many frames were detected on.

    The first and the last frame are key frames, the last one answers for all that is left.
    """
    tracker, answers, asked = Tracker(), [], 0
    keys = sorted({*range(0, len(frame_ms), KEY_EVERY), len(frame_ms) - 1})
    for key in keys:
        until = len(frame_ms) if key == keys[-1] else int(np.sum(frame_ms <= frame_ms[key] - look_ahead_ms))
        now = slice(key, key + 1)
        answers.append(tracker.update(boxes[now], scores[now], frame_ms[now], frame_ms[asked:until]))
        asked = until
    return answers, len(keys)


def one_face(answers: Iterable[Tracks]) -> tuple[Float64, Bool]:
    """Centre and size (frames, 4) of the track that is seen most, and where it is seen."""
    answers = list(answers)
    seen = np.concatenate([ids for tracks in answers for ids in tracks.scores * 0 + tracks.ids])
    main = np.bincount(seen.astype(np.int64)).argmax()
    boxes: list[Float64] = []
    for tracks in answers:
        column = np.flatnonzero(tracks.ids == main)
        none = np.zeros((len(tracks.boxes), 4), np.float32)
        boxes.extend(tracks.boxes[:, column[0]] if len(column) else none)
    return centred(np.array(boxes, np.float64)), np.array(boxes).any(axis=1)


def centred(corners: Float64) -> Float64:
    """Corners (n, 4) -> centre and size (n, 4)."""
    sizes = corners[:, 2:] - corners[:, :2]
    return np.concatenate([corners[:, :2] + sizes / 2, sizes], axis=1)


def held(found: Float64, seen: Bool) -> Float64:
    """Raw boxes (frames, 4): a frame without detection keeps the one before."""
    return np.asarray(found[np.maximum.accumulate(np.where(seen, np.arange(len(seen)), 0))])


def jitter(values: Float64) -> float:
    """Standard deviation of the second difference over frames, of all columns."""
    return float(np.sqrt(np.mean(np.var(np.diff(values, n=2, axis=0), axis=0))))


def quality(boxes: Float64, truth: Float64) -> Quality:
    """Both are centre and size (frames, 4)."""
    off = boxes - truth
    distance = np.hypot(off[:, 0], off[:, 1])
    return Quality(
        jitter(off[:, :2]),
        jitter(off[:, 2:]),
        jitter(boxes[:, :2]),
        float(distance.mean()),
        float(np.sqrt(np.mean(distance**2))),
    )


def measure_head(name: str, detector: str, frame_rate: int, look_ahead_ms: int, seeds: int = SEEDS) -> dict[str, Any]:
    """Raw and tracked quality of one synthetic head, the mean over some seeds."""
    frame_ms = np.round(np.arange(SECONDS * frame_rate + 1) * 1000 / frame_rate).astype(np.int64)
    truth = head(name, frame_ms / 1000)
    raw, tracked, passes = [], [], 0
    for seed in range(seeds):
        found, seen = detect(truth, DETECTORS[detector], seed)
        scores = np.where(seen, 0.9, 0.0).astype(np.float32)[:, None]
        answers, passes = track(to_corners(found).astype(np.float32)[:, None], scores, frame_ms, look_ahead_ms)
        raw.append(quality(held(found, seen), truth))
        tracked.append(quality(one_face(answers)[0], truth))
    return {
        "head": name,
        "detector": detector,
        "frame_rate": frame_rate,
        "look_ahead_ms": look_ahead_ms,
        "frames": len(frame_ms),
        "detector_passes": passes,
        "raw": _mean(raw),
        "tracked": _mean(tracked),
        "truth_jitter_px": round(jitter(truth[:, :2]), 3),
    }


def measure_clip(path: Path, look_ahead_ms: int = LOOK_AHEAD_MS) -> dict[str, Any]:
    """Raw and tracked jitter of the main face of a clip, which has no known truth."""
    frame_ms, boxes, scores = _detect_clip(path)
    answers, passes = track(boxes, scores, frame_ms, look_ahead_ms)
    tracked, seen = one_face(answers)
    raw, found = _same_face(boxes, scores, tracked)
    both = np.flatnonzero(seen)
    raw, tracked = held(raw, found)[both[0] : both[-1] + 1], tracked[both[0] : both[-1] + 1]
    return {
        "clip": path.name,
        "frames": len(frame_ms),
        "detector_passes": passes,
        "frames_with_face": int(seen.sum()),
        "raw": _clip_quality(raw, raw),
        "tracked": _clip_quality(tracked, raw),
    }


def _clip_quality(boxes: Float64, raw: Float64) -> dict[str, float]:
    """Jitter, and how far the centre is off the running mean of the raw boxes, the nearest thing to a truth."""
    edge = MEAN_FRAMES // 2
    weights = np.full(MEAN_FRAMES, 1.0 / MEAN_FRAMES)
    mean = np.stack([np.convolve(raw[:, column], weights, "valid") for column in (0, 1)], axis=1)
    off = np.linalg.norm(boxes[edge : len(boxes) - edge, :2] - mean, axis=1)
    return {
        "jitter_px": round(jitter(boxes[:, :2]), 3),
        "size_jitter_px": round(jitter(boxes[:, 2:]), 3),
        "rms_error_px": round(float(np.sqrt(np.mean(off**2))), 3),
    }


def measure_speed(calls: int = 40) -> dict[str, Any]:
    """CPU time of the tracker per key frame, five to a call, for three faces with SPEED_CANDIDATES detections each."""
    random = np.random.default_rng(0)
    faces = np.array([[120.0, 100.0, 60.0, 60.0], [320.0, 180.0, 100.0, 100.0], [520.0, 220.0, 80.0, 80.0]])
    tracker, taken_ms = Tracker(), []
    for call in range(calls):
        boxes = np.tile(faces, (KEY_EVERY, SPEED_CANDIDATES, 1))
        corners = to_corners((boxes + random.normal(0.0, 3.0, boxes.shape)).reshape(-1, 4)).astype(np.float32)
        scores = random.uniform(0.05, 1.0, boxes.shape[:2]).astype(np.float32)
        key_ms = 200 * np.arange(call * KEY_EVERY, (call + 1) * KEY_EVERY)
        query_ms = np.arange(key_ms[0], key_ms[-1] + 200, 40) - LOOK_AHEAD_MS
        start_s = time.process_time()  # other programs do not count
        tracker.update(corners.reshape(boxes.shape), scores, key_ms, query_ms)
        taken_ms.append((time.process_time() - start_s) * 1000 / KEY_EVERY)
    return {
        "faces": len(faces),
        "candidates": len(faces) * SPEED_CANDIDATES,
        "ms_per_key_frame": round(float(np.median(taken_ms)), 2),
    }


def _detect_clip(path: Path) -> tuple[Int64, Float32, Float32]:
    """Frame times (n,), candidates (n, k, 4) and their scores (n, k) of every frame, in the analysis picture."""
    info = probe_media(path)
    letterbox, cascade, reader = Letterbox(info.width, info.height), Cascade({}, ""), VideoReader(info)
    times, boxes, scores = [], [], []
    while batch := reader.read(1):
        found_boxes, found_scores = cascade.detect(letterbox.shrink(batch[0][1])[None])
        times.append(round(batch[0][0]))
        boxes.append(found_boxes[0])
        scores.append(found_scores[0])
    reader.close()
    return np.array(times, np.int64), np.array(boxes), np.array(scores)


def _same_face(boxes: Float32, scores: Float32, tracked: Float64) -> tuple[Float64, Bool]:
    """Of each frame's detections, the one (frames, 4) that overlaps the tracked box most, and where there is one."""
    raw, found = np.zeros_like(tracked), np.zeros(len(tracked), np.bool_)
    for i, box in enumerate(tracked):
        candidates, _ = detections(boxes[i], scores[i])
        if len(candidates) and box[2] > 0:
            overlap = iou(to_corners(box[None]), to_corners(candidates))[0]
            raw[i], found[i] = candidates[overlap.argmax()], overlap.max() >= MATCH_IOU
    return raw, found


def _mean(qualities: list[Quality]) -> dict[str, float]:
    rows = [asdict(quality) for quality in qualities]
    return {name: round(float(np.mean([row[name] for row in rows])), 3) for name in rows[0]}


def less(row: dict[str, Any], name: str = "jitter_px") -> float:
    """By how many percent the tracked figure is lower than the raw one."""
    return float(100.0 * (1.0 - row["tracked"][name] / row["raw"][name]))


def markdown(result: dict[str, Any]) -> str:
    """The tables of docs/tracking.md."""
    heads, look_ahead_ms = result["heads"], result["look_ahead_ms"]
    lines = [
        f"Every fifth frame detected, look-ahead {look_ahead_ms} ms, {SECONDS} s, mean of {result['seeds']} seeds; px, "
        "raw detections on every frame → tracked:",
        "",
        "| head | detections | fps | centre jitter | whole (head) | size jitter | mean error | rms error | passes/s |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_head_line(row) for row in heads if row["look_ahead_ms"] == look_ahead_ms),
        "",
        "| look-ahead | " + " | ".join(HEADS) + " |",
        "|---|" + "---|" * len(HEADS),
    ]
    for shorter_ms in LOOK_AHEADS_MS:
        rows = [row for row in heads if row["look_ahead_ms"] == shorter_ms]
        cells = (_cell([row for row in rows if row["head"] == name]) for name in HEADS)
        lines.append(f"| {shorter_ms} ms | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| clip | frames | detected on | centre jitter | size jitter | rms off the mean |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["clips"]:
        off = f"{row['raw']['rms_error_px']:.2f} → {row['tracked']['rms_error_px']:.2f}"
        changes = f"{_change(row, 'jitter_px')} | {_change(row, 'size_jitter_px')} | {off}"
        lines.append(f"| {row['clip']} | {row['frames']} | {row['detector_passes']} | {changes} |")
    speed, cpu = result["speed"], result["machine"]["cpu"]
    time_ms = f"{speed['ms_per_key_frame']:.2f} ms of CPU time per key frame ({cpu})"
    lines += ["", f"{speed['faces']} faces with {speed['candidates']} candidates take {time_ms}."]
    return "\n".join(lines)


def _head_line(row: dict[str, Any]) -> str:
    raw, tracked = row["raw"], row["tracked"]
    passes = (row["detector_passes"] - 1) * row["frame_rate"] / (row["frames"] - 1)
    return (
        f"| {row['head']} | {row['detector']} | {row['frame_rate']} | {_change(row, 'jitter_px')} "
        f"| {raw['whole_jitter_px']:.1f} → {tracked['whole_jitter_px']:.1f} ({row['truth_jitter_px']:.1f}) "
        f"| {_change(row, 'size_jitter_px')} | {raw['mean_error_px']:.2f} → {tracked['mean_error_px']:.2f} "
        f"| {raw['rms_error_px']:.2f} → {tracked['rms_error_px']:.2f} | {row['frame_rate']} → {passes:.0f} |"
    )


def _change(row: dict[str, Any], name: str) -> str:
    return f"{row['raw'][name]:.1f} → {row['tracked'][name]:.2f} (-{less(row, name):.1f} %)"


def _cell(rows: list[dict[str, Any]]) -> str:
    """The worst of some rows: least reduction of jitter, and largest error over raw."""
    jitter_less = min(less(row) for row in rows)
    error = max(row["tracked"]["mean_error_px"] / row["raw"]["mean_error_px"] for row in rows)
    return f"-{jitter_less:.1f} %, {error:.2f} of raw"


def main() -> None:
    """Measure, print the tables, write `jitter.json`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clip", type=Path, action="append", default=[], help="a clip with a face")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    heads = [
        measure_head(name, detector, frame_rate, look_ahead_ms, arguments.seeds)
        for look_ahead_ms in LOOK_AHEADS_MS
        for name in HEADS
        for detector in DETECTORS
        for frame_rate in FRAME_RATES
    ]
    result = {
        "machine": machine(),
        "key_every": KEY_EVERY,
        "look_ahead_ms": LOOK_AHEAD_MS,
        "seeds": arguments.seeds,
        "speed": measure_speed(),
        "heads": heads,
        "clips": [measure_clip(clip) for clip in arguments.clip],
    }
    path = arguments.out / "jitter.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(markdown(result))
    print(f"\n{path}")


if __name__ == "__main__":
    main()
