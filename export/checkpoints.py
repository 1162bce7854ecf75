"""Public checkpoints of Wav2Lip, S3FD and SyncNet in, networks ready to run out. See docs/checkpoints.md.

A checkpoint is data: nothing in it is ever executed, whatever its form. One that does not fit is refused with a line
that says what it seems to be.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from polylip.client.errors import InputError
from polylip.export.networks import S3FD, SyncNet, Wav2LipGenerator
from polylip.export.torchscript import UnsafeArchiveError, is_torchscript, read_torchscript

NETWORKS: Mapping[str, type[nn.Module]] = {"wav2lip": Wav2LipGenerator, "s3fd": S3FD, "syncnet": SyncNet}
TITLES = {"wav2lip": "Wav2Lip generator", "s3fd": "S3FD", "syncnet": "SyncNet v2"}
FILES = {"wav2lip": "wav2lip.pth or wav2lip_gan.pth", "s3fd": "s3fd-619a316812.pth", "syncnet": "syncnet_v2.model"}
FORMS = ("training", "bare", "torchscript", "safetensors")

ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80\x02"  # torch.save before 1.6
PARALLEL = "module."  # that DataParallel puts before names; upstream removes it anywhere
UNUSED = "num_batches_tracked"  # of batch norms; older than torch 0.4.1, a file has none
SHOWN = 3  # names of each kind that a message lists
NAME_CHARACTERS = 80  # a longer name is cut: it comes from the file
# Names by which other networks' files are known; the first that fits is taken.
KNOWN_BY = (
    (r"vgg\.|L2Norm\d_3|extras\.|conf\.\d", "joonson's port of S3FD, whose layers differ"),
    (r"binary_pred\.", "Wav2Lip's visual quality discriminator, which is for training only"),
    (r"face_encoder\.\d", "Wav2Lip's expert (SyncNet with mel input), which is for training only"),
    (r"face_encoder_blocks\.", "a Wav2Lip generator of another size, such as 288 or 384 px"),
    (r"netcnn(aud|lip)\.", "SyncNet v2"),
    (r"conv3_3_norm\.|fc7\.", "S3FD"),
)


class CheckpointError(InputError):
    """A file that is no checkpoint, is damaged, or belongs to another network."""


def load_network(name: str, path: Path) -> nn.Module:
    """`wav2lip`, `s3fd` or `syncnet` with the weights in `path`, float32, in evaluation mode."""
    network = NETWORKS[name]()
    state = _fitting(name, path, read_tensors(path), network.state_dict())
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def checkpoint_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The weights of any form by their names, without DataParallel's prefix."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    try:
        found = _reader(path, head)(path)
    except CheckpointError:
        raise
    except UnsafeArchiveError as error:
        raise _holds_code(path, str(error)) from None
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+) (?:was not|whose module)", str(error))
        if named:
            raise _holds_code(path, named[1]) from None
        raise _damaged(path) from None
    except MemoryError:
        raise
    except Exception:  # what a parser raises on damaged input has no common type
        raise _damaged(path) from None
    return _state_dict(path, found)


def _reader(path: Path, head: bytes) -> Callable[[Path], Any]:
    """By what the file holds; its suffix says nothing."""
    if head.startswith(ZIP_MAGIC):
        if not zipfile.is_zipfile(path):
            raise _damaged(path)
        return read_torchscript if is_torchscript(path) else _load
    if head.startswith(PICKLE_MAGIC):
        return _load
    if head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") < path.stat().st_size:
        return load_file
    if head[8:9] == b"{":
        raise _damaged(path)
    if re.match(rb"\s*<(!doctype|html|head|\?xml)", head, re.IGNORECASE):
        raise CheckpointError(f"{path.name} is a web page, not a checkpoint: the download failed; download it again")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path.name} is a Git LFS pointer, not a checkpoint; run: git lfs pull")
    raise CheckpointError(f"{path.name} is not a checkpoint ({path.stat().st_size} bytes of something else)")


def _load(path: Path) -> Any:
    with warnings.catch_warnings(action="ignore"):  # of formats past their time
        return torch.load(path, map_location="cpu", weights_only=True)


def _damaged(path: Path) -> CheckpointError:
    size = path.stat().st_size
    return CheckpointError(f"{path.name} is cut short or damaged ({size} bytes); download it again")


def _holds_code(path: Path, name: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name} holds more than weights ({_shown(name)}), which could run code and is refused; "
        "take a file with a state dict only"
    )


def _state_dict(path: Path, found: Any) -> dict[str, Tensor]:
    """The state dict of a training checkpoint, or one that comes bare."""
    state = found.get("state_dict", found) if isinstance(found, Mapping) else found
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path.name} holds no state dict but a {type(state).__name__}")
    others = [key for key, value in state.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if others or not state:
        raise CheckpointError(f"{path.name} holds no state dict; it has {_some([str(key) for key in state])}")
    return {key.replace(PARALLEL, ""): tensor for key, tensor in state.items()}


def _fitting(name: str, path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as `wanted` has them, or the error that says why they are not."""
    missing = [key for key in wanted if key not in found and not key.endswith(UNUSED)]
    extra = [key for key in found if key not in wanted]
    misshaped = [
        f"{key}: {tuple(found[key].shape)} for {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in found and found[key].shape != tensor.shape
    ]
    if missing or extra or misshaped:
        counts = ((missing, "missing"), (extra, "extra"), (misshaped, "of another shape"))
        lists = "; ".join(f"{len(keys)} {what} ({_some(keys)})" for keys, what in counts if keys)
        raise CheckpointError(
            f"{path.name} does not fit the {TITLES[name]}: of {len(wanted)} tensors {lists}; "
            f"{_guess(name, found)}{FILES[name]} is needed"
        )
    state = {}
    for key, tensor in wanted.items():
        value = found.get(key, tensor)
        if value.is_floating_point() != tensor.is_floating_point():
            raise CheckpointError(
                f"{path.name}: {key} is {value.dtype}, not {tensor.dtype}; quantised files do not fit"
            )
        state[key] = value.to(tensor.dtype)
        _refuse_broken(path, key, state[key])
    return state


