"""The Opus-MT engine with small networks that know a few sentences by heart, and with random ones."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from polylip.export.generated_marian import make_marian
from polylip.export.opus_mt import convert_opus_mt
from polylip.serving.engines import ENGINES, Passage, Status, load_engine
from polylip.serving.engines import opus_mt as engine_module
from polylip.serving.engines.opus_mt import OpusMt
from polylip.serving.errors import MissingError
from polylip.serving.opus_pairs import FILES, PairCache, installed_pairs, pair_folders, route
from polylip.serving.weights import WEIGHTS_VARIABLE

WHO = (("The dog", "El perro", "Der Hund"), ("My friend", "Mi amigo", "Mein Freund"))
WHO += (("Dr. Smith", "El Dr. Smith", "Dr. Smith"), ("Polylip", "Polylip", "Polylip"))
WHAT = (("is here", "está aquí", "ist hier"), ("sleeps well", "duerme bien", "schläft gut"))
WHAT += (("wants the red car", "quiere el coche rojo", "will das rote Auto"), ("reads", "lee", "liest"))
ENGLISH, SPANISH, GERMAN = ([f"{who[i]} {what[i]}." for who in WHO for what in WHAT] for i in range(3))
NONSENSE = "qua zorb, flim nop tra; wek blu!"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Converted pairs: en-es and de-en know their sentences, es-fr is random."""
    folder = tmp_path_factory.mktemp("opus")
    torch.set_num_threads(1)  # the networks are tiny
    lessons = {"en-es": (ENGLISH, SPANISH), "de-en": (GERMAN, ENGLISH), "es-fr": ((), ())}
    for pair, (source, target) in lessons.items():
        train_on = list(zip(source, target, strict=True))
        checkpoint = make_marian(folder / "checkpoints" / pair, pair, train_on=train_on)
        convert_opus_mt(checkpoint, folder / "1" / pair, generated=True)
    return folder / "1"


@pytest.fixture(autouse=True)
def _no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path / "weights"))


@pytest.fixture(scope="module")
def engine(made: Path) -> OpusMt:
    return OpusMt({}, str(made))


def passage(text: str, source: str = "en", target: str = "es", **more) -> Passage:
    return Passage(text, source, target, **more)


def texts(engine: OpusMt, *passages: Passage) -> list[str]:
    results = engine.translate(passages)
    assert [(result.status, result.message) for result in results] == [(Status.OK, "")] * len(passages)
    return [result.text for result in results]


def test_the_registry_loads_it(made: Path) -> None:
    assert "opus-mt" in ENGINES["translate"]
    loaded = load_engine("translate", {"engine": "opus-mt", "threads": "1"}, str(made))
    assert texts(loaded, passage(ENGLISH[0])) == [SPANISH[0]]


def test_every_sentence_is_translated_in_its_place(engine: OpusMt) -> None:
    orders = [range(16), range(15, -1, -1), (3, 3, 9)]
    passages = [passage("  ".join(ENGLISH[i] for i in order)) for order in orders]
    assert texts(engine, *passages) == [" ".join(SPANISH[i] for i in order) for order in orders]


@pytest.mark.parametrize("beam_size", ["1", "3"])
def test_a_batch_gives_what_each_gives_alone(made: Path, beam_size: str) -> None:
    engine = OpusMt({"beam_size": beam_size}, str(made))
    passages = [passage(text) for text in (*ENGLISH[:6], NONSENSE, " ".join(ENGLISH), "Red dog!")]
    passages += [passage(text, "es", "fr") for text in (*SPANISH[:3], "perro " * 15)]
    passages += [passage(GERMAN[5], "de", "es"), passage(GERMAN[1], "de", "en")]
    assert texts(engine, *passages) == [texts(engine, alone)[0] for alone in passages]


