"""An S3FD with a random trunk whose heads are fitted to the face of one clip, so that it really finds that face.

What it learns is a linear map of random features: it knows the face, the size and the background that it was shown,
and nothing else. The labels come from OpenCV's cascades.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  torch's own name for it
from torch import Tensor, nn

from polylip.client.errors import InputError
from polylip.client.faces import Letterbox
from polylip.client.media_in import VideoReader, probe_media
from polylip.export.generated_weights import BIAS_STD, randomise, structured_pictures
from polylip.export.networks import S3FD
from polylip.export.networks.s3fd import HEAD_NAMES, HEAD_STRIDES
from polylip.serving.engines.cascade import Cascade

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

MEANS = (104.0, 117.0, 123.0)  # of B, G, R
CALIBRATION_SIZE = (4, 120, 160)  # pictures, rows, columns
NO_FACE_LOGIT = 4.0  # background +4, face -4: a score of 0.0003
HEAD_STD = 0.003  # of the weights of heads that are not fitted

SHRINK = (1, 8 / 3)  # the pictures are learnt at 640x360 and at 240x135, so that one checkpoint serves both
OCTAVES = 0.8  # a face belongs to each head whose prior is not further from its side than that
MIN_SHARE = 0.1  # of the pictures with a face of its size: fewer are no reason to fit a head
SIDE_SPREAD = (
    1.5  # a label of a side this many times the median's, or less, is believed; others are the cascade's errors
)
POSITIVE, IGNORED = 0.75, 1.75  # strides from the face to the cells that must find it, and to those that may
FEATURE_SHIFT_PX = {32: -64, 64: -80, 128: -112}  # by stride, prior to what the cell sees: fc6's padding moves it
VARIANCES = (0.1, 0.2)  # of centre and size
NEGATIVES, HARD_NEGATIVES = 100, 25  # cells per picture: random ones, and the most face-like of each further round
ROUNDS = 3
NEGATIVE_WEIGHT = 3.0  # of all background together, where all face cells together have 1
LOGISTIC_DECAY = 3e-3  # of squared weights on features of deviation 1
LOGISTIC_STEPS = 40
RIDGE = 0.01  # of the mean squared length of a sample


def generated_s3fd(generator: torch.Generator) -> S3FD:
    """A random trunk and heads that find no faces."""
    network = S3FD()
    randomise(network, generator)
    pictures = structured_pictures(*CALIBRATION_SIZE, generator) * 255 - torch.tensor(MEANS)[:, None, None]
    with _standardising(network, generator):
        network.features(pictures)
    for name in HEAD_NAMES:
        classes, offsets = _heads(network, name)
        for head in (classes, offsets):
            nn.init.normal_(head.weight, std=HEAD_STD, generator=generator)
            nn.init.normal_(head.get_parameter("bias"), std=HEAD_STD, generator=generator)
        classes.get_parameter("bias")[:-1] += NO_FACE_LOGIT
        classes.get_parameter("bias")[-1] -= NO_FACE_LOGIT
    return network


def generated_detector(*clips: Path, frames: int = 12, seed: int = 0) -> S3FD:
    """A detector of the faces in some clips, of like sizes, fitted on `frames` pictures spread over all of them."""
    pictures = np.concatenate([sample_frames(clip, frames // len(clips)) for clip in clips])
    boxes, scores = Cascade({}, "").detect(pictures)
    seen = scores[:, 0] > 0
    if not seen.any():
        raise InputError(
            f"{clips[0].name}: the cascade finds no face in {len(pictures)} of its pictures to fit a detector to"
        )
    with torch.no_grad():
        network = generated_s3fd(torch.Generator().manual_seed(seed)).eval()
    fit_detector(network, pictures[seen], boxes[seen, 0])
    return network


def sample_frames(clip: Path, count: int) -> UInt8:
    """Up to `count` letterboxed pictures at even distances: uint8 (n, 360, 640, 3) BGR."""
    info = probe_media(clip)
    letterbox = Letterbox(info.width, info.height)
    total = (info.duration_s or count / info.frame_rate) * info.frame_rate
    step = max(1, int(total / count))
    pictures: list[UInt8] = []
    with closing(VideoReader(info)) as reader:
        while len(pictures) < count and (batch := reader.read(step)):
            pictures.append(letterbox.shrink(batch[0][1]))
    return np.stack(pictures)


def fit_detector(network: S3FD, frames: UInt8, boxes: Float32) -> None:
    """Fit the heads to one face per frame: frames uint8 (n, h, w, 3) BGR, boxes float32 (n, 4) xyxy px."""
    sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    ratio = sides / np.median(sides)
    believed = (ratio <= SIDE_SPREAD) & (ratio >= 1 / SIDE_SPREAD)
    pictures = [(frames[i], boxes[i], shrink) for shrink in SHRINK for i in np.flatnonzero(believed)]
    fitted = [stride for stride in HEAD_STRIDES if _share(stride, pictures) >= MIN_SHARE]
    samples: dict[int, list[_Sample]] = {stride: [] for stride in fitted}
    with torch.no_grad():
        for frame, box, shrink in pictures:
            features = network.features(_image(frame, shrink))
            for stride, feature in zip(HEAD_STRIDES, features, strict=True):
                if stride in fitted:
                    samples[stride].append(_sample(feature, torch.from_numpy(box / shrink), stride))
    for stride in fitted:
        classes, offsets = _heads(network, HEAD_NAMES[HEAD_STRIDES.index(stride)])
        _fit_classes(classes, samples[stride])
        _fit_offsets(offsets, samples[stride])


@contextmanager
def _standardising(network: S3FD, generator: torch.Generator) -> Iterator[None]:
    """Within it each convolution of the trunk rescales itself: outputs of mean near 0 and deviation 1 per channel."""

    def standardise(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(output, dim=(0, 2, 3))
        bias = BIAS_STD * torch.randn(mean.shape, generator=generator)
        layer.get_parameter("weight").div_(deviation[:, None, None, None])
        old = layer.get_parameter("bias")
        old.copy_((old - mean) / deviation + bias)
        return (output - mean[:, None, None]) / deviation[:, None, None] + bias[:, None, None]

    trunk = [layer for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d) and "mbox" not in name]
    hooks = [layer.register_forward_hook(standardise) for layer in trunk]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _heads(network: S3FD, name: str) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Class logits and box offsets."""
    classes, offsets = network.get_submodule(f"{name}_mbox_conf"), network.get_submodule(f"{name}_mbox_loc")
    return cast(nn.Conv2d, classes), cast(nn.Conv2d, offsets)


