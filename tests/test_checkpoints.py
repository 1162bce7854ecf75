"""Checkpoints of every form load into the same network; what is none, is damaged or belongs elsewhere is refused."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from polylip.client.errors import InputError
from polylip.export.checkpoints import FORMS, CheckpointError, checkpoint_sha256, load_network, save_checkpoint
from polylip.export.networks import S3FD, SyncNet


@pytest.fixture(scope="module")
def network() -> SyncNet:
    """The smallest of the three, with counters that are not 0."""
    torch.manual_seed(0)
    made = SyncNet()
    for name, tensor in made.named_buffers():
        tensor.fill_(7 if name.endswith("tracked") else 0.5)
    return made


@pytest.fixture
def state(network: SyncNet) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def refusal(path: Path, name: str = "syncnet") -> str:
    """The message, which is one line."""
    with pytest.raises(CheckpointError) as caught:
        load_network(name, path)
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    return str(caught.value)


CASES = [(form, "", False) for form in FORMS] + [
    ("training", "module.", False),
    ("training", "module.", True),
    ("bare", "", True),
    ("safetensors", "module.", False),
]


@pytest.mark.parametrize(("form", "prefix", "legacy"), CASES)
def test_every_form_loads_into_the_same_network(form, prefix, legacy, network, tmp_path):
    path = save_checkpoint(network, tmp_path / "any.name", form, prefix, legacy)
    loaded = load_network("syncnet", path)
    assert not loaded.training
    wanted = network.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in loaded.state_dict().items())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype, state, tmp_path):
    narrow = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
    loaded = load_network("syncnet", saved(tmp_path / "x.pth", narrow)).state_dict()
    for name, tensor in loaded.items():
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor, narrow[name].to(tensor.dtype))


def test_counters_that_old_files_lack_are_not_missed(state, tmp_path):
    old = {name: tensor for name, tensor in state.items() if "tracked" not in name}
    load_network("syncnet", saved(tmp_path / "old.pth", old))


class Command:
    """A pickle that makes a file when it is loaded by a careless reader."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("legacy", [True, False])
