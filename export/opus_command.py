"""The command `polylip export opus-mt`: fetched translation models in, pairs that the model repository serves out."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from polylip.client.errors import InputError
from polylip.export.manifest import read_manifest
from polylip.serving.errors import MissingError
from polylip.serving.runtime import find_model_repository
from polylip.serving.weights import weights_root

ALL = "all"
PAIR = re.compile(r"[a-z]{2,3}-[a-z]{2,3}")
FETCHED = "opus-mt-{}"  # in the folder of weights
VERSION = "translate/1"  # in the model repository
PACKAGES = ("ctranslate2", "sentencepiece", "torch", "transformers")


def opus_mt(
    pairs: Annotated[list[str], typer.Argument(help="Language pairs such as en-es, or all that are fetched: all")],
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Folder of the checkpoint; by default the fetched one in $POLYLIP_WEIGHTS or ./weights"),
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Model repository to write into; by default this one's")
    ] = None,
    target_token: Annotated[
        str | None, typer.Option(help="Such as >>fra<<, where a model translates into several languages")
    ] = None,
    generated: Annotated[
        bool, typer.Option("--generated", help="Random weights, or those of the checkpoint are; for tests")
    ] = False,
) -> None:
    """Convert Opus-MT translation models for CTranslate2.

    Each is compared with its torch network first; one that differs is not written. A running server finds new pairs
    by itself.

    Example: polylip export opus-mt en-es es-en
    """
    root = weights_root()
    wanted = _wanted(pairs, root)
    if len(wanted) > 1 and (checkpoint or target_token):
        raise InputError("--checkpoint and --target-token belong to one pair; name it")
    try:
        from polylip.export import generated_marian  # noqa: PLC0415  needs the extras `export` and `speech`
        from polylip.export.opus_mt import convert_opus_mt  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        raise InputError(f"{error.name} is not installed; run: pip install 'polylip[export,speech]'") from None
    repository = output_dir or find_model_repository()
    if generated:
        _note("warning: generated weights have learnt nothing; what is translated with them means nothing")
    with TemporaryDirectory() as made:
        for pair in wanted:
            source = checkpoint
            if source is None and generated:
                source = generated_marian.make_marian(Path(made, pair), pair)
            source = source or _fetched(pair, root)
            target = repository / VERSION / pair
            print(convert_opus_mt(source, target, generated, target_token, _note))


def _wanted(pairs: list[str], root: Path) -> list[str]:
    wrong = [pair for pair in pairs if pair != ALL and not PAIR.fullmatch(pair)]
    if wrong:
        raise InputError(f"{wrong[0]!r} is no language pair; one looks like en-es")
    if ALL not in pairs:
        return list(dict.fromkeys(pairs))
    there = sorted(root.iterdir()) if root.is_dir() else []
    names = [folder.name.removeprefix(FETCHED.format("")) for folder in there if folder.is_dir()]
    fetched = [name for name in names if PAIR.fullmatch(name) and (root / FETCHED.format(name)).is_dir()]
    if not fetched:
        raise MissingError(f"no Opus-MT model is in {root}; run: polylip fetch opus-mt-en-es")
    return fetched


def _fetched(pair: str, root: Path) -> Path:
    name = FETCHED.format(pair)
    if not (root / name).is_dir():
        manifest, prefix = read_manifest(), FETCHED.format("")
        known = sorted(model.removeprefix(prefix) for model in manifest if model.startswith(prefix))
        fetch = f"run: polylip fetch {name}, or" if name in manifest else f"known pairs: {', '.join(known)}; or"
        raise MissingError(
            f"{name} is not in {root}; {fetch} give its folder with --checkpoint DIR, "
            "or --generated for weights that are only good for tests"
        )
    return root / name


def _note(line: str) -> None:
    """Progress, kept off standard output."""
    print(line, file=sys.stderr, flush=True)
