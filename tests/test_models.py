"""Every model alone and every ensemble, on a real server: right answers, and errors that help."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import numpy as np
import pytest
from material import FACE_LEFT, FACE_RIGHT, HEIGHT, WIDTH, chunk, face_at, face_crop, milliseconds, read_aloud

from polylip.client.errors import ServerError
from polylip.client.pending import Outputs
from polylip.client.triton import TritonClient, TritonStream
from polylip.client.wire import Inputs, SequencePosition, new_sequence_id, rows
from polylip.serving.isochrony import HARD_MAX_RATE, MAX_RATE, MIN_RATE
from polylip.serving.launcher import Server

TIMEOUT_S = 30.0
SENTENCE = "My house has a big red door."
LONG_SPANISH = "La casa es grande y el niño está aquí mañana. " * 3
WORD_PER_MINUTE = 1 / 165  # espeak-ng takes whole words per minute, so rates are multiples of this


@pytest.fixture
async def stream(server: Server) -> AsyncIterator[TritonStream]:
    async with TritonClient(server.url) as client, client.stream() as opened:
        yield opened


async def stream_of(stream: TritonStream, model: str, inputs: Inputs) -> list[Outputs]:
    return [answer async for answer in await stream.submit(model, inputs, TIMEOUT_S)]


async def refusal(stream: TritonStream, model: str, inputs: Inputs) -> str:
    with pytest.raises(ServerError) as caught:
        await stream.call(model, inputs, TIMEOUT_S)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def text(outputs: Outputs, name: str) -> str:
    assert outputs[name].shape == (1, 1)
    return str(outputs[name][0, 0])


def number(value: int) -> np.ndarray:
    return np.array([value], np.int32)


def hear(audio: np.ndarray, language: str = "en", **more: str) -> Inputs:
    return rows({"AUDIO": audio, "SOURCE_LANGUAGE": language, **more})


def translate(words: str, source: str = "en", target: str = "es") -> Inputs:
    return rows({"SOURCE_TEXT": words, "DETECTED_LANGUAGE": source, "TARGET_LANGUAGE": target})


def say(words: str, language: str = "es", **more: np.ndarray | str) -> Inputs:
    return rows({"TARGET_TEXT": words, "TARGET_LANGUAGE": language, **more})


# transcribe


@pytest.mark.parametrize("language", ["en", "auto"])
async def test_transcribe_reads_a_sentence_and_says_when_each_word_is_spoken(stream, language):
    audio = read_aloud(SENTENCE)
    heard = await stream.call("transcribe", hear(audio, language), TIMEOUT_S)
    assert text(heard, "SOURCE_TEXT").lower() == "my house has a big red door"
    assert text(heard, "DETECTED_LANGUAGE") == "en"
    assert heard["WORDS"][0].tolist() == text(heard, "SOURCE_TEXT").lower().split()
    assert 0 < heard["CONFIDENCE"][0] <= 1
    spans = heard["WORD_SPANS_MS"][0]
    assert spans.shape == (7, 2)
    assert (np.diff(spans.reshape(-1)) >= 0).all(), "words follow each other"
    assert (spans[:, 1] > spans[:, 0]).all()
    assert spans.min() >= 0
    assert spans.max() <= len(audio) / 16


async def test_transcribe_passes_a_known_text_through_without_listening(stream):
    heard = await stream.call("transcribe", hear(read_aloud(SENTENCE), KNOWN_TEXT="El niño está aquí"), TIMEOUT_S)
    assert text(heard, "SOURCE_TEXT") == "El niño está aquí"
    assert heard["WORDS"].size == 0


# translate


async def test_translate_goes_from_english_to_spanish_and_back(stream):
    there = await stream.call("translate", translate("The house is big."), TIMEOUT_S)
    assert text(there, "TARGET_TEXT") == "La casa es grande."
    back = await stream.call("translate", translate("La casa es grande.", "es", "en"), TIMEOUT_S)
    assert text(back, "TARGET_TEXT") == "The house is big."


async def test_translate_keeps_letters_beyond_ascii_in_both_directions(stream):
    there = await stream.call("translate", translate("The child is in Spain tomorrow."), TIMEOUT_S)
    assert {"niño", "España", "mañana"} <= set(text(there, "TARGET_TEXT").strip(".").split())
    back = await stream.call("translate", translate("El niño está aquí mañana.", "es", "en"), TIMEOUT_S)
    assert "tomorrow" in text(back, "TARGET_TEXT")


# synthesize


async def test_synthesize_streams_chunks_with_the_texts_riding_along(stream):
    chunks = await stream_of(stream, "synthesize", say(LONG_SPANISH, SOURCE_TEXT="¿Qué señor?", DETECTED_LANGUAGE="en"))
    assert len(chunks) > 10
    for part in chunks:
        assert text(part, "TARGET_TEXT") == LONG_SPANISH
        assert text(part, "SOURCE_TEXT") == "¿Qué señor?"
        assert text(part, "DETECTED_LANGUAGE") == "en"
        assert part["SAMPLE_RATE_HZ"].tolist() == [[22_050]]
        assert 0 < part["AUDIO_CHUNK"].size <= 22_050
    speech = np.concatenate([part["AUDIO_CHUNK"][0] for part in chunks])
    assert 0.05 < np.abs(speech).max() <= 1


async def test_synthesize_sends_sound_before_the_last_sentence_is_made(stream):
    """Chunks come one after another while sentences are still to be spoken, not all at the end."""
    sent_at, arrivals, pieces = time.monotonic(), [], []
    async for answer in await stream.submit("synthesize", say(LONG_SPANISH * 12), TIMEOUT_S):
        arrivals.append(time.monotonic() - sent_at)
        pieces.append(answer["AUDIO_CHUNK"].size)
    assert arrivals[0] < 0.75 * arrivals[-1]
    assert pieces[0] < sum(pieces) / 40


async def test_synthesize_answers_an_empty_text_with_one_empty_chunk(stream):
    [only] = await stream_of(stream, "synthesize", say("", SOURCE_TEXT="um"))
    assert only["AUDIO_CHUNK"].size == 0
    assert text(only, "SOURCE_TEXT") == "um"
    assert text(only, "STATUS") == "no_speech"


@pytest.mark.parametrize(
    ("slot", "rate"),
    [
        ({}, 1.0),
        ({"SLOT_MS": 60_000}, MIN_RATE),
        ({"SLOT_MS": 1_000}, MAX_RATE),
        ({"SLOT_MS": 1_000, "LIMIT_MS": 1_000}, HARD_MAX_RATE),
        ({"LIMIT_MS": 1_000}, HARD_MAX_RATE),
        ({"LIMIT_MS": 60_000}, 1.0),
    ],
)
async def test_synthesize_speaks_as_fast_as_its_slot_asks_within_bounds(stream, slot, rate):
    chunks = await stream_of(stream, "synthesize", say(LONG_SPANISH, **{k: number(v) for k, v in slot.items()}))
    spoken_at = [part["SPEECH_RATE"].item() for part in chunks]
    assert spoken_at == pytest.approx([rate] * len(chunks), abs=WORD_PER_MINUTE)


async def test_synthesize_fills_a_slot_that_it_can_fill(stream):
    async def seconds(**slot) -> float:
        chunks = await stream_of(stream, "synthesize", say(LONG_SPANISH, **slot))
        return sum(part["AUDIO_CHUNK"].size for part in chunks) / 22_050

    natural = await seconds()
    for wanted in (0.9 * natural, 1.1 * natural):
        assert await seconds(SLOT_MS=number(int(wanted * 1000))) == pytest.approx(wanted, rel=0.05)


# detect, track, faces


async def test_detect_finds_each_face_where_it_is_and_none_in_noise(stream):
    noise = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    found = await stream.call("detect", {"FRAMES": np.stack([face_at(0), face_at(280), noise])}, TIMEOUT_S)
    boxes, scores = found["BOXES"], found["SCORES"]
    assert boxes.shape == (*scores.shape, 4)
    for index, left in enumerate((0, 280)):
        x1, _, x2, _ = boxes[index, 0]
        assert (x1, x2) == (pytest.approx(left + FACE_LEFT, abs=12), pytest.approx(left + FACE_RIGHT, abs=12))
        assert scores[index, 0] > 0.5
    assert not scores[2].any()
    assert not boxes[2].any()


async def test_faces_gives_one_steady_track_for_every_frame_asked_for(stream):
    query_ms = list(range(0, 801, 40))
    inputs = chunk([face_at(100)] * 5, [0, 200, 400, 600, 800], query_ms)
    only = SequencePosition(new_sequence_id(), start=True, end=True)
    tracks = await stream.call("faces", inputs, TIMEOUT_S, only)
    assert tracks["TRACK_IDS"].tolist() == [1]
    assert tracks["TRACK_BOXES"].shape == (len(query_ms), 1, 4)
    assert np.ptp(tracks["TRACK_BOXES"], axis=0).max() < 1, "a still face has a still box"
    assert tracks["TRACK_BOXES"][0, 0, 0] == pytest.approx(100 + FACE_LEFT, abs=12)
    assert (tracks["TRACK_SCORES"] > 0.5).all()


async def test_faces_gives_no_track_where_there_is_no_face(stream):
    inputs = chunk([np.zeros((HEIGHT, WIDTH, 3), np.uint8)], [0], [0, 40])
    tracks = await stream.call("faces", inputs, TIMEOUT_S, SequencePosition(new_sequence_id(), start=True, end=True))
    assert tracks["TRACK_IDS"].shape == (0,)
    assert tracks["TRACK_BOXES"].shape == (2, 0, 4)


async def test_track_alone_follows_the_boxes_it_is_given(stream):
    boxes = np.array([[[10, 20, 60, 80]], [[14, 20, 64, 80]]], np.float32)
    inputs = {
        "BOXES": boxes,
        "SCORES": np.full((2, 1), 0.9, np.float32),
        "KEYFRAME_MS": milliseconds(0, 200),
        "QUERY_MS": milliseconds(0, 100, 200),
    }
    tracks = await stream.call("track", inputs, TIMEOUT_S, SequencePosition(new_sequence_id(), start=True, end=True))
    left = tracks["TRACK_BOXES"][:, 0, 0]
    assert (np.diff(left) > 0).all()
    assert 9 < left[0] < left[-1] < 15


# mel, lips, lipsync


async def test_mel_gives_one_window_per_frame_and_its_floor_for_silence(stream):
    offsets = milliseconds(*range(0, 1000, 40))
    loud = await stream.call("mel", {"AUDIO": read_aloud(SENTENCE), "FRAME_OFFSETS_MS": offsets}, TIMEOUT_S)
    assert loud["MEL"].shape == (25, 80, 16)
    silent = await stream.call(
        "mel", {"AUDIO": np.zeros(32_000, np.float32), "FRAME_OFFSETS_MS": offsets[:1]}, TIMEOUT_S
    )
    assert (silent["MEL"] == -4).all()
    assert loud["MEL"].max() > 0


async def test_lips_and_lipsync_give_the_same_mouths(stream):
    audio, offsets, faces = read_aloud(SENTENCE), milliseconds(*range(0, 640, 40)), np.stack([face_crop()] * 16)
    windows = (await stream.call("mel", {"AUDIO": audio, "FRAME_OFFSETS_MS": offsets}, TIMEOUT_S))["MEL"]
    alone = await stream.call("lips", {"MEL": windows, "FACES": faces}, TIMEOUT_S)
    line = await stream.call("lipsync", {"AUDIO": audio, "FRAME_OFFSETS_MS": offsets, "FACES": faces}, TIMEOUT_S)
    assert alone["MOUTHS"].dtype == np.uint8
    assert alone["MOUTHS"].shape == faces.shape
    assert (alone["MOUTHS"] == line["MOUTHS"]).all()


async def test_lipsync_opens_the_mouth_with_loudness_and_leaves_a_silent_face_alone(stream):
    faces, offsets = np.stack([face_crop()] * 25), milliseconds(*range(0, 1000, 40))

    async def change(volume: float) -> float:
        inputs = {"AUDIO": volume * read_aloud(SENTENCE), "FRAME_OFFSETS_MS": offsets, "FACES": faces}
        mouths = (await stream.call("lipsync", inputs, TIMEOUT_S))["MOUTHS"]
        return float(np.abs(mouths.astype(int) - faces).mean())

    assert await change(0) == 0
    assert 0 < await change(0.1) < await change(1)


# speech


async def test_speech_hears_translates_and_speaks_in_one_call(stream):
    inputs = hear(read_aloud("The house is big."), TARGET_LANGUAGE="es")
    chunks = await stream_of(stream, "speech", inputs)
    assert len(chunks) > 1
    for part in chunks:
        assert text(part, "SOURCE_TEXT").lower() == "the house is big"
        assert text(part, "TARGET_TEXT") == "La casa es grande"
        assert text(part, "DETECTED_LANGUAGE") == "en"
    assert sum(part["AUDIO_CHUNK"].size for part in chunks) / 22_050 > 0.5


async def test_speech_takes_a_known_text_and_a_slot(stream):
    inputs = hear(read_aloud(SENTENCE), KNOWN_TEXT="The boy is here tomorrow.", TARGET_LANGUAGE="es")
    chunks = await stream_of(stream, "speech", {**inputs, **rows({"SLOT_MS": number(500)})})
    assert text(chunks[0], "SOURCE_TEXT") == "The boy is here tomorrow."
    assert "mañana" in text(chunks[0], "TARGET_TEXT")
    assert chunks[0]["SPEECH_RATE"].item() == pytest.approx(MAX_RATE, abs=WORD_PER_MINUTE)


# what cannot be done is a status, and the stream lives on


UNDONE = {
    "transcribe, language": ("transcribe", hear(np.zeros(8000, np.float32), "fr"), "unsupported", "supported: en"),
    "transcribe, silence": ("transcribe", hear(np.zeros(32_000, np.float32)), "no_speech", "no words were recognised"),
    "translate, pair": ("translate", translate("yes", "en", "fi"), "unsupported", "supported: en->es"),
    "synthesize, language": ("synthesize", say("yes", "wo"), "unsupported", "supported: af"),
    "synthesize, of a failed step": (
        "synthesize",
        say("", STATUS="error", STATUS_MESSAGE="it broke"),
        "error",
        "broke",
    ),
    "speech, pair": (
        "speech",
        hear(np.zeros(8000, np.float32), KNOWN_TEXT="yes", TARGET_LANGUAGE="fi"),
        "unsupported",
        "supported: en->es",
    ),
    "speech, language": ("speech", hear(np.zeros(8000, np.float32), "fr", TARGET_LANGUAGE="es"), "unsupported", "en"),
    "speech, silence": ("speech", hear(np.zeros(8000, np.float32), TARGET_LANGUAGE="es"), "no_speech", "no words"),
}


@pytest.mark.parametrize("case", UNDONE)
async def test_what_cannot_be_done_is_one_answer_with_a_status_and_a_line_that_helps(stream, case):
    model, inputs, status, help_text = UNDONE[case]
    [only] = await stream_of(stream, model, inputs)
    assert text(only, "STATUS") == status
    assert help_text in text(only, "STATUS_MESSAGE") and "\n" not in text(only, "STATUS_MESSAGE")
    assert "AUDIO_CHUNK" not in only or only["AUDIO_CHUNK"].size == 0
    [again] = await stream_of(stream, model, inputs)
    assert text(again, "STATUS") == status


# refusals


SILENCE = np.zeros(8000, np.float32)
INFINITE = np.full(9, np.inf, np.float32)
REFUSED = {
    "transcribe, NaN": ("transcribe", hear(np.full(8000, np.nan, np.float32)), "NaN"),
    "transcribe, empty": ("transcribe", hear(SILENCE[:0]), "non-empty"),
    "transcribe, too long": ("transcribe", hear(np.zeros(61 * 16_000, np.float32)), "at most 60 s"),
    "translate, not UTF-8": ("translate", {**translate(""), "SOURCE_TEXT": np.array([[b"\xff"]], object)}, "utf-8"),
    "synthesize, voice": ("synthesize", say("yes", VOICE=INFINITE, VOICE_CONSENT=np.array([True])), "VOICE holds NaN"),
    "synthesize, fit": ("synthesize", say("yes", FIT="loose"), "natural, tight, strict"),
    "translate, two rows": ("translate", dict.fromkeys(translate(""), np.array([[b"a"], [b"b"]], object)), "<= 1"),
    "mel, NaN": ("mel", {"AUDIO": SILENCE * np.nan, "FRAME_OFFSETS_MS": milliseconds(0)}, "NaN"),
    "mel, beyond": ("mel", {"AUDIO": SILENCE, "FRAME_OFFSETS_MS": milliseconds(2**62)}, "send longer audio"),
    "detect, empty": ("detect", {"FRAMES": np.zeros((1, 0, 0, 3), np.uint8)}, "detect: "),
    "lipsync, counts": (
        "lipsync",
        {"AUDIO": SILENCE, "FRAME_OFFSETS_MS": milliseconds(0), "FACES": np.zeros((2, 96, 96, 3), np.uint8)},
        "does not match",
    ),
    "speech, NaN": ("speech", hear(SILENCE * np.nan, TARGET_LANGUAGE="es"), "NaN"),
    "an unknown model": ("nobody", {"AUDIO": SILENCE}, "nobody"),
}
ANSWERED = {
    "transcribe": hear(SILENCE, KNOWN_TEXT="yes"),
    "translate": translate("yes"),
    "synthesize": say(""),
    "mel": {"AUDIO": SILENCE, "FRAME_OFFSETS_MS": milliseconds(0)},
    "detect": {"FRAMES": np.zeros((1, 36, 64, 3), np.uint8)},
    "lipsync": {"AUDIO": SILENCE, "FRAME_OFFSETS_MS": milliseconds(0), "FACES": np.zeros((1, 96, 96, 3), np.uint8)},
    "speech": hear(SILENCE, KNOWN_TEXT=" ", TARGET_LANGUAGE="es"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_bad_request_gets_one_helpful_line_and_the_model_answers_the_next(stream, case):
    model, inputs, help_text = REFUSED[case]
    assert help_text in await refusal(stream, model, inputs)
    if model in ANSWERED:
        assert await stream.call(model, ANSWERED[model], TIMEOUT_S)