def _refuse_broken(path: Path, key: str, tensor: Tensor) -> None:
    broken = int((~torch.isfinite(tensor)).sum())
    if broken:
        raise CheckpointError(
            f"{path.name}: {broken} of {tensor.numel()} weights in {key} are infinite or not a number; "
            "the training that made it failed, or the file is damaged"
        )
    if key.endswith("running_var") and (tensor < 0).any():
        raise CheckpointError(f"{path.name}: {key} holds negative variances; the file is damaged")


def _guess(name: str, found: Mapping[str, Tensor]) -> str:
    for pattern, what in KNOWN_BY:
        if any(re.match(pattern, key) for key in found):
            return f"this looks like {what}; " if what != TITLES[name] else ""
    return ""


def _some(names: list[str]) -> str:
    shown = [_shown(name) for name in names[:SHOWN]]
    return ", ".join([*shown, "..."] if len(names) > SHOWN else shown) or "nothing"


def _shown(name: str) -> str:
    """A name out of a file, on one line and not too long."""
    line = name.encode("ascii", "backslashreplace").decode().translate({code: "?" for code in (*range(32), 127)})
    return line if len(line) <= NAME_CHARACTERS else f"{line[:NAME_CHARACTERS]}..."


def save_checkpoint(network: nn.Module, path: Path, form: str, prefix: str = "", legacy: bool = False) -> Path:
    """Write `network` in one of FORMS. `prefix` goes before every name, `legacy` writes as torch did before 1.6."""
    state = {f"{prefix}{key}": tensor.detach().contiguous() for key, tensor in network.state_dict().items()}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if form == "torchscript":
            _save_torchscript(network, partial)
        elif form == "safetensors":
            save_file(state, partial)
        elif form == "bare":
            torch.save(state, partial, _use_new_zipfile_serialization=not legacy)
        elif form == "training":
            optimizer = torch.optim.Adam(network.parameters(), lr=1e-4).state_dict()
            whole = {"state_dict": state, "optimizer": optimizer, "global_step": 1, "global_epoch": 1}
            torch.save(whole, partial, _use_new_zipfile_serialization=not legacy)
        else:
            raise ValueError(f"no form is called {form!r}; there are {', '.join(FORMS)}")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _save_torchscript(network: nn.Module, path: Path) -> None:
    examples: Mapping[type[nn.Module], tuple[Tensor, ...]] = {
        Wav2LipGenerator: (torch.zeros(1, 1, 80, 16), torch.zeros(1, 6, 96, 96)),
        S3FD: (torch.zeros(1, 3, 64, 64),),
        SyncNet: (torch.zeros(1, 3, 5, 224, 224), torch.zeros(1, 1, 13, 20)),
    }
    with warnings.catch_warnings(action="ignore"), torch.no_grad():  # TorchScript is deprecated
        traced = torch.jit.trace(network.eval(), examples[type(network)], check_trace=False)  # type: ignore[no-untyped-call]
        traced.save(str(path))
