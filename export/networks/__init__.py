"""The picture branch's networks in torch, with the parameter names and shapes of the public checkpoints."""

from polylip.export.networks.s3fd import S3FD
from polylip.export.networks.syncnet import SyncNet
from polylip.export.networks.wav2lip import Wav2LipGenerator

__all__ = ["S3FD", "SyncNet", "Wav2LipGenerator"]
