"""Voice of the profiles with public weights: XTTS-v2 speaks 17 languages in the voice of a short reference."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from polylip.serving.artefacts import TailGuard, longest_s
from polylip.serving.cpu_torchaudio import require_torchaudio
from polylip.serving.engines import Cancelled, Float32, Parameters, Speaker
from polylip.serving.errors import EngineError, MissingError
from polylip.serving.languages import normalise
from polylip.serving.mel import SAMPLE_RATE_HZ
from polylip.serving.voice_cache import VoiceCache
from polylip.serving.weights import find_weights
from polylip.serving.xtts_languages import CHARACTERS_PER_SECOND

PACKAGES = {"TTS": "coqui-tts"}  # whose name is not that of the module

require_torchaudio()
try:
    import torch
    from torch import Tensor

    from polylip.serving.xtts_gpt import Decoding, Gpt, Sampling
    from polylip.serving.xtts_text import XttsText
    from polylip.serving.xtts_vocoder import Vocoder, Waveform
    from polylip.serving.xtts_voice import VoiceEncoder
    from polylip.serving.xtts_weights import FILES, REMEDY, read_model, read_settings, read_speakers
except ImportError as error:
    package = (error.name or "").split(".")[0]
    cause = f"{PACKAGES.get(package, package)} is not installed" if package else str(error).strip().splitlines()[0]
    raise MissingError(f"{cause}; run: pip install 'polylip[speech]'") from None

MODEL = "xtts-v2"
STOCK_VOICE = "Claribel Dervla"  # the first of the public file
CACHED_VOICES = 64
SPEEDS = (0.7, 1.3)  # latents stretched further than that smear their consonants
SHORTEST_REFERENCE_S = 1.0
LONGEST_REFERENCE_S = 30
SILENCE = 1e-3  # of full scale: a reference that is never louder holds no voice

# Audio tokens per chunk, 46 ms each. The first chunk is small for an early start; a later one costs less when it is
# large, because each is made from a window with three or four tokens more to both sides.
FIRST_CHUNK_TOKENS = 8
CHUNK_TOKENS = 32
LEAD_S = 0.15  # of near-silence around a piece, which characters do not account for
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LICENCE = (
    "XTTS-v2's weights are under the Coqui Public Model License: they and what they say are for non-commercial use"
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _State:
    """What `Speaker.state` holds."""

    latents: Tensor  # (1, latents, channels), for the GPT
    embedding: Tensor  # (1, d_vector, 1), for the vocoder
    name: str  # of the stock voice, or the reference's SHA-256


class Xtts:
    """Parameters, all optional: `model` (a folder of weights), `device` (cpu, cuda), `precision` of the GPT (fp32,
    bf16, fp16), `stock_voice`, `threads` (0: one per core), `first_chunk_tokens`, `chunk_tokens`, `cached_voices`.

    What it says depends on the piece, the language and the voice alone: the random numbers are drawn from these.
    """

    speeds = SPEEDS

    def __init__(self, parameters: Parameters, version_dir: str) -> None:
        device, dtype = _device(parameters), _dtype(parameters)
        torch.set_num_threads(_number(parameters, "threads", 0) or len(os.sched_getaffinity(0)))
        self._chunks = (
            _number(parameters, "first_chunk_tokens", FIRST_CHUNK_TOKENS) or 1,
            _number(parameters, "chunk_tokens", CHUNK_TOKENS) or 1,
        )
        self._voices: VoiceCache[_State] = VoiceCache(_number(parameters, "cached_voices", CACHED_VOICES))
        folder = find_weights(parameters.get("model") or MODEL, version_dir, FILES, REMEDY)
        config, model, vocabulary, speakers = (folder / file for file in FILES)
        self._settings = settings = read_settings(config)
        self.sample_rate_hz = settings.output_sample_rate
        self._text = XttsText(vocabulary, settings.gpt_max_text_tokens)
        self._sampling = Sampling(settings.temperature, settings.top_k, settings.top_p, settings.repetition_penalty)
        state = read_model(model)
        self._gpt = Gpt(state, settings, device, dtype, model)
        self._encoder = VoiceEncoder(state, settings, device, model)
        self._vocoder = Vocoder(self._encoder.generator, settings)
        self._stock = self._stock_voice(read_speakers(speakers), parameters.get("stock_voice") or STOCK_VOICE)
        self._try_out(model)
        _log.info(LICENCE)

    def pieces(self, text: str, language: str) -> list[str]:
        return self._text.pieces(text, normalise(language))

    def estimate_ms(self, piece: str, language: str) -> float:
        return (LEAD_S + len(piece) / CHARACTERS_PER_SECOND[normalise(language)]) * 1000

    def speaker(self, reference: Float32 | None, stream: str) -> Speaker:
        """Raises ValueError for a reference that is too short or silent."""
        if reference is None:
            return Speaker(False, self._stock)
        if len(reference) < SHORTEST_REFERENCE_S * SAMPLE_RATE_HZ:
            raise ValueError("VOICE must hold at least 1 s of speech")
        used = np.ascontiguousarray(reference[: LONGEST_REFERENCE_S * SAMPLE_RATE_HZ], dtype=np.float32)
        if np.abs(used).max() < SILENCE:
            raise ValueError("VOICE is silent; it must hold at least 1 s of speech")
        return Speaker(True, self._voices.voice(stream, used, lambda digest: _State(*self._encoder(used), digest)))

    def say(self, piece: str, language: str, speaker: Speaker, speed: float, cancelled: Cancelled) -> Iterator[Float32]:
        voice: _State = speaker.state
        language = normalise(language)
        estimate_s = self.estimate_ms(piece, language) / 1000
        waveform = Waveform(self._vocoder, voice.embedding, speed)
        guard = TailGuard(self.sample_rate_hz, estimate_s / speed)
        decoding = self._decoding(piece, language, voice, estimate_s)
        said, waiting, wanted = False, 0, self._chunks[0]
        while (latent := decoding.step()) is not None:
            if cancelled():
                return
            waveform.push(latent)
            waiting += 1
            if waiting >= wanted and len(sound := waveform.sound(final=False)):
                waiting, wanted = 0, min(2 * wanted, self._chunks[1])
                if len(sure := guard.push(sound)):
                    said = True
                    yield sure
        if not decoding.ended:
            _log.info("a voice ran on after a text of %d characters and was stopped", len(piece))
        for sure in (guard.push(waveform.sound(final=True)), guard.finish(decoding.ended)):
            if len(sure):
                said = True
                yield sure
        if not said:
            raise EngineError(f"xtts-v2 made no sound for a text of {len(piece)} characters; say it in other words")

    def _decoding(self, piece: str, language: str, voice: _State, estimate_s: float) -> Decoding:
        most = min(round(longest_s(estimate_s) * self._settings.tokens_per_second), self._settings.most_tokens)
        told = "\0".join((voice.name, language, piece)).encode()
        seed = int.from_bytes(hashlib.sha256(told).digest()[:7], "big")
        prefix = self._gpt.prefix(voice.latents, self._text.tokens(piece, language))
        return Decoding(self._gpt, prefix, self._sampling, most, seed)

    def _stock_voice(self, voices: dict[str, tuple[Tensor, Tensor]], name: str) -> _State:
        if name not in voices:
            first = next(iter(voices))
            _log.info("there is no stock voice %r; %r speaks instead", name, first)
            name = first
        latents, embedding = (part.float().to(self._gpt.device) for part in voices[name])
        return _State(latents, embedding, name)

    def _try_out(self, model: object) -> None:
        """One token and its sound: parts that do not fit together fail here, and the first request finds them warm."""
        if self._text.largest_token >= len(self._gpt.text):
            raise EngineError(f"vocab.json has more tokens than {model}; run: {REMEDY}")
        try:
            latent = self._decoding("a", "en", self._stock, 0.0).step()
            waveform = Waveform(self._vocoder, self._stock.embedding, 1.0)
            assert latent is not None  # noqa: S101  the first step always gives one
            waveform.push(latent)
            waveform.sound(final=True)
        except RuntimeError as error:
            raise EngineError(f"{model} does not fit its config.json: {str(error).splitlines()[0]}") from None


def _device(parameters: Parameters) -> torch.device:
    name = parameters.get("device") or "cpu"
    if name not in ("cpu", "cuda"):
        raise ValueError(f"xtts-v2 has no device {name!r}; take cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise MissingError("xtts-v2 shall run on cuda, but torch finds no GPU; set its parameter `device` to cpu")
    return torch.device(name)


def _dtype(parameters: Parameters) -> torch.dtype:
    name = parameters.get("precision") or "fp32"
    if name not in DTYPES:
        raise ValueError(f"xtts-v2 has no precision {name!r}; take {', '.join(DTYPES)}")
    return DTYPES[name]


def _number(parameters: Parameters, name: str, default: int) -> int:
    text = parameters.get(name) or str(default)
    if not text.isdecimal():
        raise ValueError(f"parameter `{name}` of xtts-v2 must be a whole number, it is {text!r}")
    return int(text)
