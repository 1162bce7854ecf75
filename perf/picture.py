"""Real-time factor of the picture branch alone: `python -m polylip.perf.picture [--clip FILE] [--out DIR]`.

Decoding, key frames, tracking, lips on every frame, blending and encoding of a 720p clip through profile cpu, with the
clip's own sound in the place of a dub, so that no frame goes without lips. Detector and lips are the full-size networks
with generated weights, the detector fitted to the clip's face.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from polylip.client.faces import FacesBranch
from polylip.client.media_in import AudioReader, MediaInfo, VideoReader, probe_media
from polylip.client.media_out import MediaWriter, output_channels, output_sample_rate
from polylip.client.mix import AudioBed, Float32
from polylip.client.pulse import Pulse
from polylip.client.render import Renderer
from polylip.client.results import Status
from polylip.client.ring import FrameRing
from polylip.client.segmentation import SPEECH_RATE_HZ, Segment
from polylip.client.speaker import SpeakerChooser
from polylip.client.timeline import Timeline
from polylip.client.triton import TritonClient
from polylip.client.visibility import frames_around
from polylip.export.generated import generated_detector
from polylip.perf.demo_clip import make_demo_clip
from polylip.perf.generated_repository import make_generated_repository
from polylip.perf.machine import machine
from polylip.serving.doctor import PICTURE_MODELS
from polylip.serving.launcher import ServerOptions, running_server

RUNS = 3
SIZE, FPS, SECONDS = (1280, 720), 25, 20.0
SEGMENT_S = 5.0  # of the sound that takes the place of a dub


@dataclass(frozen=True)
class Run:
    """One pass over the clip."""

    real_time_factor: float
    frames: int
    frames_lipsynced: int
    key_frames_per_s: float
    client_cpu_s_per_s: float  # CPU seconds per second of video: decoding, blending, encoding, gRPC
    server_cpu_s_per_s: float  # of the whole server
    seam: float | None
    flicker: float | None


def main() -> None:
    """Run the benchmark, print its table, write `picture.json`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clip", type=Path, help="another clip than the demo at 720p")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--runs", type=int, default=RUNS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = arguments.clip or make_demo_clip(folder / "demo_720p.mp4", seconds=SECONDS, size=SIZE, fps=FPS)
        repository = make_generated_repository(folder / "repository", detector=generated_detector(clip))
        options = ServerOptions(profile="cpu", model_repository=repository, models=tuple(PICTURE_MODELS))
        with running_server(options) as server:
            runs = [measure(clip, server.url, server.guard_pid, folder) for _ in range(arguments.runs + 1)][1:]
        result = {"weights": "generated", "profile": "cpu", "machine": machine(), **_describe(clip)}
    result["runs"] = [asdict(run) for run in runs]
    path = arguments.out / "picture.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{table(result)}\n\n{path}")


def measure(clip: Path, url: str, server_pid: int, folder: Path) -> Run:
    """Send the whole clip through the picture branch once."""
    info = probe_media(clip)
    before, started = _cpu_s(server_pid), time.monotonic()
    faces, renderer = asyncio.run(_run(info, url, folder))
    wall_s = time.monotonic() - started
    after = _cpu_s(server_pid)
    seconds = info.duration_s or renderer.position_ms / 1000
    return Run(
        real_time_factor=wall_s / seconds,
        frames=renderer.counts.frames,
        frames_lipsynced=renderer.counts.lipsynced,
        key_frames_per_s=faces.keys.total / seconds,
        client_cpu_s_per_s=(after[0] - before[0]) / seconds,
        server_cpu_s_per_s=(after[1] - before[1]) / seconds,
        seam=renderer.quality.seam,
        flicker=renderer.quality.flicker,
    )


