"""What a tritonserver says it has done: requests, passes and batch sizes of every model, as differences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from polylip.client.wire import CHANNEL_OPTIONS

TIMEOUT_S = 10.0
NS_PER_MS = 1e6


@dataclass(frozen=True)
class ModelWork:
    """Of one model; from the beginning, or between two looks."""

    inferences: int = 0  # items: a request of 16 frames is 16
    passes: int = 0  # of the model: a batch is one
    failures: int = 0
    queue_ms: float = 0.0  # summed over requests
    compute_ms: float = 0.0  # input, infer and output, summed over requests
    batches: Mapping[int, int] = field(default_factory=dict)  # batch size -> passes

    def since(self, before: ModelWork) -> ModelWork:
        """What has come since an earlier look."""
        batches = Counter(self.batches)
        batches.subtract(before.batches)
        return ModelWork(
            self.inferences - before.inferences,
            self.passes - before.passes,
            self.failures - before.failures,
            self.queue_ms - before.queue_ms,
            self.compute_ms - before.compute_ms,
            {size: count for size, count in sorted(batches.items()) if count},
        )


def look(url: str) -> dict[str, ModelWork]:
    """Of every loaded model. Raises grpc.RpcError where the server does not answer."""
    with grpc.insecure_channel(url, options=CHANNEL_OPTIONS) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=TIMEOUT_S)
    return {entry.name: _work(entry) for entry in answer.model_stats}


def since(before: Mapping[str, ModelWork], after: Mapping[str, ModelWork]) -> dict[str, ModelWork]:
    """Per model, what came between two looks."""
    return {name: work.since(before.get(name, ModelWork())) for name, work in after.items()}


def _work(entry: service_pb2.ModelStatistics) -> ModelWork:
    told = entry.inference_stats
    compute = told.compute_input.ns + told.compute_infer.ns + told.compute_output.ns
    return ModelWork(
        entry.inference_count,
        entry.execution_count,
        told.fail.count,
        told.queue.ns / NS_PER_MS,
        compute / NS_PER_MS,
        {batch.batch_size: batch.compute_infer.count for batch in entry.batch_stats},
    )
