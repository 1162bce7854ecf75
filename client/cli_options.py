"""The options that `dub` and `live` share, and what they come to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polylip.client.closing import Policy
from polylip.client.files import read_glossary
from polylip.client.languages_command import source_tag, target_tag
from polylip.client.tls import Tls
from polylip.client.vad import VadChoice
from polylip.client.wishes import SpeechWishes
from polylip.serving.isochrony import Fit

To = Annotated[str, typer.Option("--to", help="Target language: es, es-MX, Spanish")]
From = Annotated[str, typer.Option("--from", help="Source language, or auto")]
Url = Annotated[str | None, typer.Option(help="host:port of a running server; without it, one is started")]
Profile = Annotated[str, typer.Option(help="Engines to serve: lite (no download, no GPU), cpu, gpu, onnx, openvino")]
FaceWish = Annotated[
    str | None, typer.Option(help="The face to re-lip: its id on the contact sheet, or a place from 0 to 1: 0.7,0.4")
]
LiveFaceWish = Annotated[
    str | None, typer.Option(help="The face to re-lip: a place from 0 to 1: 0.7,0.4, or its `face_id` in a report")
]
FitWish = Annotated[
    Fit, typer.Option(help="natural: may run over; tight: in between; strict: hurries to keep to its time")
]
Consent = Annotated[
    bool,
    typer.Option("--voice-consent", help="The speaker agreed to have their voice cloned; else a stock voice speaks"),
]
Glossary = Annotated[
    Path | None,
    typer.Option(help="File with a term per line: `term` is kept, `term = translation` is forced; not with lite"),
]
Mark = Annotated[bool, typer.Option("--mark/--no-mark", help="Mark the output as AI-dubbed, for machines")]
Segmentation = Annotated[
    Policy, typer.Option(help="What closes a segment: the words (semantic), silence alone, or the paper's rule")
]
VadWish = Annotated[VadChoice, typer.Option("--vad", help="What hears speech: silero where installed, or energy")]
TlsCa = Annotated[Path | None, typer.Option("--tls-ca", help="PEM of the CA that signed the server's certificate")]
TlsCert = Annotated[Path | None, typer.Option("--tls-cert", help="PEM of this client's certificate (mTLS)")]
TlsKey = Annotated[Path | None, typer.Option("--tls-key", help="PEM of its key")]


def wishes(to: str, source: str, fit: Fit, voice_consent: bool, glossary: Path | None) -> SpeechWishes:
    """Raises InputError for a language or a file that cannot be used."""
    terms = read_glossary(glossary) if glossary else ""
    return SpeechWishes(source_tag(source), target_tag(to), fit, voice_consent, terms)


def tls(ca: Path | None, certificate: Path | None, key: Path | None) -> Tls | None:
    """None where none of them is given."""
    return None if ca is certificate is key is None else Tls(ca, certificate, key)
