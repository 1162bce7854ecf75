"""Peak client memory for a short and a long clip: `python -m polylip.perf.memory [--short 60] [--long 600]`.

The client runs as its own process against a running server, so that the kernel's peak of that process is the figure.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from polylip.perf.demo_clip import make_demo_clip
from polylip.serving.launcher import ServerOptions, running_server

ALLOWED_RATIO = 1.2  # the long clip may take this much more memory than the short one


def main() -> None:
    """Measure, print, write `memory.json`; exit status 1 when the ratio is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--short", type=float, default=60.0, help="seconds")
    parser.add_argument("--long", type=float, default=600.0, help="seconds")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    options = ServerOptions(log_path=arguments.out / "server.log")
    with tempfile.TemporaryDirectory() as folder, running_server(options) as server:
        rows = [measure_clip(s, server.url, Path(folder)) for s in (arguments.short, arguments.long)]
    ratio = rows[1]["peak_mib"] / rows[0]["peak_mib"]
    result = {"profile": "lite", "clips": rows, "ratio": round(ratio, 3), "allowed_ratio": ALLOWED_RATIO}
    (arguments.out / "memory.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    sys.exit(ratio > ALLOWED_RATIO)


def sentence(result: dict[str, Any]) -> str:
    """The figures in short, for the README."""
    (short, low), (long, high) = ((clip["seconds"] / 60, clip["peak_mib"]) for clip in result["clips"])
    return (
        f"The client's memory hardly grows with the clip: {low:.0f} MiB at its peak for {short:.0f} minute, "
        f"{high:.0f} MiB for {long:.0f} (`make bench-memory`)."
    )


def measure_clip(seconds: float, url: str, folder: Path) -> dict[str, Any]:
    """Dub a demo clip of this length in a process of its own; its peak resident memory in MiB."""
    clip = make_demo_clip(folder / f"{seconds:.0f}.mp4", seconds=seconds)
    command = [sys.executable, "-m", "polylip.client.cli", "dub", str(clip), "--to", "es", "--url", url, "--json"]
    output = folder / "out.mp4"
    with subprocess.Popen([*command, "-o", str(output)], stdout=subprocess.PIPE) as client:
        stdout = client.stdout.read() if client.stdout else b""
        _, status, usage = os.wait4(client.pid, 0)
        client.returncode = os.waitstatus_to_exitcode(status)
    if client.returncode != 0:
        raise RuntimeError(f"dubbing {seconds:.0f} s failed with exit status {client.returncode}")
    report = json.loads(stdout)
    return {
        "seconds": seconds,
        "frames": report["frames"],
        "segments": len(report["segments"]),
        "real_time_factor": round(report["real_time_factor"], 3),
        "peak_mib": round(usage.ru_maxrss / 1024, 1),
        "ring_high_water": report["counters"]["ring_high_water"],
    }


if __name__ == "__main__":
    main()
