"""The command `polylip languages`: what a profile hears, translates and speaks, and what brings what is missing.

The lists of pairs in the README and in docs/languages.md are made here too, from the same table.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from polylip.client.errors import InputError
from polylip.serving.abilities import (
    Abilities,
    Needs,
    Pair,
    PairCodes,
    ProfileAbilities,
    commands,
    pairs_of,
    profile_abilities,
    profiles,
    require_pair,
    require_source,
    require_target,
)
from polylip.serving.errors import UnsupportedError
from polylip.serving.languages import Language, language_name, parse_language
from polylip.serving.opus_pairs import PIVOT

EXIT_NOT_READY = 2
AUTO = "auto"
Row = tuple[str, ...]


def languages(
    profile: Annotated[str, typer.Option(help="Whose engines to list")] = "lite",
    source: Annotated[str | None, typer.Option("--from", help="Only this source: es, es-MX, Spanish")] = None,
    target: Annotated[str | None, typer.Option("--to", help="Only this target; with --from: can it be done?")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON to standard output")] = False,
) -> None:
    """List the languages of a profile: what is ready here, and which command brings the rest.

    With both --from and --to the exit code answers: 0 ready, 2 not ready or not possible.

    Example: polylip languages --profile cpu --from en
    """
    wanted = tuple(wanted_language(text).code if text is not None else None for text in (source, target))
    abilities = profile_abilities(profile)
    shown = _chosen(abilities, *wanted)
    if as_json:
        print(json.dumps(_facts(profile, abilities, shown)))
    elif None not in wanted:
        print(_answer(abilities, shown[0]))
    else:
        print(_text(profile, abilities, shown))
    if None not in wanted and not shown[0].ready:
        raise typer.Exit(EXIT_NOT_READY)


def wanted_language(text: str) -> Language:
    """The language that an option names. Raises InputError with the nearest guess."""
    try:
        return parse_language(text)
    except UnsupportedError as error:
        raise InputError(str(error)) from None


def source_tag(text: str) -> str:
    """The tag of the option --from: `auto`, or as `target_tag`. Raises InputError."""
    return AUTO if text.strip().lower() == AUTO else wanted_language(text).tag


def target_tag(text: str) -> str:
    """The BCP 47 tag of the option --to: `es`, `pt-BR`. Raises InputError."""
    if text.strip().lower() == AUTO:
        raise InputError("the target language must be named, for example: es")
    return wanted_language(text).tag


def _chosen(abilities: ProfileAbilities, source: str | None, target: str | None) -> list[Pair]:
    """The pairs asked for. Raises InputError when there are none."""
    try:
        if source is not None and target is not None:
            return [require_pair(abilities, source, target)]
        if source is not None:
            require_source(abilities, source)
        if target is not None:
            require_target(abilities, target)
    except UnsupportedError as error:
        raise InputError(str(error)) from None
    found = [pair for pair in pairs_of(abilities) if source in (None, pair.source) and target in (None, pair.target)]
    if not found:
        engine, side = abilities.translates.engine, f"from {source}" if source else f"to {target}"
        raise InputError(f"{engine} has no pair {side}; to see those that there are, leave out --from and --to")
    return found


def _answer(abilities: ProfileAbilities, pair: Pair) -> str:
    """One line: yes or no, how, and what to run."""
    through = f" through {language_name(pair.through)}" if pair.through else ""
    name = f"{pair.source}->{pair.target}"
    if pair.ready:
        engines = abilities.hears.engine, f"{abilities.translates.engine}{through}", abilities.speaks.engine
        return f"{name} is ready: {', '.join(engines)}"
    return f"{name} is possible{through}, but not ready; run: {' && '.join(commands(pair.needs))}"


def _text(profile: str, abilities: ProfileAbilities, shown: list[Pair]) -> str:
    """The table for people: a row per source, then the commands for what is missing."""
    head = ("from", "heard by", "to, ready", "spoken by", "to, not ready")
    rows = [
        (
            f"{source} {language_name(source)}",
            _with_state(abilities.hears),
            _targets(pair for pair in own if pair.ready),
            _with_state(abilities.speaks),
            _targets(pair for pair in own if not pair.ready),
        )
        for source, own in ((source, list(own)) for source, own in groupby(shown, key=lambda pair: pair.source))
    ]
    lines = [f"profile {profile}; translated by {abilities.translates.engine}", "", *_columns([head, *rows])]
    if any(pair.through for pair in shown):
        lines += ["", f"( ) goes through {language_name(PIVOT)}"]
    if missing := _missing(abilities, shown):
        lines += ["", "for what is not ready:", *_columns(missing)]
    lines += ["", f"{abilities.hears.engine} hears {_all(abilities.hears)}"]
    lines += [f"{abilities.speaks.engine} speaks {_all(abilities.speaks)}"]
    return "\n".join(lines)


def _with_state(abilities: Abilities) -> str:
    return f"{abilities.engine}{' (missing)' if abilities.needs else ''}"


def _all(abilities: Abilities) -> str:
    return f"{len(abilities.languages)}: {' '.join(sorted(abilities.languages))}"


def _targets(pairs: Iterable[Pair]) -> str:
    return ", ".join(f"({pair.target})" if pair.through else pair.target for pair in pairs) or "-"


def _missing(abilities: ProfileAbilities, shown: list[Pair]) -> list[Row]:
    """What to run: once for all pairs, then for each target and each translation that needs more."""
    around, more = abilities.hears.needs + abilities.speaks.needs, abilities.speaks.more_needs
    links = {link for pair in shown if not pair.ready for link in pair.links}
    parts = [
        ("any pair", around),
        *((f"speak {target}", more.get(target, ())) for target in sorted({pair.target for pair in shown})),
        *((f"{source}->{target}", _own(abilities, (source, target), around)) for source, target in sorted(links)),
    ]
    return [(what, " && ".join(commands(needs))) for what, needs in parts if needs]


def _own(abilities: ProfileAbilities, link: PairCodes, around: Needs) -> Needs:
    return tuple(need for need in abilities.translates.pairs[link] if need not in around)


def _columns(rows: list[Row]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _facts(profile: str, abilities: ProfileAbilities, shown: list[Pair]) -> dict[str, Any]:
    return {
        "profile": profile,
        "hears": _engine_facts(abilities.hears),
        "translates": {"engine": abilities.translates.engine},
        "speaks": _engine_facts(abilities.speaks),
        "pairs": [
            {
                "from": pair.source,
                "to": pair.target,
                "through": pair.through,
                "ready": pair.ready,
                "run": commands(pair.needs),
            }
            for pair in shown
        ],
    }


def _engine_facts(abilities: Abilities) -> dict[str, Any]:
    return {
        "engine": abilities.engine,
        "languages": sorted(abilities.languages),
        "ready": not abilities.needs,
        "run": commands(abilities.needs),
    }


def readme_lines(model_repository: Path | None = None) -> list[str]:
    """The README's list of pairs: one line for each group of profiles with the same engines."""
    lines = []
    for names, abilities in _groups(model_repository):
        everything = pairs_of(abilities)
        direct = "; ".join(f"{arrow}{', '.join(codes)}" for arrow, codes in _arrows(everything))
        joined = f"; any two of them through English ({len(everything)} pairs)" if _joined(everything) else ""
        hears, speaks = abilities.hears, abilities.speaks
        lines.append(
            f"- {names}: {direct} with {abilities.translates.engine}{joined}. "
            f"Heard: {_count(hears)} ({hears.engine}); spoken: {_count(speaks)} ({speaks.engine})."
        )
    return lines


