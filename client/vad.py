"""Speech or not, hop by hop: by energy, or by silero's network with energy at its edges (docs/segmentation.md)."""

from __future__ import annotations

from collections import deque
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from polylip.client.errors import InputError

Float32 = npt.NDArray[np.float32]

SPEECH_RATE_HZ = 16_000  # what the recogniser and the mel front end take
HOP_MS = 20
HOP = SPEECH_RATE_HZ * HOP_MS // 1000

BELOW_PEAK_DB = 35.0  # a hop is speech when it is at most this far below the running peak (the paper's value)
FLOOR_DBFS = -60.0  # and above this, so that digital near-silence has no speech
START_PEAK_DBFS = -25.0  # peak assumed before anything was heard: quiet speech of a webcam
ABOVE_NOISE_DB = 9.0  # and this far above the noise floor: room noise can lie within 35 dB of a soft voice ...
NOISE_PERCENTILE = 10  # ... the floor being this percentile of ...
NOISE_WINDOW_HOPS = 200  # ... the last 4 s, which hold a pause between words even in dense speech
NOISE_BELOW_PEAK_DB = 18.0  # but speech this near the peak is speech, whatever the floor
PEAK_DECAY = 0.9998  # per hop: one clap mutes soft speech for a while, not for ever (6 dB in 70 s)

# Where installed wheels keep the network with its state as tensors `h` and `c`: package, file.
SILERO_FILES = (("faster_whisper", "assets/silero_vad_v6.onnx"), ("silero_vad", "data/silero_vad_16k_sequence.onnx"))
CHUNK, CONTEXT, STATE = 512, 64, (1, 1, 128)  # samples, samples before them, LSTM state: the network's own
START_PROBABILITY = 0.5  # silero's own hysteresis: speech starts at this ...
STAY_PROBABILITY = 0.35  # ... and goes on until below this
QUIET_PROBABILITY = 0.8  # what energy calls silence is speech only at this: else words would end some 60 ms late
LATE_HOPS = 12  # the network notices a soft or short word up to 0.24 s late ...
TRAIL_HOPS = 5  # ... and drops a fading one up to 0.1 s early: there energy decides
STOP_HOPS = 5  # silence within a word: a "t" or "p" before it opens


class Vad(Protocol):
    """Judges one stream of sound; it has the stream's state."""

    late_hops: int  # how late it may notice speech, at most

    def hop(self, samples: Float32) -> int:
        """Judge float32 (HOP,): how many of the newest hops are speech. 0: not this one; more than 1: noticed late."""
        ...


@runtime_checkable
class LastingVad(Vad, Protocol):
    """One that another process can go on with."""

    def state(self) -> dict[str, Any]:
        """All that the next judgement depends on, as numbers, lists and arrays."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where another of its kind was."""
        ...


class VadChoice(StrEnum):
    """What a user may ask for."""

    AUTO = "auto"  # silero where it is installed
    SILERO = "silero"
    ENERGY = "energy"


def make_vad(choice: VadChoice = VadChoice.AUTO) -> Vad:
    """A VAD for one stream. Raises InputError where silero is asked for and not installed."""
    if choice is VadChoice.SILERO or (choice is VadChoice.AUTO and silero_installed()):
        return SileroVad()
    return EnergyVad()


def silero_installed() -> bool:
    """Whether `onnxruntime` and a wheel that carries the network are there; imports neither."""
    return find_spec("onnxruntime") is not None and _silero_file() is not None


def level(samples: Float32) -> float:
    """RMS, 1 = full scale."""
    return float(np.sqrt((samples.astype(np.float64) ** 2).mean()))


class EnergyVad:
    """By energy against a decaying peak and the noise floor."""

    late_hops = 0

    def __init__(self) -> None:
        self._peak = _amplitude(START_PEAK_DBFS)
        self._recent: deque[float] = deque(maxlen=NOISE_WINDOW_HOPS)

    def hop(self, samples: Float32) -> int:
        rms = level(samples)
        self._peak = max(rms, self._peak * PEAK_DECAY)
        self._recent.append(rms)
        noise = float(np.percentile(self._recent, NOISE_PERCENTILE)) * _amplitude(ABOVE_NOISE_DB)
        noise = min(noise, self._peak * _amplitude(-NOISE_BELOW_PEAK_DB))
        return int(rms > max(self._peak * _amplitude(-BELOW_PEAK_DB), noise, _amplitude(FLOOR_DBFS)))

    def state(self) -> dict[str, Any]:
        return {"peak": self._peak, "recent": np.array(self._recent, np.float64)}

    def restore(self, state: dict[str, Any]) -> None:
        self._peak = state["peak"]
        self._recent.extend(state["recent"].tolist())