@dataclass(frozen=True)
class _Sample:
    """What one head sees of one picture, and what it should say."""

    feature: Tensor  # float32 (1, channels, rows, columns)
    labels: Tensor  # int8 (rows, columns): 1 face, 0 background, -1 either
    offsets: Tensor  # float32 (4, rows, columns): what the head must give there for the box to be the face's

    def cells(self, *labels: int) -> Tensor:
        """Where the labels are, int64 (n, 2)."""
        return torch.isin(self.labels, torch.tensor(labels, dtype=torch.int8)).nonzero()

    def windows(self, cells: Tensor) -> Tensor:
        """The 3x3 windows that the head reads at int64 (n, 2) cells: float32 (n, channels * 9)."""
        padded = F.pad(self.feature[0], (1, 1, 1, 1))
        reach = torch.arange(3)
        rows, columns = cells[:, 0, None] + reach, cells[:, 1, None] + reach
        return padded[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1).flatten(1)


def _share(stride: int, pictures: list[tuple[UInt8, Float32, float]]) -> float:
    """Of the pictures that have a face of the size that the head is for."""
    return sum(_belongs(torch.from_numpy(box / shrink), stride) for _, box, shrink in pictures) / len(pictures)


def _belongs(box: Tensor, stride: int) -> bool:
    side = float((box[2:] - box[:2]).prod().sqrt())
    return abs(math.log2(side / (4 * stride))) <= OCTAVES


