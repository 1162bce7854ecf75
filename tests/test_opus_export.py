"""Opus-MT checkpoints become pairs that translate as their torch network does, or nothing is written."""

import json
import shutil
from pathlib import Path

import ctranslate2
import pytest
import torch
import typer
from safetensors.torch import save_file
from transformers import MarianMTModel
from typer.testing import CliRunner

from polylip.client.errors import InputError
from polylip.export import opus_command
from polylip.export import opus_mt as export_module
from polylip.export.generated_marian import make_marian
from polylip.export.opus_mt import convert_opus_mt
from polylip.export.parity import ParityError
from polylip.serving.engines import Passage, Status
from polylip.serving.engines.opus_mt import OpusMt
from polylip.serving.errors import MissingError
from polylip.serving.opus_pairs import FILES, RECORD, installed_pairs
from polylip.serving.weights import WEIGHTS_VARIABLE

app = typer.Typer()
app.command("opus-mt")(opus_command.opus_mt)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)  # the networks are tiny
    return make_marian(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that the test may damage."""
    return shutil.copytree(checkpoint, tmp_path / "opus-mt-en-es")


def change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_weights(checkpoint: Path, name: str, factor: float) -> None:
    weights = torch.load(checkpoint / "pytorch_model.bin", weights_only=True)
    weights[name] = weights[name] * factor
    torch.save(weights, checkpoint / "pytorch_model.bin")


def refused(checkpoint: Path, target: Path, message: str, error: type[Exception] = InputError) -> None:
    """Refused in one line, and nothing is left behind."""
    before = sorted(target.parent.iterdir())
    with pytest.raises(error, match=message) as caught:
        convert_opus_mt(checkpoint, target)
    assert "\n" not in str(caught.value)
    assert sorted(target.parent.iterdir()) == before


def test_a_converted_pair_is_complete_and_says_what_it_was_made_of(checkpoint: Path, tmp_path: Path) -> None:
    folder = convert_opus_mt(checkpoint, tmp_path / "1" / "en-es", generated=True)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert [path.name for path in folder.parent.iterdir()] == ["en-es"]
    assert installed_pairs(str(folder.parent)) == {("en", "es")}
    record = json.loads((folder / RECORD).read_text())
    assert record["source"] == {
        "weights": "generated",
        "file": "pytorch_model.bin",
        "sha256": export_module.file_sha256(checkpoint / "pytorch_model.bin"),
    }
    assert all(figure["value"] <= figure["limit"] for figure in record["parity"])
    assert {name: export_module.file_sha256(folder / name) for name in record["sha256"]} == record["sha256"]
    config = json.loads((folder / "config.json").read_text())
    assert (config["eos_token"], config["unk_token"], config["add_source_eos"]) == ("</s>", "<unk>", False)
    assert "<pad>" not in json.loads((folder / "shared_vocabulary.json").read_text())
    for compute_type in ("int8", "float32"):
        ctranslate2.Translator(str(folder), compute_type=compute_type)


def test_safetensors_give_the_same_pair(copy: Path, tmp_path: Path) -> None:
    first = convert_opus_mt(copy, tmp_path / "first")
    network = MarianMTModel.from_pretrained(copy, local_files_only=True)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    save_file(state, copy / "model.safetensors", {"format": "pt"})
    (copy / "pytorch_model.bin").unlink()
    second = convert_opus_mt(copy, tmp_path / "second")
    assert (first / "model.bin").read_bytes() == (second / "model.bin").read_bytes()


def test_a_pair_is_replaced_as_a_whole(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "en-es"
    target.mkdir()
    (target / "left over").touch()
    convert_opus_mt(checkpoint, target)
    assert sorted(path.name for path in target.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("name", [*export_module.NEEDED, "pytorch_model.bin"])
def test_an_incomplete_checkpoint_is_refused_by_what_it_lacks(copy: Path, tmp_path: Path, name: str) -> None:
    (copy / name).unlink()
    refused(copy, tmp_path / "out", f"is no whole Opus-MT checkpoint, it lacks: .*{name}")


def test_no_folder_is_no_checkpoint(tmp_path: Path) -> None:
    refused(tmp_path / "none", tmp_path / "out", "is no whole Opus-MT checkpoint")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "config.json cannot be read"),
        ("config.json", '{"model_type": "bart"}', "is of a 'bart' model"),
        ("vocab.json", "[]", "is no JSON object"),
        ("vocab.json", '{"a": 0}', "is no vocabulary"),
        ("vocab.json", '{"</s>": 0, "<unk>": 1, "<pad>": 2}', "source.spm does not belong to vocab.json"),
        ("source.spm", "no model", "source.spm is no SentencePiece model"),
        ("pytorch_model.bin", "no weights", "its weights are damaged"),
    ],
)
def test_a_damaged_file_is_refused_by_name(copy: Path, tmp_path: Path, name: str, content: str, message: str) -> None:
    (copy / name).write_text(content)
    refused(copy, tmp_path / "out", message)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_not_run(copy: Path, tmp_path: Path) -> None:
    torch.save({"weights": Trap(tmp_path / "sprung")}, copy / "pytorch_model.bin")
    refused(copy, tmp_path / "out", "hold more than data, which is never run")
    assert not (tmp_path / "sprung").exists()


def test_lacking_weights_are_not_made_up(copy: Path, tmp_path: Path) -> None:
    weights = torch.load(copy / "pytorch_model.bin", weights_only=True)
    del weights["model.decoder.layers.0.fc1.weight"]
    torch.save(weights, copy / "pytorch_model.bin")
    refused(copy, tmp_path / "out", "lacks 1 of its weights, such as model.decoder.layers.0.fc1.weight")


def test_another_network_than_the_checkpoints_is_refused(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = export_module._convert

    def wrong(checkpoint: Path, folder: Path) -> MarianMTModel:
        network = convert(checkpoint, folder)
        with torch.no_grad():
            network.model.encoder.layers[0].fc1.weight.mul_(1.2)
        return network

    monkeypatch.setattr(export_module, "_convert", wrong)
    refused(copy, tmp_path / "out", "differs from its torch network: log-probability", ParityError)


def test_weights_without_numbers_are_refused(copy: Path, tmp_path: Path) -> None:
    change_weights(copy, "model.encoder.layers.0.fc1.weight", float("nan"))
    refused(copy, tmp_path / "out", "differs from its torch network", ParityError)


def test_a_model_of_several_languages_needs_its_target_token(copy: Path, tmp_path: Path) -> None:
    vocabulary = json.loads((copy / "vocab.json").read_text())
    for token, name in zip((">>fra<<", ">>spa<<"), sorted(vocabulary)[-2:], strict=True):
        vocabulary[token] = vocabulary.pop(name)
    (copy / "vocab.json").write_text(json.dumps(vocabulary))
    refused(copy, tmp_path / "out", "several languages; choose --target-token: >>fra<<, >>spa<<")
    with pytest.raises(InputError, match="no target token '>>deu<<'; it has: >>fra<<, >>spa<<"):
        convert_opus_mt(copy, tmp_path / "out", target_token=">>deu<<")  # noqa: S106
    folder = convert_opus_mt(copy, tmp_path / "en-fr", target_token=">>fra<<")  # noqa: S106
    assert json.loads((folder / RECORD).read_text())["target_token"] == ">>fra<<"  # noqa: S105
    engine = OpusMt({}, str(tmp_path))
    assert engine._pairs.get(folder).prefix == (">>fra<<",)
    result = engine.translate([Passage("The house is near.", "en", "fr", glossary="house = maison")])[0]
    assert (result.status, "maison" in result.text) == (Status.OK, True)


def test_the_command_converts_all_that_is_fetched(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    (tmp_path / "opus-mt-en-es-ct2").mkdir()
    done = CliRunner().invoke(app, ["all", "--output-dir", str(tmp_path / "repository")], catch_exceptions=False)
    target = tmp_path / "repository" / "translate" / "1" / "en-es"
    assert done.stdout == f"{target}\n"
    assert "en-es: comparing it with the torch network" in done.stderr
    assert installed_pairs(str(target.parent)) == {("en", "es")}


def test_the_command_makes_generated_pairs(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["en-de", "--generated", "--output-dir", str(tmp_path)], catch_exceptions=False)
    assert "warning: generated weights have learnt nothing" in done.stderr
    assert installed_pairs(str(tmp_path / "translate" / "1")) == {("en", "de")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["en-es"], "opus-mt-en-es is not in .*; run: polylip fetch opus-mt-en-es, or"),
        (["all"], "no Opus-MT model is in .*; run: polylip fetch opus-mt-en-es"),
        (["english"], "'english' is no language pair; one looks like en-es"),
        (["../x-es"], "is no language pair"),
        (["en-es", "es-en", "--checkpoint", "x"], "belong to one pair; name it"),
    ],
)
def test_the_command_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    with pytest.raises((InputError, MissingError), match=message):
        CliRunner().invoke(app, [*arguments, "--output-dir", str(tmp_path)], catch_exceptions=False)


def test_a_generated_checkpoint_is_the_same_twice(checkpoint: Path, tmp_path: Path) -> None:
    again = make_marian(tmp_path / "again")
    for name in (*export_module.NEEDED, "pytorch_model.bin"):
        if name == "pytorch_model.bin":
            one, other = (torch.load(f / name, weights_only=True) for f in (checkpoint, again))
            assert all(torch.equal(one[key], other[key]) for key in one)
        else:
            assert (again / name).read_bytes() == (checkpoint / name).read_bytes(), name
