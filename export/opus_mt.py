"""A public Opus-MT checkpoint in, a folder that CTranslate2 serves out, checked against the torch network first.

Weights are stored in float16: half the size of float32, and CTranslate2 makes int8 of them while loading, in half
a second on two cores; stored in int8 they would have lost what a GPU in float16 could use.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ctranslate2
import sentencepiece
import torch
from ctranslate2.converters import TransformersConverter
from transformers import MarianMTModel, MarianTokenizer
from transformers.utils import logging as transformers_logging

from polylip.client.errors import InputError
from polylip.export.parity import require
from polylip.export.sidecar import Figure, Source, file_sha256
from polylip.serving.opus_pairs import FILES, RECORD

RECORD_FORMAT = 1
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there is taken, as transformers does
NEEDED = ("config.json", "source.spm", "target.spm", "tokenizer_config.json", "vocab.json")
SPM = ("source.spm", "target.spm")
EOS, UNKNOWN = "</s>", "<unk>"
TARGET_TOKEN = re.compile(r">>.+<<")  # in vocabularies of models that translate into several languages
STORED = "float16"

GATE_SENTENCES, GATE_PIECES = 10, (3, 30)  # of random pieces: every language has those
GATE_STEPS = 24  # greedy, for each
FOREIGN_PIECES = 0.2  # of a SentencePiece model that the vocabulary may lack; public ones lack a few
# Mean difference of a piece's log-probability. A piece that is one tenth less likely is 0.1; a network of
# the public size with generated weights has 0.0006 where they are rounded to float16, and 0.034 in int8.
LIMITS = {"float32": 0.01, "int8": 0.15}
NEAR_TIE = 0.05  # log-probability: where both choose another piece, torch must find them this close


@dataclass(frozen=True)
class Reference:
    """What the torch network does with some sentences."""

    sources: list[list[str]]  # pieces, with their end
    targets: list[list[str]]  # pieces of the greedy translation, without end
    scores: torch.Tensor  # float32 (sentences, GATE_STEPS + 1, vocabulary), log-probabilities along them


def convert_opus_mt(
    checkpoint: Path,
    target: Path,
    generated: bool = False,
    target_token: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Convert the folder `checkpoint` into the folder `target`, which is replaced as a whole or not at all.

    `target_token`, like `>>fra<<`, chooses the language of a model that knows several. Raises InputError for a
    checkpoint that is no Opus-MT, is damaged or incomplete, ParityError where the result differs from it.
    """
    weights = _check_files(checkpoint)
    vocabulary = _vocabulary(checkpoint)
    _check_target_token(checkpoint, vocabulary, target_token)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as partial, _quiet():
        folder = Path(partial) / target.name
        say(f"{target.name}: converting {weights}")
        network = _convert(checkpoint, folder)
        for name in SPM:
            shutil.copyfile(checkpoint / name, folder / name)
        say(f"{target.name}: comparing it with the torch network")
        figures = _compare(network, reference(network, checkpoint, vocabulary, target_token), folder, vocabulary)
        require(figures, target.name)
        record = {
            "format": RECORD_FORMAT,
            "source": asdict(Source.of(weights, generated)),
            "target_token": target_token,
            "stored_as": STORED,
            "sha256": {name: file_sha256(folder / name) for name in FILES if name != RECORD},
            "ctranslate2": version("ctranslate2"),
            "transformers": version("transformers"),
            "torch": version("torch"),
            "parity": [asdict(figure) for figure in figures],
        }
        (folder / RECORD).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        _replace(folder, target, Path(partial) / "old")
    return target


def _check_files(checkpoint: Path) -> Path:
    """The file of the weights."""
    weights = next((checkpoint / name for name in WEIGHTS if (checkpoint / name).is_file()), None)
    lacking = [name for name in NEEDED if not (checkpoint / name).is_file()]
    if not checkpoint.is_dir() or weights is None or lacking:
        lacking += [] if weights else [" or ".join(WEIGHTS)]
        raise InputError(f"{checkpoint} is no whole Opus-MT checkpoint, it lacks: {', '.join(lacking)}")
    config = _json(checkpoint / "config.json")
    if config.get("model_type") != "marian":
        raise InputError(f"{checkpoint}/config.json is of a {config.get('model_type')!r} model, not of an Opus-MT one")
    return weights


def _vocabulary(checkpoint: Path) -> dict[str, int]:
    vocabulary: dict[str, int] = _json(checkpoint / "vocab.json")
    known = {EOS, UNKNOWN} <= vocabulary.keys()
    if not known or sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise InputError(f"{checkpoint}/vocab.json is no vocabulary of Opus-MT")
    for name in SPM:
        model = _pieces(checkpoint / name)
        pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
        foreign = sum(piece not in vocabulary for piece in pieces) / len(pieces)
        if foreign > FOREIGN_PIECES:
            raise InputError(f"{checkpoint}/{name} does not belong to vocab.json, which lacks {foreign:.0%} of it")
    return vocabulary


def _pieces(path: Path) -> Any:
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError):
        raise InputError(f"{path} is no SentencePiece model; fetch it again") from None


def _check_target_token(checkpoint: Path, vocabulary: dict[str, int], token: str | None) -> None:
    there = sorted(filter(TARGET_TOKEN.fullmatch, vocabulary))
    if token is not None and token not in vocabulary:
        raise InputError(f"{checkpoint} has no target token {token!r}; it has: {', '.join(there) or 'none'}")
    if token is None and there:
        raise InputError(f"{checkpoint} translates into several languages; choose --target-token: {', '.join(there)}")


