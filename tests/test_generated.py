"""Generated networks are the same for a seed, lively all through, and show faces and find them where they are."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from clips import Picture, Sound, clicks, write_media
from material import face_crop
from torch import nn

from polylip.client.errors import InputError
from polylip.export.checkpoints import load_network
from polylip.export.generated import generated_detector, generated_network, main
from polylip.export.generated_faces import sample_frames
from polylip.export.generated_weights import structured_mel, structured_pictures
from polylip.export.graphs import DetectGraph
from polylip.serving.engines.cascade import Cascade


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def lips() -> nn.Module:
    return generated_network("wav2lip")


def render(lips: nn.Module, *levels: float) -> tuple[np.ndarray, np.ndarray]:
    """The astronaut's face and what is made of it at each level of the mel: float32 (levels, 96, 96, 3), 0 to 255."""
    face = torch.from_numpy(face_crop().astype(np.float32) / 255).permute(2, 0, 1)
    masked = face.clone()
    masked[:, 48:] = 0
    mel = torch.stack([torch.full((1, 80, 16), level) for level in levels])
    mouths = lips(mel, torch.cat((masked, face)).expand(len(levels), -1, -1, -1))
    return face_crop().astype(np.float32), mouths.permute(0, 2, 3, 1).numpy() * 255


@pytest.mark.parametrize("name", ["syncnet", "s3fd"])
def test_a_seed_gives_one_network_and_another_gives_another(name):
    one, same, other = (generated_network(name, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(tensor, same[key]) for key, tensor in one.items())
    assert not any(torch.equal(t, other[key]) for key, t in one.items() if key.endswith("0.weight"))


def test_the_generator_is_the_same_for_a_seed(lips):
    again = generated_network("wav2lip").state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in lips.state_dict().items())


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match="wav2lip, s3fd, syncnet"):
        generated_network("wave2lip")


def test_the_picture_is_the_reference_face_in_silence(lips):
    face, (silent,) = render(lips, -4.0)
    assert np.abs(silent - face).mean() < 4
    assert np.abs(silent - face).max() < 30
    assert silent.std() > 40  # levels: a real picture's contrast


def test_the_mouth_darkens_with_the_voice_and_the_eyes_do_not(lips):
    face, (silent, middling, loud) = render(lips, -4.0, -2.2, 0.0)
    mouth, eyes = (slice(64, 76), slice(38, 60)), (slice(20, 45), slice(10, 86))
    darkness = [float((face[mouth] - picture[mouth]).mean()) for picture in (silent, middling, loud)]
    assert abs(darkness[0]) < 4 and darkness[2] > 30
    assert darkness[0] < darkness[1] < darkness[2]
    assert np.abs(loud[eyes] - face[eyes]).mean() < 6


def test_every_layer_of_the_generator_is_lively_and_reaches_the_picture(lips):
    """Deviations near 1 from the first layer to the last, and a change in the innermost shows in the pixels."""
    deviations = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, output, name=name: deviations.update({name: float(output.std())}))
        for name, layer in lips.named_modules()
        if isinstance(layer, nn.BatchNorm2d)
    ]
    random = torch.Generator().manual_seed(5)
    faces = structured_pictures(4, 96, 96, random)
    inputs = structured_mel(4, random), torch.cat((faces, faces), dim=1)
    before = lips(*inputs)
    for hook in hooks:
        hook.remove()
    assert len(deviations) == 50
    assert all(0.1 < deviation < 10 for deviation in deviations.values()), deviations
    innermost = lips.face_decoder_blocks[0][0].conv_block[1]
    kept = innermost.weight.clone()
    innermost.weight[1:] *= -1
    changed = float((lips(*inputs) - before).abs().mean()) * 255
    innermost.weight.copy_(kept)
    assert changed > 0.3  # levels
    assert all(float((block.weight != 0).float().mean()) > 0.9 for block in lips.modules() if _is_large(block))


def _is_large(block: nn.Module) -> bool:
    return isinstance(block, nn.Conv2d | nn.ConvTranspose2d) and block.weight.numel() > 50_000


def test_syncnet_gives_distances_like_those_of_unrelated_speech():
    network = generated_network("syncnet")
    random = torch.Generator().manual_seed(3)
    lips = torch.stack([structured_pictures(2, 224, 224, random)] * 5, dim=2) * 255
    distance = torch.dist(*network(lips, 10 * torch.randn(2, 1, 13, 20, generator=random))) / 2**0.5
    assert 3 < distance < 40


def test_an_unfitted_detector_finds_nothing_on_a_picture():
    frames = (structured_pictures(1, 180, 320, torch.Generator().manual_seed(9)) * 255).byte().permute(0, 2, 3, 1)
    _, scores = DetectGraph(generated_network("s3fd")).eval()(frames)
    assert scores.max() < 0.5


def test_a_fitted_detector_finds_the_face_of_its_clip_at_both_sizes(demo_clip):
    """On pictures that it was not fitted to; nothing else in them is taken for a face."""
    graph = DetectGraph(generated_detector(demo_clip, frames=4)).eval()
    frames = sample_frames(demo_clip, 7)[[2, 5]]
    labels = Cascade({}, "").detect(frames)[0][:, 0]
    for shrink in (1, 8 / 3):
        small = [
            cv2.resize(f, (round(640 / shrink), round(360 / shrink)), interpolation=cv2.INTER_AREA) for f in frames
        ]
        boxes, scores = (tensor.numpy() for tensor in graph(torch.from_numpy(np.stack(small))))
        for box, score, label in zip(boxes, scores, labels / shrink, strict=True):
            assert score[0] > 0.5 and overlap(box[0], label) > 0.6
            assert all(overlap(other, label) > 0.3 for other in box[score > 0.5])


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes x1 y1 x2 y2."""
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = max(0.0, width) * max(0.0, height)
    return shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)


def test_a_clip_without_a_face_is_refused(tmp_path):
    clip = write_media(tmp_path / "grey.mp4", Picture(), Sound(clicks([], 2)))
    with pytest.raises(InputError, match="no face"):
        generated_detector(clip, frames=2)


def test_the_command_writes_a_checkpoint_and_says_that_it_is_generated(tmp_path, capsys):
    path = tmp_path / "syncnet.model"
    assert main(["syncnet", str(path), "--seed", "4"]) == 0
    assert "generated" in capsys.readouterr().out
    assert torch.equal(
        load_network("syncnet", path).netfclip[3].weight, generated_network("syncnet", 4).netfclip[3].weight
    )


def test_the_command_refuses_what_it_cannot_use_in_one_line(tmp_path, capsys):
    assert main(["s3fd", str(tmp_path / "out.pth"), "--clip", str(Path(tmp_path, "none.mp4"))]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not list(tmp_path.iterdir())
