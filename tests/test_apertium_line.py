"""Apertium's programs stay between texts: each text gets what it got alone, and no text or accident spoils the next."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from polylip.perf.demo_clip import SENTENCES
from polylip.serving.engines import Passage, apertium_line
from polylip.serving.engines.apertium import Apertium
from polylip.serving.engines.apertium_line import ApertiumLine
from polylip.serving.errors import EngineError

MODE = "eng-spa"
ODD = (
    "[weird] ^this/that$ {x} <b>bold</b> @ # * \\ text.",
    "one\n\ntwo\tthree   four\r\nfive",
    "x\\",
    "[[t:b:1]]house[[/]] [<STREAMCMD:FLUSH>] house",
    "the",
    "I",
    "What? No! Yes; a house: red.",
    "^ $ ] [ \\ / < > { }",
    "\ufeffhouse \u200b \U0001f600 ni\u00f1o",
    "^house<n><sg>$ ",
)


def alone(text: str, mode: str = MODE) -> str:
    """What one process per text says."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        ["apertium", "-u", mode], input=text.encode(), stdout=subprocess.PIPE, env=environment, check=True
    )
    return done.stdout.decode()


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a program may take is not asked here; a text that takes longer goes another way."""
    for name in ("TIMEOUT_S", "STALL_S", "FILTER_TIMEOUT_S"):
        monkeypatch.setattr(apertium_line, name, 60.0)


@pytest.fixture
def line():
    opened = ApertiumLine(MODE)
    yield opened
    opened.close()


def test_each_text_gets_what_it_gets_alone(line):
    for text in (*SENTENCES[:3], *ODD, SENTENCES[0]):
        assert line.translate(text) == alone(text), text


def test_a_zero_byte_in_a_text_does_not_end_it(line):
    assert line.translate("The house\0is big.\0") == alone("The house is big. ")
    assert line.translate("The boy is here.") == alone("The boy is here.")


def test_a_text_longer_than_every_pipe_comes_through(line):
    text = " ".join(SENTENCES[:2] * 600)
    assert len(text) > 65_536
    assert line.translate(text) == alone(text)


def groups() -> set[int]:
    """Lines of this process that run."""
    rows = listed("--ppid", str(os.getpid()), "-o", "pid=,comm=").splitlines()
    return {int(row.split()[0]) for row in rows if row.split()[1] == "bash"}


def listed(*arguments: str) -> str:
    return subprocess.run(["ps", *arguments], stdout=subprocess.PIPE, text=True, check=False).stdout


def test_a_line_that_broke_costs_no_text_and_is_made_anew():
    before, engine = groups(), Apertium({}, "")

    def say(text: str) -> str:
        return engine.translate([Passage(text, "en", "es")])[0].text

    assert say("The house is big.") == "La casa es grande."
    [group] = groups() - before
    os.killpg(group, signal.SIGKILL)
    assert say("The house is big.") == "La casa es grande."
    assert groups() == before, "nothing is left of it"
    assert say("The boy is here tomorrow.").endswith("mañana.")
    [again] = groups() - before
    assert say("The house is big.") == "La casa es grande."
    assert groups() - before == {again}, "and that one stays"
    engine._lines.pop(MODE).close()
    assert groups() == before


def test_a_line_that_hangs_is_left_after_its_deadline(line, monkeypatch):
    monkeypatch.setattr(apertium_line, "STALL_S", 0.3)
    os.killpg(line._process.pid, signal.SIGSTOP)
    with pytest.raises(EngineError, match="it hangs"):
        line.translate("The house is big.")


def test_an_apertium_that_cannot_keep_a_mode_translates_all_the_same(monkeypatch):
    monkeypatch.setattr(apertium_line.shutil, "which", lambda name: "/nowhere/bin/apertium")
    with pytest.raises(EngineError, match="cannot be kept running"):
        ApertiumLine(MODE)
    assert Apertium({}, "").translate([Passage("The house is big.", "en", "es")])[0].text == "La casa es grande."


def test_the_programs_end_with_their_process(tmp_path: Path):
    """Killed without a word, as Triton may do with a model's process."""
    code = (
        "import time; from polylip.serving.engines.apertium_line import ApertiumLine\n"
        f"line = ApertiumLine('{MODE}'); line.translate('house'); print(line._process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        group = int(owner.stdout.readline())
        owner.kill()
    until = time.monotonic() + 10
    while time.monotonic() < until and _lives(group):
        time.sleep(0.05)
    assert not _lives(group)


def _lives(group: int) -> bool:
    return any(not state.startswith("Z") for state in listed("-o", "stat=", "-g", str(group)).split())