def test_one_call_serves_all_passages_of_a_pair(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []
    search = engine_module._search

    def counted(model, units, *rest):
        batches.append(len(units))
        return search(model, units, *rest)

    monkeypatch.setattr(engine_module, "_search", counted)
    passages = [passage(f"{ENGLISH[0]} {ENGLISH[1]}"), passage(ENGLISH[2]), passage(GERMAN[2], "de", "es")]
    assert texts(OpusMt({}, str(made)), *passages) == [f"{SPANISH[0]} {SPANISH[1]}", SPANISH[2], SPANISH[2]]
    assert [size for size in batches if size] == [1, 4], "de->en, then its result with the others en->es"


def test_a_pair_that_is_not_there_goes_through_english(engine: OpusMt, made: Path) -> None:
    assert texts(engine, *[passage(text, "de", "es") for text in GERMAN]) == SPANISH
    assert route(pair_folders(str(made)), "de", "es") == [("de", "en"), ("en", "es")]
    assert installed_pairs(str(made)) == {("en", "es"), ("de", "en"), ("es", "fr"), ("de", "es")}


def test_an_unsupported_pair_names_what_there_is_and_touches_no_other(engine: OpusMt) -> None:
    wanted = [passage("Hi.", "en", "it"), passage(ENGLISH[4]), passage("Hallo.", "de", "it"), passage("Ciao.", "it")]
    first, good, half, both = engine.translate(wanted)
    assert (good.status, good.text) == (Status.OK, SPANISH[4])
    assert {first.status, half.status, both.status} == {Status.UNSUPPORTED}
    assert first.message == (
        "language pair en->it has no Opus-MT model here; there: de->en, en->es, es->fr, and what these give through "
        "English; run: polylip fetch opus-mt-en-it, then polylip export opus-mt en-it"
    )
    assert "polylip export opus-mt en-it, which completes de->en->it" in half.message
    assert "polylip export opus-mt it-en, which completes it->en->es" in both.message


def test_nothing_to_say_and_nothing_to_translate(engine: OpusMt) -> None:
    assert texts(engine, passage(" \n"), passage(" As it  is. ", "en", "en"), passage("", "xx", "yy")) == [
        "",
        " As it  is. ",
        "",
    ]


def test_languages_are_names_not_paths(engine: OpusMt) -> None:
    assert engine.translate([passage("Hi.", "../1/en", "es")])[0].status == Status.UNSUPPORTED


def test_a_pair_is_found_when_it_comes_and_when_it_changes(made: Path, tmp_path: Path) -> None:
    engine = OpusMt({}, str(tmp_path))
    assert "there: none" in engine.translate([passage(ENGLISH[0])])[0].message
    shutil.copytree(made / "en-es", tmp_path / "en-es")
    assert texts(engine, passage(ENGLISH[0])) == [SPANISH[0]]
    shutil.rmtree(tmp_path / "en-es")
    assert engine.translate([passage(ENGLISH[0])])[0].status == Status.UNSUPPORTED
    shutil.copytree(made / "de-en", tmp_path / "en-es")  # another model under the same name
    (tmp_path / "en-es" / "opus.json").touch()
    assert texts(engine, passage(GERMAN[0])) == [ENGLISH[0]]


def test_pairs_lie_among_the_weights_too(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "en-es", tmp_path / "weights" / "opus-mt-en-es-ct2")
    shutil.copytree(made / "de-en", tmp_path / "weights" / "opus-mt-de-en-ct2")
    (tmp_path / "weights" / "opus-mt-de-en-ct2" / "source.spm").unlink()
    assert installed_pairs(str(tmp_path / "1")) == {("en", "es")}, "an incomplete pair is none"
    assert texts(OpusMt({}, str(tmp_path / "1")), passage(ENGLISH[7])) == [SPANISH[7]]


def test_the_least_recently_used_pair_leaves_when_memory_is_full(tmp_path: Path) -> None:
    for name in "abc":
        for file in FILES:
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / file).write_bytes(b"." * 100)
    loads: list[str] = []
    cache: PairCache[str] = PairCache(lambda folder: loads.append(folder.name) or folder.name, 1300)
    for name in "abacabb":
        assert cache.get(tmp_path / name) == name
    assert "".join(loads) == "abcb", "c takes b's place, then b takes c's"
    assert [folder.name for folder in cache.loaded()] == ["a", "b"]
    small: PairCache[str] = PairCache(lambda folder: loads.append(folder.name) or folder.name, 1)
    assert (small.get(tmp_path / "a"), small.get(tmp_path / "a"), len(small.loaded())) == ("a", "a", 1)


