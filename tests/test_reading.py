"""Text is cut where speech may pause, no piece is too long, and no word is lost."""

# ruff: noqa: RUF001  letters and signs of other scripts
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from polylip.serving.reading import SHORTEST_CHARACTERS, read_out, split


def at_most(limit):
    return lambda piece: len(piece) <= limit


def test_a_text_is_cut_at_its_sentences():
    assert split("The first one is here. Where is the second one? Not here!", at_most(250)) == [
        "The first one is here.",
        "Where is the second one? Not here!",
    ]


def test_quotes_and_dots_inside_words_do_not_end_a_sentence():
    text = "“Is it 3.5 metres to example.com?” she asked him. Nobody knew the answer to it."
    assert split(text, at_most(250)) == [
        "“Is it 3.5 metres to example.com?” she asked him.",
        "Nobody knew the answer to it.",
    ]


def test_short_sentences_are_spoken_with_a_neighbour():
    assert split("No. I do not think so at all.", at_most(250)) == ["No. I do not think so at all."]
    assert split("I do not think so at all. No.", at_most(250)) == ["I do not think so at all. No."]
    assert split("I do not think so at all. No.", at_most(26)) == ["I do not think so at all.", "No."]


def test_a_long_sentence_is_cut_at_commas_and_then_between_words():
    text = "When it rains, the street is wet, and nobody goes out."
    assert split(text, at_most(35)) == ["When it rains, the street is wet,", "and nobody goes out."]
    assert split("one two three four", at_most(9)) == ["one two", "three", "four"]


def test_chinese_needs_no_spaces():
    assert split("今天天气很好，我们去公园散步吧。明天可能会下雨，带上你的雨伞吧！", at_most(17)) == [
        "今天天气很好，我们去公园散步吧。",
        "明天可能会下雨，带上你的雨伞吧！",
    ]
    assert split("今天天气很好，我们去公园散步吧。", at_most(10)) == ["今天天气很好，", "我们去公园散步吧。"]


def test_other_scripts_end_their_sentences_too():
    assert len(split("यह पहला वाक्य है और लंबा है। यह दूसरा वाक्य है और लंबा है।", at_most(150))) == 2
    assert len(split("هل هذه هي الجملة الأولى؟ نعم هذه هي الجملة الثانية.", at_most(166))) == 2


def test_a_word_longer_than_the_limit_is_cut():
    assert split("abcdefgh ij", at_most(5)) == ["abcde", "fgh", "ij"]


def test_nothing_to_say_is_no_piece():
    assert split("", at_most(10)) == split(" ... — !? ", at_most(10)) == []


WORDS = st.lists(st.text("abcdefgäßżабв", min_size=1, max_size=12), max_size=60)
ENDS = st.lists(st.sampled_from(["", "", "", ",", ".", "?", ";", "...", ".”"]), min_size=60, max_size=60)


@given(WORDS, ENDS, st.integers(13, 120))
def test_no_word_is_lost_and_no_piece_too_long(words, ends, limit):
    text = " ".join(word + end for word, end in zip(words, ends, strict=False))
    pieces = split(text, at_most(limit + 4))
    assert " ".join(pieces).split() == text.split()
    assert all(len(piece) <= limit + 4 for piece in pieces)


@given(st.text("甲乙丙。，！", max_size=200), st.integers(1, 40))
def test_no_character_of_chinese_is_lost(text, limit):
    letters = [c for c in text if c in "甲乙丙"]
    pieces = split(text, at_most(limit))
    assert [c for c in "".join(pieces) if c in "甲乙丙"] == letters
    assert all(len(piece) <= limit for piece in pieces)


@given(st.lists(st.integers(1, 30), max_size=20))
def test_a_first_sentence_of_some_length_stands_alone(lengths):
    text = " ".join("x" * length + "." for length in [SHORTEST_CHARACTERS, *(n + SHORTEST_CHARACTERS for n in lengths)])
    assert split(text, at_most(250))[0] == "x" * SHORTEST_CHARACTERS + "."


def test_a_number_that_cannot_be_read_is_read_by_its_digits():
    def reader(text):
        if "12" in text:
            raise OverflowError("too large")
        return text.replace("1", "one").replace("2", "two")

    assert read_out("It is 12 here", reader) == "It is one two here"


def test_a_year_at_the_end_is_no_ordinal():
    seen = []
    assert read_out(" It was \n 2020. ", lambda text: seen.append(text) or text) == "It was 2020."
    assert seen == ["It was 2020 ."]