class _Converter(TransformersConverter):  # type: ignore[misc]  # CTranslate2 has no types
    """Loads from this folder only, and only data: no pickled code, no code of the checkpoint's own."""

    network: MarianMTModel

    def load_model(self, model_class: Any, model_name_or_path: str, **kwargs: Any) -> MarianMTModel:
        kwargs["dtype"] = torch.float32
        self.network, found = MarianMTModel.from_pretrained(
            model_name_or_path, local_files_only=True, weights_only=True, output_loading_info=True, **kwargs
        )
        lacking = sorted(found["missing_keys"])
        if lacking:  # they would be random
            raise InputError(f"{model_name_or_path} lacks {len(lacking)} of its weights, such as {lacking[0]}")
        return self.network.eval()

    def load_tokenizer(self, tokenizer_class: Any, model_name_or_path: str, **kwargs: Any) -> MarianTokenizer:
        return MarianTokenizer.from_pretrained(model_name_or_path, local_files_only=True, **kwargs)


def _convert(checkpoint: Path, folder: Path) -> MarianMTModel:
    converter = _Converter(str(checkpoint))
    try:
        converter.convert(str(folder), quantization=STORED)
    except InputError:
        raise
    except pickle.UnpicklingError:
        raise InputError(
            f"{checkpoint}: its weights are damaged, or hold more than data, which is never run; fetch it again"
        ) from None
    except Exception as error:  # of three libraries, for whatever is wrong with the files
        raise InputError(f"{checkpoint} cannot be converted: {_line(error)}; fetch it again") from None
    return converter.network


@torch.no_grad()
def reference(
    network: MarianMTModel, checkpoint: Path, vocabulary: dict[str, int], target_token: str | None = None
) -> Reference:
    """Greedy translations of sentences of random pieces, by torch in float32."""
    model, choose = _pieces(checkpoint / "source.spm"), random.Random(0)  # noqa: S311  not for secrets
    known = [piece for i in range(model.get_piece_size()) if (piece := model.id_to_piece(i)) in vocabulary]
    known = [piece for piece in known if piece not in {EOS, UNKNOWN}]
    names = {index: piece for piece, index in vocabulary.items()}
    sources = [[*choose.choices(known, k=choose.randint(*GATE_PIECES)), EOS] for _ in range(GATE_SENTENCES)]
    if target_token:
        sources = [[target_token, *source] for source in sources]
    scores = _greedy(network, [[vocabulary[piece] for piece in source] for source in sources])
    targets = []
    for each in scores:
        best = [names[int(index)] for index in each.argmax(-1)]
        targets.append(best[: best.index(EOS) if EOS in best else GATE_STEPS])
    return Reference(sources, targets, scores)


def _greedy(network: MarianMTModel, sources: Sequence[Sequence[int]]) -> torch.Tensor:
    """Log-probabilities float32 (sources, GATE_STEPS + 1, vocabulary) along the greedy translations, and past them."""
    padding = network.config.pad_token_id
    longest = max(map(len, sources))
    input_ids = torch.tensor([[*source, *[padding] * (longest - len(source))] for source in sources])
    mask = input_ids != padding
    encoded = network.get_encoder()(input_ids, attention_mask=mask)
    written = torch.full((len(sources), 1), network.config.decoder_start_token_id)
    while True:
        logits = network(encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=written).logits.float()
        logits[..., padding] = -torch.inf  # never a word; CTranslate2's vocabulary is without it
        if written.shape[1] > GATE_STEPS:
            scores: torch.Tensor = logits.log_softmax(-1)
            return scores
        written = torch.cat((written, logits[:, -1:].argmax(-1)), dim=1)


def _compare(network: MarianMTModel, expected: Reference, folder: Path, vocabulary: dict[str, int]) -> list[Figure]:
    figures = []
    for compute_type, limit in LIMITS.items():
        translator = ctranslate2.Translator(str(folder), compute_type=compute_type)
        scored = translator.score_batch(expected.sources, expected.targets)
        differences = [
            abs(got - float(scores[step, vocabulary[piece]]))
            for result, target, scores in zip(scored, expected.targets, expected.scores, strict=True)
            for step, (piece, got) in enumerate(zip([*target, EOS], result.log_probs, strict=True))
        ]
        mean = sum(differences) / len(differences)
        figures.append(Figure(f"{len(expected.sources)} sentences, {compute_type}", "log-probability", mean, limit))
        if compute_type == "float32":
            figures.append(_compare_choices(translator, expected, vocabulary))
    return figures


def _compare_choices(translator: Any, expected: Reference, vocabulary: dict[str, int]) -> Figure:
    """How much less likely, to torch, the first piece is that CTranslate2 chooses otherwise."""
    results = translator.translate_batch(
        expected.sources, beam_size=1, max_decoding_length=GATE_STEPS, return_end_token=True
    )
    worst = 0.0
    for result, target, scores in zip(results, expected.targets, expected.scores, strict=True):
        for step, (piece, best) in enumerate(zip(result.hypotheses[0], [*target, EOS], strict=False)):
            if piece != best:
                worst = max(worst, float(scores[step].max() - scores[step, vocabulary[piece]]))
                break
    return Figure(f"{len(expected.sources)} sentences, float32", "chosen piece, below the best", worst, NEAR_TIE)


def _replace(folder: Path, target: Path, old: Path) -> None:
    """A reader finds the old pair, or none for a moment, or the new one; never parts."""
    if target.exists():
        target.rename(old)
    folder.chmod(0o755)
    os.rename(folder, target)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bar and warnings."""
    level = transformers_logging.get_verbosity()
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {_line(error)}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is no JSON object")
    return content


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