class SileroVad:
    """By silero's network through onnxruntime alone; energy moves its edges to where the sound begins and ends."""

    late_hops = LATE_HOPS

    def __init__(self) -> None:
        self._network = _Silero()
        self._energy = EnergyVad()
        self._rest = np.zeros(0, np.float32)  # less than a chunk
        self._probability = 0.0
        self._heard = False  # what the network says, with hysteresis
        self._unheard = TRAIL_HOPS  # hops since it last said speech
        self._loud: deque[bool] = deque(maxlen=LATE_HOPS)  # whether the hops before have enough energy
        self._speech = False

    def hop(self, samples: Float32) -> int:
        loud = bool(self._energy.hop(samples))
        self._listen(samples)
        self._unheard = 0 if self._heard else self._unheard + 1
        heard = self._heard and (loud or self._probability >= QUIET_PROBABILITY)
        before, self._speech = self._speech, heard or (loud and self._unheard < TRAIL_HOPS)
        count = 1 + self._begun() if self._speech and not before else int(self._speech)
        self._loud.append(loud)
        return count

    def state(self) -> dict[str, Any]:
        return {
            "network": self._network.state(),
            "energy": self._energy.state(),
            "rest": self._rest,
            "probability": self._probability,
            "heard": self._heard,
            "unheard": self._unheard,
            "loud": list(self._loud),
            "speech": self._speech,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._network.restore(state["network"])
        self._energy.restore(state["energy"])
        self._rest, self._probability, self._heard = state["rest"], state["probability"], state["heard"]
        self._unheard, self._speech = state["unheard"], state["speech"]
        self._loud.extend(state["loud"])

    def _begun(self) -> int:
        """How many hops ago the sound began that the network now calls speech."""
        begun = silent = 0
        for ago, loud in enumerate(reversed(self._loud), 1):
            begun, silent = (ago, 0) if loud else (begun, silent + 1)
            if silent > STOP_HOPS:
                break
        return begun

    def _listen(self, samples: Float32) -> None:
        self._rest = np.concatenate([self._rest, samples])
        while len(self._rest) >= CHUNK:
            self._probability = self._network.probability(self._rest[:CHUNK])
            self._heard = self._probability >= (STAY_PROBABILITY if self._heard else START_PROBABILITY)
            self._rest = self._rest[CHUNK:]


class _Silero:
    """The network and its state for one stream."""

    def __init__(self) -> None:
        path = _silero_file()
        try:
            import onnxruntime  # noqa: PLC0415  the thin client goes without
        except ImportError:
            path = None
        if path is None:
            raise InputError(
                "silero's VAD needs onnxruntime and faster-whisper: pip install onnxruntime faster-whisper"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors: it warns of initializers that it drops
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._context = np.zeros(CONTEXT, np.float32)
        self._state: list[npt.NDArray[Any]] = [np.zeros(STATE, np.float32), np.zeros(STATE, np.float32)]

    def probability(self, chunk: Float32) -> float:
        """That float32 (CHUNK,) holds speech."""
        inputs = {"input": np.concatenate([self._context, chunk])[None], "h": self._state[0], "c": self._state[1]}
        probability, *self._state = self._session.run(None, inputs)
        self._context = chunk[-CONTEXT:]
        return float(probability.item())

    def state(self) -> dict[str, Any]:
        return {"context": self._context, "lstm": self._state}

    def restore(self, state: dict[str, Any]) -> None:
        self._context, self._state = state["context"], state["lstm"]


def _silero_file() -> Path | None:
    """The network in whichever wheel has it; looking a top-level package up does not import it."""
    for package, name in SILERO_FILES:
        spec = find_spec(package)
        if spec is not None and spec.origin is not None and (path := Path(spec.origin).parent / name).is_file():
            return path
    return None


def _amplitude(decibels: float) -> float:
    return float(10 ** (decibels / 20))