def test_code_in_a_pickle_does_not_run(legacy, tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "bad.pth"
    content = {"state_dict": Command(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    message = refusal(path)
    assert not trace.exists()
    assert "could run code" in message and "system" in message
    torch.load(path, weights_only=False)
    assert trace.exists()  # so the pickle was able to


def test_code_in_a_torchscript_archive_does_not_run(network, tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "bad.pt"
    good = save_checkpoint(network, tmp_path / "good.pt", "torchscript")
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            is_weights = name.endswith("/data.pkl")
            target.writestr(name, pickle.dumps(Command(trace)) if is_weights else source.read(name))
    assert "could run code" in refusal(path)
    assert not trace.exists()


def test_a_whole_pickled_module_is_refused(network, tmp_path):
    assert "could run code" in refusal(saved(tmp_path / "module.pth", torch.nn.Linear(2, 2)))


@pytest.mark.parametrize(("form", "share"), [*((form, 0.5) for form in FORMS), ("bare", 0.0001), ("bare", 0.999)])
def test_files_that_are_cut_short_are_called_so(form, share, network, tmp_path):
    path = save_checkpoint(network, tmp_path / "cut.pth", form)
    os.truncate(path, int(path.stat().st_size * share))
    assert "cut short or damaged" in refusal(path)


def test_legacy_files_that_are_cut_short_are_called_so(network, tmp_path):
    path = save_checkpoint(network, tmp_path / "cut.pth", "bare", legacy=True)
    os.truncate(path, path.stat().st_size // 2)
    assert "cut short or damaged" in refusal(path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "not a checkpoint"),
        (b"hello", "not a checkpoint"),
        (b"\x00" * 4096, "not a checkpoint"),
        (b"<!DOCTYPE html><html>quota exceeded</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\x80\x02garbage", "cut short or damaged"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", "cut short or damaged"),
        (pickle.dumps({"a": 1}, protocol=2), "cut short or damaged"),
    ],
)
def test_other_files_are_called_what_they_are(content, what, tmp_path):
    path = tmp_path / "download.pth"
    path.write_bytes(content)
    assert what in refusal(path)


def test_another_zip_archive_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refusal(tmp_path / "other.zip")


def test_a_missing_file_and_a_folder_are_one_line(tmp_path):
    assert "No such file" in refusal(tmp_path / "none.pth")
    assert "directory" in refusal(tmp_path)


@pytest.mark.parametrize(
    "content", [[1, 2], {"epoch": 3}, {"state_dict": {"a": 1}}, {}, torch.zeros(3), {3: torch.ones(1)}]
)
def test_what_holds_no_state_dict_is_refused(content, tmp_path):
    assert "no state dict" in refusal(saved(tmp_path / "x.pth", content))


def test_tensors_that_do_not_fit_are_counted_and_named(state, tmp_path):
    del state["netcnnaud.0.weight"], state["netfcaud.3.bias"]
    state["more\nthan wanted"] = torch.ones(1)
    state["netfclip.3.bias"] = torch.ones(5)
    message = refusal(saved(tmp_path / "x.pth", state))
    assert "of 102 tensors 2 missing (netcnnaud.0.weight, netfcaud.3.bias)" in message
    assert "1 extra (more?than wanted)" in message
    assert "1 of another shape (netfclip.3.bias: (5,) for (1024,))" in message


@pytest.mark.parametrize(
    ("name", "tensors", "guess"),
    [
        ("s3fd", ["vgg.0.weight", "L2Norm3_3.weight", "loc.0.weight"], "joonson's port of S3FD"),
        ("wav2lip", ["face_encoder.0.conv_block.0.weight", "audio_encoder.0.conv_block.0.weight"], "Wav2Lip's expert"),
        ("wav2lip", ["face_encoder_blocks.0.0.conv_block.0.weight", "audio_encoder.99.weight"], "288 or 384 px"),
        ("wav2lip", ["face_encoder_blocks.0.0.conv_block.0.weight", "binary_pred.0.weight"], "discriminator"),
        ("wav2lip", ["netcnnaud.0.weight"], "SyncNet v2"),
        ("syncnet", ["conv3_3_norm.weight"], "S3FD"),
    ],
)
def test_the_message_says_what_a_wrong_checkpoint_seems_to_be(name, tensors, guess, tmp_path):
    message = refusal(saved(tmp_path / "x.pth", {key: torch.ones(2) for key in tensors}), name)
    assert guess in message and " is needed" in message


def test_the_message_names_the_public_file(tmp_path):
    path = saved(tmp_path / "x.pth", {"vgg.0.weight": torch.ones(2)})
    assert refusal(path, "s3fd").endswith("s3fd-619a316812.pth is needed")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value, state, tmp_path):
    state["netfclip.3.bias"][3] = value
    assert "1 of 1024 weights in netfclip.3.bias" in refusal(saved(tmp_path / "x.pth", state))


def test_values_that_float32_cannot_hold_are_refused(state, tmp_path):
    state["netfclip.3.bias"] = torch.full((1024,), 1e300, dtype=torch.float64)
    assert "1024 of 1024 weights" in refusal(saved(tmp_path / "x.pth", state))


def test_negative_variances_and_whole_numbers_are_refused(state, tmp_path):
    state["netcnnaud.1.running_var"][0] = -1
    assert "negative variances" in refusal(saved(tmp_path / "x.pth", state))
    state["netcnnaud.1.running_var"] = torch.ones(64, dtype=torch.int8)
    assert "quantised" in refusal(saved(tmp_path / "y.pth", state))


def test_a_checkpoint_error_is_unusable_input():
    assert issubclass(CheckpointError, InputError) and CheckpointError.exit_code == 2


def test_a_torchscript_archive_of_the_detector_loads(tmp_path):
    network = S3FD()
    path = save_checkpoint(network, tmp_path / "s3fd.pt", "torchscript")
    loaded = load_network("s3fd", path).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in network.state_dict().items())


def test_a_tensor_that_reaches_beyond_its_storage_is_refused(network, tmp_path):
    good = save_checkpoint(network, tmp_path / "good.pt", "torchscript")
    path = tmp_path / "short.pt"
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, content[:8] if "/data/" in name else content)
    assert "cut short or damaged" in refusal(path)


def test_saving_an_unknown_form_writes_nothing(network, tmp_path):
    with pytest.raises(ValueError, match="training, bare"):
        save_checkpoint(network, tmp_path / "x", "pickle")
    assert not list(tmp_path.iterdir())


def test_the_sum_is_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert checkpoint_sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