def page_section(model_repository: Path | None = None) -> str:
    """The list of docs/languages.md: for each group of profiles, what it hears and speaks, and the table of pairs."""
    parts = []
    for names, abilities in _groups(model_repository):
        everything = pairs_of(abilities)
        targets = sorted({pair.target for pair in everything})
        cells = {(pair.source, pair.target): "through en" if pair.through else "direct" for pair in everything}
        rows = [
            f"| {source} {language_name(source)} | "
            + " | ".join(cells.get((source, target), "-") for target in targets)
            + " |"
            for source in sorted({pair.source for pair in everything})
        ]
        hears, speaks = abilities.hears, abilities.speaks
        parts += [
            f"### {names}",
            "",
            f"{hears.engine} hears {_count(hears)}, {speaks.engine} speaks {_count(speaks)}. "
            f"Pairs of {abilities.translates.engine}:",
            "",
            f"| from | {' | '.join(f'to {target}' for target in targets)} |",
            "|---|" + "---|" * len(targets),
            *rows,
            "",
        ]
    return "\n".join(parts)


def _count(abilities: Abilities) -> str:
    """`English`, or `17 languages`."""
    known = sorted(abilities.languages)
    return language_name(known[0]) if len(known) == 1 else f"{len(known)} languages"


def _joined(pairs: list[Pair]) -> bool:
    return any(pair.through for pair in pairs)


def _arrows(pairs: list[Pair]) -> list[tuple[str, list[str]]]:
    """Direct pairs by source, those in both directions from English once: `en<->` with `de`, `es`."""
    direct = {(pair.source, pair.target) for pair in pairs if not pair.through}
    both = sorted(b for a, b in direct if a == PIVOT and (b, a) in direct)
    single = sorted((a, b) for a, b in direct if (b, a) not in direct or PIVOT not in (a, b))
    found = [(f"{PIVOT}<->", both)] if both else []
    return found + [(f"{a}->", [b for _, b in own]) for a, own in groupby(single, key=lambda pair: pair[0])]


def _groups(model_repository: Path | None) -> list[tuple[str, ProfileAbilities]]:
    """Profiles with the same engines, as `cpu`, `gpu`, and all that these can do anywhere."""
    groups: dict[Row, tuple[list[str], ProfileAbilities]] = {}
    for name in profiles(model_repository):
        abilities = profile_abilities(name, model_repository, look=False)
        engines = abilities.hears.engine, abilities.translates.engine, abilities.speaks.engine
        groups.setdefault(engines, ([], abilities))[0].append(f"`{name}`")
    return [(", ".join(names), abilities) for names, abilities in groups.values()]
