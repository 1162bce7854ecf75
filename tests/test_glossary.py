"""A glossary's terms are found as whole words, and are in the translation whatever the network said."""

# ruff: noqa: RUF001  typographic and full-width signs are what is tested

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polylip.serving.glossary import MAX_CHARACTERS, Glossary, aligned_spans, enforce, keep, parse_glossary
from polylip.serving.sentences import cut, join_sentences, split_sentences, tidy


def test_lines_keep_terms_or_force_translations() -> None:
    glossary = parse_glossary("# names\nPolylip\n\n  data  set =  juego de   datos # plural too\nC# = C#\n")
    assert glossary.terms == {"Polylip": "Polylip", "data set": "juego de datos", "C#": "C#"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("good\nbad =", 2),
        ("= bad", 1),
        ("a = b = c", 1),
        ("\n\nx" * 2 + "y" * MAX_CHARACTERS, 5),
        ("a\x07b", 1),
        ("\n".join(f"term{i}" for i in range(1001)), 1001),
    ],
)
def test_a_bad_line_is_named_by_its_number(text: str, line: int) -> None:
    with pytest.raises(ValueError, match=rf"^own, line {line}: [^\n]+$"):
        parse_glossary(text, "own")


def test_a_later_line_and_the_callers_glossary_win() -> None:
    default = parse_glossary("bank = banco\nBank = orilla\nriver = río")
    assert default.terms == {"Bank": "orilla", "river": "río"}
    assert default.with_more(parse_glossary("BANK = banca")).terms == {"river": "río", "BANK": "banca"}


@pytest.mark.parametrize(
    ("terms", "text", "found"),
    [
        ("art", "Art, start, arts and ART.", ["Art", "ART"]),
        ("New York\nNew York City = Nueva York", "In new york city, not New York.", ["new york city", "New York"]),
        ("C++", "C++ or C++17?", ["C++"]),
        ("O’Hara", "Miss O'Hara", ["O'Hara"]),
        ("东京", "我在东京住。", ["东京"]),
        ("Polylip", "用Polylip做。", ["Polylip"]),
        ("क", "कि क", ["क"]),
        ("i", "İ i", ["İ", "i"]),
    ],
)
def test_terms_are_found_as_whole_words_in_any_case(terms: str, text: str, found: list[str]) -> None:
    assert [text[match.start : match.end] for match in parse_glossary(terms).find(text)] == found


def test_an_empty_glossary_finds_nothing() -> None:
    assert Glossary({}).find("anything") == []
    assert keep([]).find("anything") == []


@pytest.mark.parametrize(
    ("translation", "wanted", "enforced"),
    [
        ("El polylip habla.", [("Polylip", [])], "El Polylip habla."),
        ("El labio habla.", [("Polylip", [(4, 5)])], "El Polylip habla."),
        ("El labio habla.", [("Polylip", [])], "El labio habla Polylip."),
        ("", [("Polylip", [])], "Polylip"),
        ("Uno dos.", [("A", [(0, 3)]), ("B", [(0, 2)])], "A dos B."),
        ("Un conjunto de datos", [("juego de datos", [(3, 20)])], "Un juego de datos"),
        ("Kia y Kia.", [("Kia", []), ("Kia", [])], "Kia y Kia."),
        ("Uno.", [("A", [(3, 4)])], "Uno A"),
        ("我在北京住。", [("东京", [(2, 4)])], "我在东京住。"),
    ],
)
def test_a_forced_term_takes_its_place(translation: str, wanted: list, enforced: str) -> None:
    assert enforce(translation, wanted) == enforced


WORDS = st.sampled_from(["uno", "dos", "tres", "Ana", "ana", "río", "el-mar", "東京", "ok"])


@settings(max_examples=300)
@given(
    st.lists(WORDS, max_size=6),
    st.lists(st.tuples(WORDS, st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=3)), max_size=4),
    st.sampled_from(["", ".", "?!", "..."]),
)
def test_every_forced_term_is_there_as_often_as_wanted(words: list[str], wanted: list, end: str) -> None:
    text = " ".join(words) + end
    enforced = enforce(text, [(f, [(min(s), min(max(s), len(text))) for s in spans]) for f, spans in wanted])
    found = [m.forced for m in keep({f for f, _ in wanted}).find(enforced)]
    for forced, _ in wanted:
        assert enforced.count(forced) >= sum(other == forced for other, _ in wanted)
        assert forced.casefold() in [term.casefold() for term in found]


def test_attention_names_the_run_of_pieces_that_looks_at_the_term_most() -> None:
    text, targets = "El gran perro.", [(0, 2), (2, 7), (7, 10), (10, 13), (13, 14)]
    attention = [[0.9, 0.1, 0.0], [0.2, 0.6, 0.2], [0.1, 0.8, 0.1], [0.0, 0.9, 0.1], [0.1, 0.9, 0.0]]
    assert aligned_spans(attention, targets, [1], text)[0] == (2, 13)
    assert text[slice(*aligned_spans(attention, targets, [0], text)[0])] == "El"
    assert text[slice(*aligned_spans(attention, targets, [2], text)[0])] == " gran", "no argmax: the most weight"


@pytest.mark.parametrize(
    ("language", "text", "sentences"),
    [
        ("en", "Dr. Smith paid 3.5 dollars. Really?! Yes... He did.", 4),
        ("fr", "M. Dupont est là. Il dort.", 2),
        ("de", "Am 3. Mai kam Dr. Meier z. B. mit dem Zug. Gut.", 2),
        ("zh", "我很好。你呢？他走了！", 3),
        ("ja", "これはペンです。あなたは？", 2),
        ("es", "¿De verdad?! ¡Sí! El Sr. López llegó.", 3),
    ],
)
def test_sentences_end_where_they_end(language: str, text: str, sentences: int) -> None:
    parts = split_sentences(text, language)
    assert len(parts) == sentences, parts
    assert join_sentences(parts, language) == text


def test_no_sentence_ends_within_a_term() -> None:
    text = "I work at Yahoo! Answers. It is fun."
    match = parse_glossary("Yahoo! Answers").find(text)[0]
    assert split_sentences(text, "en", [(match.start, match.end)]) == ["I work at Yahoo! Answers.", "It is fun."]


def test_text_is_tidied() -> None:
    assert tidy(" “It’s”\n\tso…  co\u00adop ") == '"It\'s" so... coop'


def _ends(text: str) -> list[int]:
    return list(range(1, len(text) + 1))  # a piece per character


def test_a_long_sentence_is_cut_at_commas_then_spaces_then_anywhere() -> None:
    assert cut("one two, three four", _ends, 14, lambda _: []) == ["one two,", "three four"]
    assert cut("one, three four five", _ends, 15, lambda _: []) == ["one, three", "four five"]
    assert cut("abcdefgh", _ends, 3, lambda _: []) == ["abc", "def", "gh"]
    assert cut("aa bb cc dd", _ends, 7, lambda part: [(3, 8)] if len(part) > 8 else []) == ["aa", "bb cc", "dd"]


def test_cutting_loses_nothing() -> None:
    choose = random.Random(1)  # noqa: S311  not for secrets
    for _ in range(200):
        text = " ".join("".join(choose.choices("abc,;，。 ", k=choose.randint(1, 60))).split())
        parts = cut(text, _ends, 9, lambda _: [])
        assert "".join("".join(parts).split()) == "".join(text.split())
        assert all(0 < len(part) <= 9 for part in parts)