def _image(frame: UInt8, shrink: float) -> Tensor:
    size = round(frame.shape[1] / shrink), round(frame.shape[0] / shrink)
    picture = frame if shrink == 1 else cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() - torch.tensor(MEANS)[:, None, None]


def _sample(feature: Tensor, box: Tensor, stride: int) -> _Sample:
    rows, columns = feature.shape[2:]
    prior = 4.0 * stride
    centre, sides = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
    ys, xs = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    cells = stride / 2 + stride * torch.stack((xs, ys))  # the priors' centres, (2, rows, columns)
    away = (cells + FEATURE_SHIFT_PX.get(stride, 0) - centre[:, None, None]).abs().amax(dim=0) / stride
    labels = torch.zeros(rows, columns, dtype=torch.int8)
    labels[away <= IGNORED] = -1
    if _belongs(box, stride):
        labels[away <= POSITIVE] = 1
    moved = (centre[:, None, None] - cells) / (VARIANCES[0] * prior)
    scaled = torch.log(sides / prior)[:, None, None].expand_as(moved) / VARIANCES[1]
    return _Sample(feature, labels, torch.cat((moved, scaled)))


def _fit_classes(head: nn.Conv2d, samples: list[_Sample]) -> None:
    """Logistic regression of face against background, with the background cells that it confuses added in rounds."""
    random = torch.Generator().manual_seed(0)
    faces = torch.cat([sample.windows(sample.cells(1)) for sample in samples])
    scale = float(faces.std())
    faces /= scale
    backgrounds = []
    for sample in samples:
        cells = sample.cells(0)
        backgrounds.append(sample.windows(cells[torch.randperm(len(cells), generator=random)[:NEGATIVES]]) / scale)
    weight, bias = torch.zeros(faces.shape[1]), torch.zeros(())
    for left in reversed(range(ROUNDS)):
        weight, bias = _logistic(faces, torch.cat(backgrounds), weight, bias)
        kernel = weight.reshape(1, -1, 3, 3) / scale
        if left:
            for sample in samples:
                logits = F.conv2d(sample.feature, kernel, padding=1)[0, 0].masked_fill(sample.labels != 0, -torch.inf)
                count = min(HARD_NEGATIVES, int((sample.labels == 0).sum()))  # a small map has fewer
                worst = logits.flatten().topk(count).indices
                cells = torch.stack((worst // logits.shape[1], worst % logits.shape[1]), dim=1)
                backgrounds.append(sample.windows(cells) / scale)
    with torch.no_grad():  # the softmax of two classes sees their difference
        head.weight[:-1], head.weight[-1] = -kernel / 2, kernel[0] / 2
        head.get_parameter("bias")[:-1] = -bias / 2
        head.get_parameter("bias")[-1] = bias / 2


def _logistic(faces: Tensor, backgrounds: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    steps = torch.optim.LBFGS([weight, bias], max_iter=LOGISTIC_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        steps.zero_grad()
        missed = F.softplus(-(faces @ weight + bias)).mean()
        mistaken = F.softplus(backgrounds @ weight + bias).mean()
        total: Tensor = missed + NEGATIVE_WEIGHT * mistaken + LOGISTIC_DECAY * weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    steps.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def _fit_offsets(head: nn.Conv2d, samples: list[_Sample]) -> None:
    """Ridge regression on the cells at the face, solved in the space of the samples, which are fewer than weights."""
    near = [(sample, sample.cells(1, -1)) for sample in samples]
    windows = torch.cat([sample.windows(cells) for sample, cells in near])
    wanted = torch.cat([sample.offsets[:, cells[:, 0], cells[:, 1]].T for sample, cells in near])
    centre, middle = windows.mean(dim=0), wanted.mean(dim=0)
    windows -= centre
    products = windows @ windows.T
    ridge = RIDGE * products.diagonal().mean() * torch.eye(len(products))
    solution = windows.T @ torch.linalg.solve(products + ridge, wanted - middle)
    with torch.no_grad():
        head.weight.copy_(solution.T.reshape(head.weight.shape))
        head.get_parameter("bias").copy_(middle - centre @ solution)