async def _run(info: MediaInfo, url: str, folder: Path) -> tuple[FacesBranch, Renderer]:
    pulse, fps = Pulse(), float(info.frame_rate)
    timeline, ring = Timeline(None, pulse), FrameRing(fps, pulse, frames_around(fps))
    bed = AudioBed(output_sample_rate(info), output_channels(info))
    _echo_everything(info, timeline, bed)
    writer = await asyncio.to_thread(MediaWriter, folder / "out.mp4", info)
    try:
        async with TritonClient(url) as client, client.stream() as faces_stream, client.stream() as lips_stream:
            renderer = Renderer(
                info,
                ring=ring,
                timeline=timeline,
                chooser=SpeakerChooser(info.width, info.height, None),
                bed=bed,
                stream=lips_stream,
                writer=writer,
                pulse=pulse,
                on_progress=lambda _time, _frames: None,
            )
            faces = FacesBranch(info, ring, faces_stream)
            with closing(VideoReader(info)) as analysis, closing(VideoReader(info, info.planar_format)) as pictures:
                async with asyncio.TaskGroup() as group:
                    group.create_task(faces.run(analysis))
                    group.create_task(renderer.run(pictures))
        await asyncio.to_thread(writer.finish, folder / "out.mp4")
    finally:
        await asyncio.to_thread(writer.discard)
    return faces, renderer


def _echo_everything(info: MediaInfo, timeline: Timeline, bed: AudioBed) -> None:
    """Put the clip's own sound on the timeline as if it were the dub of all of it."""
    reader = AudioReader(info, bed.sample_rate_hz, output_channels(info))
    try:
        pieces = []
        while (piece := reader.read(SEGMENT_S)) is not None:
            pieces.append(piece)
    finally:
        reader.close()
    start_ms = 0
    for index, (native, mono) in enumerate(pieces):
        bed.append(native)
        _echo(timeline, index, start_ms, native, mono)
        start_ms += len(mono) * 1000 // SPEECH_RATE_HZ
    timeline.advance(float("inf"))


def _echo(timeline: Timeline, index: int, start_ms: int, native: Float32, mono: Float32) -> None:
    end_ms = start_ms + len(mono) * 1000 // SPEECH_RATE_HZ
    dub = timeline.add(Segment(index, start_ms, end_ms, mono))
    timeline.place(dub)
    timeline.append(dub, mono, native.mean(axis=0))
    timeline.end(dub, Status.DUBBED)


def _cpu_s(server_pid: int) -> tuple[float, float]:
    """CPU seconds so far of this process and of the server's processes."""
    guard = psutil.Process(server_pid)
    times = [process.cpu_times() for process in (psutil.Process(), *guard.children(recursive=True))]
    used = [t.user + t.system for t in times]
    return used[0], sum(used[1:])


def _describe(clip: Path) -> dict[str, Any]:
    info = probe_media(clip)
    return {
        "clip": clip.name,
        "size": f"{info.width}x{info.height}",
        "fps": float(info.frame_rate),
        "duration_s": info.duration_s,
        "cores": os.cpu_count(),
    }


def table(result: dict[str, Any]) -> str:
    """Median of the runs in one row, with the spread of the real-time factor."""

    def median(name: str) -> float:
        return float(statistics.median(run[name] for run in result["runs"]))

    here, factors = result["machine"], [run["real_time_factor"] for run in result["runs"]]
    return "\n".join(
        [
            f"Picture branch alone, profile `{result['profile']}`, {result['weights']} weights, {here['cores']} cores "
            f"({here['cpu']}; {', '.join(here['instruction_sets'])}), lips on every frame; median, lowest to highest:",
            "",
            "| clip | key frames/s | real-time factor | client CPU s per s | server CPU s per s |",
            "|---|---|---|---|---|",
            f"| {result['clip']}, {result['size']}, {result['fps']:g} fps | {median('key_frames_per_s'):.1f} "
            f"| **{median('real_time_factor'):.2f}** ({min(factors):.2f} to {max(factors):.2f}) "
            f"| {median('client_cpu_s_per_s'):.2f} | {median('server_cpu_s_per_s'):.2f} |",
        ]
    )


if __name__ == "__main__":
    main()
