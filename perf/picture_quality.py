"""How good the picture of a dub is: `python -m polylip.perf.picture_quality [--quick] [--syncnet FILE]`.

The networks' precisions against FP32, and a finished dub of the demo clip against its source: likeness outside the
mouth, seams, flicker, offset of lips and sound, and LSE where SyncNet's weights are given. See docs/quality.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from polylip.export.checkpoints import checkpoint_sha256, load_network
from polylip.export.networks import SyncNet
from polylip.perf import experiment
from polylip.perf.demo_clip import make_demo_clip
from polylip.perf.experiment import Result, Setup
from polylip.perf.jitter import less
from polylip.perf.picture_quality_dub import make_dub, measure_dub
from polylip.perf.picture_quality_measures import FRAMES
from polylip.perf.picture_quality_networks import compare_networks
from polylip.perf.sync import LITE_LEAD_MS
from polylip.serving.launcher import running_server

NAME, TITLE = "picture_quality", "Picture quality: precisions of the networks, and a finished dub"
QUICK_SECONDS, QUICK_FRAMES = 6.0, 10  # of the demo clip, otherwise its whole; compared of each kind
NOT_RUN = "not run: weights absent"
NONE = "-"


def run(setup: Setup, syncnet: Path | None = None, fitted: bool = True) -> Result:
    """The whole experiment on a server of its own, the detector fitted to the clip's face.

    Raises InputError where `syncnet` is no SyncNet v2.
    """
    network = None if syncnet is None else load_network("syncnet", syncnet)
    assert network is None or isinstance(network, SyncNet)  # noqa: S101  what the name means
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = make_demo_clip(folder / "demo.mp4", QUICK_SECONDS if setup.quick else None)
        with running_server(setup.server) as server:
            done = make_dub(clip, folder / "dub" / "demo.es.mp4", server.url, setup.profile)
        dub = measure_dub(clip, done, network, QUICK_FRAMES if setup.quick else FRAMES)
        networks = compare_networks(clip, setup.repository, quick=setup.quick, fitted=fitted)
    lse = {"status": NOT_RUN} if syncnet is None else {"status": "measured", "sha256": checkpoint_sha256(syncnet)}
    # Nothing is timed, and the same clip gives the same figures: there is nothing to repeat.
    head = experiment.head(NAME, TITLE, replace(setup, repetitions=1, warm_up=0))
    return {**head, "data": {"networks": networks, "dub": dub, "syncnet": lse}}


def markdown(result: Result) -> str:
    """Lips by precision, detector by precision, and the dub."""
    networks = result["data"]["networks"]
    lines = [
        f"Full-size networks with generated weights, {networks['faces']} faces and {networks['pictures']} pictures of "
        "the demo clip:",
        "",
        "| Wav2Lip | against | SSIM, mean | SSIM, worst | PSNR | mean difference in levels |",
        "|---|---|---|---|---|---|",
        *(_lips_line(row) for row in networks["lips"]),
        "",
        "| S3FD | against | IoU of the best box | comparison of all faces |",
        "|---|---|---|---|",
        *(_detector_line(row) for row in networks["detector"]),
        "",
        "| the finished dub | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in _dub_rows(result).items()),
    ]
    return "\n".join(lines)


def _lips_line(row: Mapping[str, Any]) -> str:
    if row["status"] != "measured":
        return f"| {row['precision']} | {row['status']} | | | | |"
    return (
        f"| {row['precision']} | {row['against']} | {row['ssim_percent']:.3f} % | {row['ssim_worst_percent']:.3f} % "
        f"| {_db(row['psnr_db'])} | {row['mean_levels']:.3f} |"
    )


def _detector_line(row: Mapping[str, Any]) -> str:
    if row["status"] != "measured":
        return f"| {row['precision']} | {row['status']} | | |"
    figures = "; ".join(f"{figure['measure']} {figure['value']:.3f}" for figure in row["figures"])
    return f"| {row['precision']} | {row['against']} | {row['best_box_iou_percent']:.2f} % | {figures} |"


def _dub_rows(result: Result) -> dict[str, str]:
    dub, lite = result["data"]["dub"], result["profile"] == "lite"
    offset, jitter = dub["measured_offset"], dub["jitter"]
    outside, untouched = dub["likeness"]["outside_the_face"], dub["likeness"]["untouched_frames"]
    lead = f"; profile lite's graph opens the mouth {LITE_LEAD_MS:g} ms early" if lite else ""
    return {
        "frames with new lips": f"{dub['share_with_lips']:.1%} of {dub['clip']['frames']}",
        "frames without a face": f"{dub['share_without_face']:.1%}",
        "luma outside the face, frames with new lips": _alike(outside),
        "luma of untouched frames": _alike(untouched),
        "seam, mean (worst twentieth)": f"{_levels(dub['seam'])} ({_levels(dub['seam_worst'])}) levels per px",
        "flicker, mean (of 95 %)": f"{_levels(dub['flicker'])} ({_levels(dub['flicker_worst'])}) of the source",
        "A/V offset, by the client": _ms(dub["av_offset_ms"]),
        "A/V offset, from the finished file": f"{_ms(offset['median_ms'])} (median of {offset['clear']} clear windows "
        f"of {offset['windows']}{lead})",
        "jitter of the face's centre, raw to tracked": f"{jitter['raw']['jitter_px']:.2f} to "
        f"{jitter['tracked']['jitter_px']:.2f} px (-{less(jitter):.0f} %)",
        "mark": dub["marked"],
        **_lse_rows(result["data"]["syncnet"]["status"], dub["lse"]),
    }


def _lse_rows(status: str, lse: Mapping[str, Any] | None) -> dict[str, str]:
    if lse is None:
        return {"LSE-D, LSE-C": status}
    return {
        f"LSE-D, LSE-C of the {name}": f"{one['distance']:.3f}, {one['confidence']:.3f} (offset {one['offset_frames']} "
        f"frames, {one['windows']} windows)"
        for name, one in lse.items()
    }


def _alike(row: Mapping[str, Any]) -> str:
    if not row["pictures"]:
        return NONE
    return (
        f"SSIM {row['ssim_percent']:.2f} % (worst {row['ssim_worst_percent']:.2f} %), PSNR {_db(row['psnr_db'])} "
        f"(worst {_db(row['psnr_worst_db'])}), {row['pictures']} frames"
    )


def _db(value: float | None) -> str:
    return "∞ (identical)" if value is None else f"{value:.1f} dB"


def _ms(value: float | None) -> str:
    return "unclear" if value is None else f"{value:+.1f} ms"


def _levels(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def main() -> int:
    """Run it, write `picture_quality_<profile>.json`, print its tables."""
    parser = experiment.parser(__doc__)
    parser.add_argument("--syncnet", type=Path, metavar="FILE", help="syncnet_v2.model, for LSE-D and LSE-C")
    parser.add_argument("--random-detector", action="store_true", help="one that knows no faces: a minute less")
    arguments = parser.parse_args()
    work = partial(run, syncnet=arguments.syncnet, fitted=not arguments.random_detector)
    return experiment.exit_status(lambda: experiment.complete(arguments, work, markdown))


if __name__ == "__main__":
    sys.exit(main())
