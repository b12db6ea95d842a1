"""Face detection: one function per detector."""

import importlib.util
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import cv2
import cv2.data
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from threadpoolctl import threadpool_limits

from face_attributes.errors import UserError
from face_attributes.faces.boxes import Boxes
from face_attributes.params import CropParams

Detections = NDArray[np.float64]
"""Faces in a photo, M x 5: left, top, width, height, confidence from 0 to 1."""
DetectFunction = Callable[[NDArray[np.uint8]], Detections]
"""From BGR pixels (H x W x 3) to the faces in them, in pixels."""

LONG_SIDE = 320
"""Photos are shrunk to this many pixels before detection: enough for a portrait."""
LARGE_SIDE = 2560
"""The size of the second search, in which faces of 65 pixels in a photo of 4000 are found."""
LARGE_PHOTO = 2 * LONG_SIDE
"""Photos with a longer side are always searched twice: the first search misses small faces."""
TURNS = {90: 0.18, 270: 0.18, 180: 0.4}
"""Clockwise turns in degrees that are tried, and by how much the confidence of a turned face must
exceed that of all upright ones. Detectors also find turned faces, with less confidence, and masks
look like faces upside down."""
MIN_TURNED_CONFIDENCE = 0.6
"""Minimum confidence in a turned photo, where the shadows of an upright face can look like one."""
SAME_FACE = 0.3
"""Two boxes show one face if they share this part of the smaller one."""


class Faces(NamedTuple):
    """Faces in a photo, the largest first.

    boxes: M x 4, relative to the photo as it is.
    confidences: M, 0 to 1.
    turn: clockwise turn of the photo, in degrees, that makes the faces upright.
    """

    boxes: Boxes
    confidences: NDArray[np.float64]
    turn: int


def find_faces(photo: Image.Image, params: CropParams) -> Faces:
    """Detect all faces with at least `params.min_confidence`.

    Photos are searched at LONG_SIDE, and also at LARGE_SIDE if they are large or no face was found.
    They are turned, too, unless a face was found with so much confidence that no turn could exceed
    it as TURNS demand.
    """
    small = _shrink(photo, LONG_SIDE)
    found, turn = _search(small, params, params.min_confidence), 0
    if max(photo.size) > (LARGE_PHOTO if len(found) else LONG_SIDE):
        closer = _search(_shrink(photo, LARGE_SIDE), params, params.min_confidence)
        new = [face for face in closer if all(_overlap(face, each) < SAME_FACE for each in found)]
        found = np.concatenate([found, np.reshape(new, (-1, 5))])
    upright, most = found[:, 4].max(initial=0), 0.0
    for each, advantage in TURNS.items():
        required = max(params.min_confidence, MIN_TURNED_CONFIDENCE, upright + advantage)
        if required > 1:
            continue
        turned = _search(small.rotate(-each, expand=True), params, required)
        if turned[:, 4].max(initial=0) > most:
            found, turn, most = _turn_back(turned, each), each, turned[:, 4].max()
    found = found[np.argsort(-found[:, 2] * found[:, 3], kind="stable")]
    return Faces(found[:, :4], found[:, 4], turn)


def _shrink(photo: Image.Image, side: int) -> Image.Image:
    small = photo.copy()
    small.thumbnail((side, side))
    return small


def _search(photo: Image.Image, params: CropParams, min_confidence: float) -> Detections:
    """Detect the faces in a photo of any size; boxes are relative to it."""
    detect = load_detector(params.detector, params.yunet_model)
    faces = detect(np.asarray(photo)[:, :, ::-1].copy())
    faces = faces[faces[:, 4] >= min_confidence]
    return faces / [photo.width, photo.height, photo.width, photo.height, 1]


def _turn_back(faces: Detections, turn: int) -> Detections:
    """Convert boxes in a photo that was turned clockwise into boxes in the original."""
    for _ in range(turn // 90):
        left, top, width, height, confidence = faces.T
        faces = np.column_stack([top, 1 - left - width, height, width, confidence])
    return faces


def _overlap(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """The area that two boxes share, as a part of the smaller one."""
    corner = np.maximum(first[:2], second[:2])
    far = np.minimum(first[:2] + first[2:4], second[:2] + second[2:4])
    shared = np.prod(np.clip(far - corner, 0, None))
    return float(shared / max(min(np.prod(first[2:4]), np.prod(second[2:4])), 1e-12))


@cache
def load_detector(detector: str, yunet_model: str) -> DetectFunction:
    """Load a detector: a function from BGR pixels (H x W x 3) to the faces in them.

    Call it before a process pool forks: OpenCV's threads do not survive a fork, and a forked
    process would wait for them forever.

    Raises:
        UserError: if the detector is not available here, or its model file cannot be read.
    """
    cv2.setNumThreads(1)
    return {"yuface": _yuface, "haar": _haar, "yunet": _yunet, "none": _none}[detector](yunet_model)


def use_one_thread() -> None:
    """Limit this process to one thread, as a worker of a pool with one process per core.

    More threads than cores wait for each other, which takes 10 times as long.
    """
    threadpool_limits(1)


def _yuface(_: str) -> DetectFunction:
    if importlib.util.find_spec("yuface") is None:
        raise UserError(
            "crop.detector: yuface is not installed (it supports Python up to 3.11 on Linux and "
            "Windows): set crop.detector to haar, or to yunet with crop.yunet_model"
        )
    import yuface

    def detect(bgr: NDArray[np.uint8]) -> Detections:
        with warnings.catch_warnings(action="ignore"):  # that large photos take longer
            confidences, boxes, _ = yuface.detect(bgr, conf=0.0)
        return np.column_stack([boxes, confidences / 100]).astype(np.float64)

    return detect


def _haar(_: str) -> DetectFunction:
    cascade = cv2.CascadeClassifier(
        str(Path(cv2.data.haarcascades) / "haarcascade_frontalface_default.xml")
    )

    def detect(bgr: NDArray[np.uint8]) -> Detections:
        boxes = cascade.detectMultiScale(cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY), 1.1, 4)
        faces = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        return np.column_stack([faces, np.ones(len(faces))])  # Haar cascades have no confidence

    return detect


def _yunet(model: str) -> DetectFunction:
    if not Path(model).is_file():
        raise UserError(
            f"crop.yunet_model: {model!r} is missing: download OpenCV Zoo's face_detection_yunet "
            "model to data/detectors and write its path here"
        )
    try:
        network = cv2.FaceDetectorYN.create(model, "", (LONG_SIDE, LONG_SIDE), score_threshold=0.1)
    except cv2.error:
        raise UserError(
            f"crop.yunet_model: {model} is not a YuNet model in ONNX format: download it again"
        ) from None

    def detect(bgr: NDArray[np.uint8]) -> Detections:
        network.setInputSize((bgr.shape[1], bgr.shape[0]))
        _, faces = network.detect(bgr)
        faces = np.zeros((0, 15)) if faces is None else np.asarray(faces, dtype=np.float64)
        return np.asarray(faces[:, [0, 1, 2, 3, 14]])

    return detect


def _none(_: str) -> DetectFunction:
    return lambda bgr: np.zeros((0, 5))