def test_pairs_are_loaded_again_after_they_left(made: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    engine = OpusMt({"memory_limit_mib": "1"}, str(made))
    both = [passage(ENGLISH[0]), passage(GERMAN[0], "de", "en")]
    for _ in range(2):
        assert texts(engine, *both) == [SPANISH[0], ENGLISH[0]]
    assert sum("loaded" in record.message for record in caplog.records) == 4
    roomy = OpusMt({}, str(made))
    caplog.clear()
    for _ in range(2):
        assert texts(roomy, *both) == [SPANISH[0], ENGLISH[0]]
    assert sum("loaded" in record.message for record in caplog.records) == 2


def test_a_long_sentence_is_translated_to_its_end(engine: OpusMt) -> None:
    clause = ENGLISH[8].rstrip(".")
    long = ", ".join([clause] * 60)
    seen = engine_module._encode(engine._pairs.get(pair_folders(engine._version_dir)["en", "es"]), long)
    assert len(seen[0]) > 512
    assert texts(engine, passage(f"{long}. {ENGLISH[3]}"))[0].endswith(SPANISH[3])
    assert texts(engine, passage("x" * 3000)), "no comma, no space"


def test_a_translation_without_end_is_bounded(engine: OpusMt) -> None:
    text = texts(engine, passage("perro " * 30, "es", "fr"))[0]
    assert len(text) < 30 * 60
    words = text.split()
    triples = list(zip(words, words[1:], words[2:], strict=False))
    assert len(set(triples)) > len(triples) / 2, "a random network loops unless it is kept from it"


@pytest.mark.parametrize(
    ("pieces", "loops"),
    [("aaaa", True), ("aaab", False), ("xabababab", True), ("abcabcabc", False), ("abcabcabcabc", True), ("", False)],
)
def test_loops_are_seen(pieces: str, loops: bool) -> None:
    assert engine_module._loops(pieces) is loops


GLOSSARY = "red car = bólido\nPolylip\nzorb = Zorb & Co.\nHund = Hündchen"


@pytest.mark.parametrize(
    ("text", "source", "target", "forced"),
    [
        ("The dog wants the RED CAR.", "en", "es", ["bólido"]),
        ("polylip reads. Polylip is here.", "en", "es", ["Polylip", "Polylip"]),
        (NONSENSE, "en", "es", ["Zorb & Co."]),
        ("zorb zorb zorb", "en", "es", ["Zorb & Co."] * 3),
        ("un red car, dos polylip.", "es", "fr", ["bólido", "Polylip"]),
        ("Der Hund ist hier. Polylip liest. zorb!", "de", "es", ["Hündchen", "Polylip", "Zorb & Co."]),
        (f"{'red car, ' * 60}end.", "es", "fr", ["bólido"] * 60),
    ],
)
def test_forced_terms_are_in_the_translation(
    engine: OpusMt, text: str, source: str, target: str, forced: list[str]
) -> None:
    translation = texts(engine, passage(text, source, target, glossary=GLOSSARY))[0]
    for term in set(forced):
        assert translation.count(term) >= forced.count(term), translation


def test_terms_that_are_translated_so_already_change_nothing(engine: OpusMt) -> None:
    glossary = "dog = perro\nabsent = ausente"
    assert texts(engine, passage(ENGLISH[0], glossary=glossary)) == [SPANISH[0]]


def test_the_servers_glossary_gives_way_to_the_callers(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "terms.txt"
    path.write_text("dog = can\nreads = hojea\n", encoding="utf-8")
    engine = OpusMt({"glossary": str(path)}, str(made))
    one, other = texts(engine, passage("The dog reads."), passage("The dog reads.", glossary="dog = chucho"))
    assert "can" in one.split()
    assert "hojea" in one
    assert "chucho" in other.split()
    assert "can" not in other.split()


def test_a_bad_glossary_fails_its_passage_only(engine: OpusMt) -> None:
    bad, good = engine.translate([passage("Hi.", glossary="ok\n= no"), passage(ENGLISH[2])])
    assert (bad.status, bad.message) == (
        Status.ERROR,
        "glossary, line 2: '= no' is neither `term` nor `term = translation`",
    )
    assert good.text == SPANISH[2]


def countdown(calls: int) -> Callable[[], bool]:
    """True after so many questions."""
    left = [calls]

    def cancelled() -> bool:
        left[0] -= 1
        return left[0] < 0

    return cancelled


@pytest.mark.parametrize("questions", [0, 1, 2, 3])
def test_a_cancelled_passage_ends_and_the_others_go_on(
    engine: OpusMt, monkeypatch: pytest.MonkeyPatch, questions: int
) -> None:
    monkeypatch.setattr(engine_module, "POLL_S", 0.0)
    dropped = passage(" ".join(ENGLISH), cancelled=countdown(questions))
    results = engine.translate([passage(ENGLISH[0]), dropped, passage(" ".join(ENGLISH[3:9]))])
    assert [result.status for result in results] == [Status.OK, Status.CANCELLED, Status.OK]
    assert [results[0].text, results[2].text] == [SPANISH[0], " ".join(SPANISH[3:9])]


def test_cancelling_stops_between_two_words(engine: OpusMt, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    monkeypatch.setattr(engine_module._Job, "poll", lambda job: steps.append(job) or len(steps) > 5)
    monkeypatch.setattr(engine_module._Job, "is_dropped", lambda job: len(steps) > 5)
    result = engine.translate([passage("perro " * 30, "es", "fr", cancelled=lambda: False)])
    assert (result[0].status, len(steps)) == (Status.CANCELLED, 6), "a random network would go on for 100 pieces"


def test_a_damaged_pair_fails_its_passages_only(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "1")
    (tmp_path / "1" / "de-en" / "model.bin").write_bytes(b"no model")
    broken, good, through = OpusMt({}, str(tmp_path / "1")).translate(
        [passage(GERMAN[0], "de", "en"), passage(ENGLISH[0]), passage(GERMAN[0], "de", "es")]
    )
    assert good.text == SPANISH[0]
    assert (broken.status, through.status) == (Status.ERROR, Status.ERROR)
    assert "polylip export opus-mt de-en" in broken.message
    assert "\n" not in broken.message


def test_only_the_passage_that_breaks_the_engine_fails(engine: OpusMt, monkeypatch: pytest.MonkeyPatch) -> None:
    search = engine_module._search

    def fragile(model, units, *rest):
        if any("reads" in unit.text for unit in units):
            raise RuntimeError("out of\nmemory")
        return search(model, units, *rest)

    monkeypatch.setattr(engine_module, "_search", fragile)
    good, bad, other = engine.translate([passage(ENGLISH[0]), passage("My friend reads."), passage(ENGLISH[2])])
    assert (good.text, other.text) == (SPANISH[0], SPANISH[2])
    assert bad.status == Status.ERROR
    assert "failed: out of memory;" in bad.message


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("device", "tpu", "parameter device is 'tpu'; it can be cpu or cuda"),
        ("compute_type", "int3", "parameter compute_type is 'int3'; cpu here has .*int8"),
        ("beam_size", "0", "parameter beam_size is '0'; it must be a whole number from 1 up"),
        ("memory_limit_mib", "much", "parameter memory_limit_mib is 'much'"),
        ("glossary", "/no/such/file", "parameter glossary: cannot read /no/such/file: No such file"),
    ],
)
def test_a_wrong_parameter_is_refused_at_once(tmp_path: Path, name: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OpusMt({name: value}, str(tmp_path))


def test_cuda_without_a_gpu_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctranslate2.get_cuda_device_count", lambda: 0)
    with pytest.raises(MissingError, match="no NVIDIA GPU"):
        OpusMt({"device": "cuda"}, str(tmp_path))


@pytest.mark.parametrize("package", engine_module.PACKAGES)
def test_a_missing_package_is_one_line(package: str, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        f"sys.modules[{package!r}] = None\n"
        "from polylip.serving.engines import load_engine\n"
        "from polylip.serving.opus_pairs import installed_pairs\n"
        f"assert installed_pairs({str(tmp_path)!r}) == set()\n"
        "try:\n"
        f"    load_engine('translate', {{'engine': 'opus-mt'}}, {str(tmp_path)!r})\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout == f"MissingError {package} is not installed; run: pip install 'polylip[speech]'\n"


def test_pairs_are_listed_without_the_translator() -> None:
    program = "import sys, polylip.serving.opus_pairs; print([m for m in ('ctranslate2', 'torch') if m in sys.modules])"
    started_s = work_of_children_s()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, work_of_children_s() - started_s < 10) == ("[]\n", True)


def work_of_children_s() -> float:
    """CPU time of the processes that have ended: unlike the time that passes, it is not that of others."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
