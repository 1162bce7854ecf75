"""Servers with a model of the tests' own: it says which parameters a request came with, after a while."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import psutil
import pytest

from polylip.client.errors import InputError
from polylip.client.tls import Tls
from polylip.client.triton import TritonClient
from polylip.client.wire import Inputs
from polylip.serving import launcher
from polylip.serving.launcher import Server, ServerOptions

START_S = 60.0
ECHO_CONFIG = """
name: "echo"
backend: "python"
max_batch_size: 0
input [ { name: "WAIT_S" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "PARAMETERS" data_type: TYPE_STRING dims: [ 1 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
dynamic_batching { default_queue_policy { max_queue_size: 2 } }
"""
ECHO_MODEL = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            wait_s = float(pb_utils.get_input_tensor_by_name(request, "WAIT_S").as_numpy()[0])
            if wait_s < 0:
                raise RuntimeError("the engine is broken")
            time.sleep(wait_s)
            said = np.array([request.parameters().encode()], object)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("PARAMETERS", said)]))
        return answers
"""


def wait(seconds: float, samples: int = 1) -> Inputs:
    """A request to `echo` that takes so long."""
    return {"WAIT_S": np.full(samples, seconds, np.float32)}


@contextmanager
def echo_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """A function that starts servers of the one model `echo`, with further flags of tritonserver.

    Each is ready when a client with the given TLS gets through. All are stopped at the end.
    """
    started: list[Server] = []

    def start(*flags: str, tls: Tls | None = None) -> Server:
        folder = tmp_path_factory.mktemp("echo")
        (folder / "repository" / "echo" / "1").mkdir(parents=True)
        (folder / "repository" / "echo" / "config.pbtxt").write_text(ECHO_CONFIG)
        (folder / "repository" / "echo" / "1" / "model.py").write_text(ECHO_MODEL)
        options = ServerOptions(
            model_repository=folder / "repository", log_path=folder / "log", metrics_port=None, extra_flags=flags
        )
        # The launcher's own wait speaks no TLS and knows no such model.
        running = launcher._spawn(options)
        started.append(running)
        asyncio.run(until_ready(running, tls))
        return running

    try:
        yield start
    finally:
        with ThreadPoolExecutor() as pool:
            list(pool.map(Server.stop, started))


def kill(server: Server) -> None:
    for process in psutil.Process(server.guard_pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)


async def until_ready(running: Server, tls: Tls | None) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            async with TritonClient(running.url, tls=tls):
                return
        except InputError:
            assert running.alive and time.monotonic() < deadline, running.read_log()
            await asyncio.sleep(0.2)
