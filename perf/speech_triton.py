"""The jobs of the speech benchmark sent to a real tritonserver over gRPC, and the parameters of its engines."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import grpc
import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from polylip.client.triton import TritonStream
from polylip.client.wire import CHANNEL_OPTIONS, Inputs, row, rows
from polylip.perf.speech_worker import Job, Timing
from polylip.serving.engines import Status

DECOUPLED = frozenset({"synthesize", "speech"})  # never on one stream with the others
TIMEOUT_S = 600.0  # a full-size voice on two busy cores


def engine_parameters(repository: Path, profile: str, model: str) -> dict[str, str]:
    """`parameters` of a model's config.pbtxt in a profile."""
    own = repository / model / "configs" / f"{profile}.pbtxt"
    path = own if own.is_file() else repository / model / "config.pbtxt"
    config = text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    return {name: value.string_value for name, value in config.parameters.items()}


def load_model(url: str, model: str) -> None:
    """Load a further model. Not with the others: a full-size voice on a CPU takes longer for `speech` than the server's
    own check of a start waits, because the generated translator always says a whole sentence.
    """
    with grpc.insecure_channel(url, options=CHANNEL_OPTIONS) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        stub.RepositoryModelLoad(service_pb2.RepositoryModelLoadRequest(model_name=model), timeout=TIMEOUT_S)


async def send(plain: TritonStream, decoupled: TritonStream, job: Job) -> Timing:
    """A job through Triton, a batch as that many requests at once. Raises RuntimeError on a status."""
    stream = decoupled if job.model in DECOUPLED else plain
    started = time.perf_counter()
    timings = await asyncio.gather(*(_send_one(stream, job, started) for _ in range(job.batch)))
    return max(timings, key=lambda timing: timing.seconds)


async def _send_one(stream: TritonStream, job: Job, started: float) -> Timing:
    pending = await stream.submit(job.model, rows(_inputs(job)), TIMEOUT_S)
    first_s = spoken_s = 0.0
    text = job.text
    async for answer in pending:
        outputs = row(answer)
        status = Status(str(outputs["STATUS"][0]))
        if status is not Status.OK:
            raise RuntimeError(f"{job.model} ended as {status}: {outputs['STATUS_MESSAGE'][0]}")
        if "AUDIO_CHUNK" in outputs:
            first_s = first_s or time.perf_counter() - started
            spoken_s += outputs["AUDIO_CHUNK"].size / int(outputs["SAMPLE_RATE_HZ"][0])
        else:
            text = str(outputs["SOURCE_TEXT" if job.model == "transcribe" else "TARGET_TEXT"][0])
    seconds = time.perf_counter() - started
    return Timing(seconds, first_s or seconds, spoken_s, text)


def _inputs(job: Job) -> Inputs:
    audio = np.zeros(0, np.float32) if job.audio is None else job.audio
    if job.model == "transcribe":
        return {"AUDIO": audio, "SOURCE_LANGUAGE": job.source}
    if job.model == "translate":
        return {"SOURCE_TEXT": job.text, "DETECTED_LANGUAGE": job.source, "TARGET_LANGUAGE": job.target}
    if job.model == "synthesize":
        return {"TARGET_TEXT": job.text, "TARGET_LANGUAGE": job.target}
    return {"AUDIO": audio, "SOURCE_LANGUAGE": job.source, "TARGET_LANGUAGE": job.target}
