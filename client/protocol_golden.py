"""The golden files of the protocol: `python -m polylip.client.protocol_golden CLIP` makes them anew from a clip.

A request that every client must make of the golden segment, and an answer that every client must read in the same way.
"""

from __future__ import annotations

import sys
from pathlib import Path

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from polylip.client.dub_stream import DubAnswer, DubSegment
from polylip.client.segment_folder import answer_fields, cut_segment, read_segment, write_json
from polylip.client.wire import CHANNEL_OPTIONS, SequencePosition, infer_request, read_outputs

FOLDER = Path(__file__).resolve().parent / "protocol" / "golden"
REQUEST, RESPONSE, READ = "request.bin", "response.bin", "response.json"
REQUEST_ID = "golden"
SEQUENCE = SequencePosition(4611686018427387905, start=True, end=True, timeout_s=30.0)  # over 2^53: no float holds it
TARGET_LANGUAGE = "es"
EVERY, QUALITY = 20, 60  # frames of the clip to one of the segment, and of its JPEGs: the files stay small
CALL_S = 60.0


def golden_request(segment: DubSegment, source_language: str) -> service_pb2.ModelInferRequest:
    """Of the golden segment."""
    inputs = dict(segment.inputs(source_language, TARGET_LANGUAGE)) | {"MOUTH_FORMAT": "raw"}
    return infer_request("dub", inputs, REQUEST_ID, SEQUENCE)


def read_answer(response: service_pb2.ModelInferResponse) -> DubAnswer:
    """What a response says."""
    return DubAnswer.of(read_outputs(response))


def make(clip: Path, url: str, folder: Path = FOLDER) -> None:
    """All of them; the answer is that of the server at `url`."""
    cut_segment(clip, folder, every=EVERY, language="en", quality=QUALITY)
    request = golden_request(*read_segment(folder))
    (folder / REQUEST).write_bytes(request.SerializeToString(deterministic=True))
    with grpc.insecure_channel(url, options=CHANNEL_OPTIONS) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        (reply,) = stub.ModelStreamInfer(iter([request]), timeout=CALL_S)
    if reply.error_message:
        raise RuntimeError(reply.error_message)
    (folder / RESPONSE).write_bytes(reply.infer_response.SerializeToString(deterministic=True))
    write_json(folder / READ, answer_fields(read_answer(reply.infer_response)))


if __name__ == "__main__":
    from polylip.serving.launcher import ServerOptions, running_server

    with running_server(ServerOptions()) as server:
        make(Path(sys.argv[1]), server.url)
