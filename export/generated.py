"""Makes Wav2Lip, S3FD and SyncNet networks with generated weights, for tests and benchmarks without public weights.

They have the form, the size and the cost of the real networks, activations that neither vanish nor explode, and
pictures and boxes that mean something geometrically. They have learnt nothing of speech: see docs/checkpoints.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from polylip.client.errors import PolylipError
from polylip.export.checkpoints import save_checkpoint
from polylip.export.generated_faces import fit_detector, generated_detector, generated_s3fd
from polylip.export.generated_lips import generated_wav2lip
from polylip.export.generated_weights import measure_batch_norms, randomise, structured_pictures
from polylip.export.networks import SyncNet

__all__ = ["fit_detector", "generated_detector", "generated_network"]

PUBLIC_FORMS = {"wav2lip": "training", "s3fd": "bare", "syncnet": "bare"}  # of the public checkpoints
NOTE = "these weights are generated: what is made with them is meaningless"

SYNCNET_FRAMES = 8
EMBEDDING_STD = 0.25  # per component: distances near 11, as between speech and lips that do not belong together


def generated_network(name: str, seed: int = 0) -> nn.Module:
    """`wav2lip`, `s3fd` (which finds no faces: see `generated_detector`) or `syncnet`; the same for the same seed."""
    makers: Mapping[str, Callable[[torch.Generator], nn.Module]] = {
        "wav2lip": generated_wav2lip,
        "s3fd": generated_s3fd,
        "syncnet": _syncnet,
    }
    if name not in makers:
        raise ValueError(f"no network is called {name!r}; there are {', '.join(makers)}")
    with torch.no_grad():
        return makers[name](torch.Generator().manual_seed(seed)).eval()


def _syncnet(generator: torch.Generator) -> SyncNet:
    network = SyncNet()
    randomise(network, generator)
    pictures = structured_pictures(SYNCNET_FRAMES, 224, 224, generator)
    moving = torch.stack([pictures.roll(2 * step, dims=-2) for step in range(5)], dim=2) * 255
    mfcc = 10 * torch.randn(SYNCNET_FRAMES, 1, 13, 20, generator=generator)
    measure_batch_norms(network, {}, moving, mfcc)
    for branch, embedding in zip((network.netfclip, network.netfcaud), network(moving, mfcc), strict=True):
        last = cast(nn.Linear, branch[-1])
        scale: Tensor = EMBEDDING_STD / embedding.std()
        last.weight.mul_(scale)
        last.bias.mul_(scale)
    return network


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m polylip.export.generated",
        description="Write a checkpoint with generated weights, in the public one's form.",
        epilog="example: python -m polylip.export.generated s3fd s3fd.pth --clip talk.mp4",
    )
    parser.add_argument("network", choices=PUBLIC_FORMS, help="which network")
    parser.add_argument("out", type=Path, metavar="OUT", help="file to write")
    parser.add_argument("--clip", type=Path, metavar="FILE", help="s3fd: a clip whose face it shall find")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="other weights")
    options = parser.parse_args(arguments)
    if options.clip and options.network != "s3fd":
        parser.error("only s3fd is fitted to a clip")
    try:
        network = (
            generated_detector(options.clip, seed=options.seed)
            if options.clip
            else generated_network(options.network, options.seed)
        )
        save_checkpoint(network, options.out, PUBLIC_FORMS[options.network])
    except (PolylipError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, PolylipError) else 2
    print(f"{options.out}: {NOTE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
