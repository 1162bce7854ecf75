"""Shared memory that the Python models of a profile need: `python docker/shm.py gpu`. The sum is in docs/docker.md.

Triton's Python backend gives each model instance a region in /dev/shm. It starts with 1 MiB, grows by what a batch of
requests and its responses need, and never shrinks. Models on other backends have none.
"""

import math
import sys
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from polylip.serving.dub.request import MAX_FRAME_BYTES, MAX_FRAMES

REPOSITORY = Path(__file__).parents[1] / "model_repository"
MIB = 1 << 20
START_BYTES = MIB  # the Python backend's shm-default-byte-size
GROWTH = 1.1  # the Python backend asks for a tenth more than it needs
IN_FLIGHT = 2  # a batch arrives while the arrays of the one before are still referenced; measured on profile lite
HEADROOM = 2  # for what nobody has counted
STEP_MIB = 64  # Docker's own default; sizes are multiples of it

RATE_HZ = 16_000
SEGMENT_S, VOICE_S, SPOKEN_S = 10, 30, 20  # longest segment, reference voice, and speech of a segment at 24 kHz
FRAME_PX = 360 * 640  # the client's analysis frame
KEY_FRAMES, LIP_FRAMES, QUERIES = 16, 32, 600  # of a call; the client's ring has 600 slots
CANDIDATES, TRACKS = 256, 32
STRING_BYTES = 1024  # a word, or the sentences of a segment

# Elements of the large tensors with open dimensions, per batch entry where a model batches.
ELEMENTS = {
    "AUDIO": SEGMENT_S * RATE_HZ,
    "VOICE": VOICE_S * RATE_HZ,
    "AUDIO_CHUNK": SPOKEN_S * 24_000,
    "FRAMES": FRAME_PX * 3,
    "BOXES": CANDIDATES * 4,
    "SCORES": CANDIDATES,
    "TRACK_BOXES": QUERIES * TRACKS * 4,
    "TRACK_SCORES": QUERIES * TRACKS,
    "MEL": LIP_FRAMES * 80 * 16,
    "AUDIO_OUT": SPOKEN_S * 24_000,
    "CHECKED_AUDIO": SEGMENT_S * RATE_HZ,
    "CHECKED_VOICE": VOICE_S * RATE_HZ,
    "MOUTHS": MAX_FRAMES * 96 * 96 * 3,
}
# Bytes of the large STRING tensors, which hold pictures: the frames of a segment of `dub`, and its mouths as JPEG.
PICTURES = {
    "FRAMES": MAX_FRAME_BYTES,
    "RIDE": MAX_FRAME_BYTES,
    "WANTED": MAX_FRAME_BYTES,
    "MOUTHS_JPEG": MAX_FRAMES * 6 * 1024,
}
OTHER_ELEMENTS = 1024  # of every other: times, ids, words
# `track` does not batch: its key frames are a dimension of its inputs.
UNBATCHED_FACTORS = {"BOXES": KEY_FRAMES, "SCORES": KEY_FRAMES}
BYTES = {"TYPE_BOOL": 1, "TYPE_UINT8": 1, "TYPE_FP32": 4, "TYPE_INT32": 4, "TYPE_INT64": 8, "TYPE_STRING": STRING_BYTES}


def regions_mib(profile: str, repository: Path = REPOSITORY) -> dict[str, int]:
    """Python model -> MiB of the regions of all its instances, at their largest."""
    configs = [_config(folder, profile) for folder in sorted(repository.iterdir()) if folder.is_dir()]
    return {config.name: _regions_mib(config) for config in configs if config.backend == "python"}


def shm_size_mib(profile: str, repository: Path = REPOSITORY) -> int:
    """What the container gets."""
    return math.ceil(sum(regions_mib(profile, repository).values()) * HEADROOM / STEP_MIB) * STEP_MIB


def _regions_mib(config: model_config_pb2.ModelConfig) -> int:
    payload = sum(_tensor_bytes(config, tensor) for tensor in [*config.input, *config.output])
    region = START_BYTES + IN_FLIGHT * GROWTH * payload
    return math.ceil(region / MIB) * (sum(group.count for group in config.instance_group) or 1)


def _tensor_bytes(config: model_config_pb2.ModelConfig, tensor: model_config_pb2.ModelInput) -> int:
    size = BYTES[model_config_pb2.DataType.Name(tensor.data_type)]
    if tensor.data_type == model_config_pb2.DataType.TYPE_STRING and tensor.name in PICTURES:
        return max(1, config.max_batch_size) * PICTURES[tensor.name]
    elements = math.prod(tensor.dims)
    if min(tensor.dims) < 0:
        elements = ELEMENTS.get(tensor.name, OTHER_ELEMENTS) * (
            1 if config.max_batch_size else UNBATCHED_FACTORS.get(tensor.name, 1)
        )
    return max(1, config.max_batch_size) * elements * size


def _config(folder: Path, profile: str) -> model_config_pb2.ModelConfig:
    path = folder / "configs" / f"{profile}.pbtxt"
    text = (path if path.is_file() else folder / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


if __name__ == "__main__":
    for model, mib in regions_mib(sys.argv[1]).items():
        print(f"{model:12}{mib:6} MiB")
    print(f"{'shm_size':12}{shm_size_mib(sys.argv[1]):6} MiB")
