"""Face detection: one function per detector."""

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path

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
"""Faces in a photo, M x 5: left, top, width, height in pixels, confidence from 0 to 1."""
DetectFunction = Callable[[NDArray[np.uint8]], Detections]

LONG_SIDE = 320
"""Photos are shrunk to this many pixels before detection: enough for a portrait."""


def find_faces(photo: Image.Image, params: CropParams) -> tuple[Boxes, NDArray[np.float64]]:
    """Detect all faces with at least `params.min_confidence`, the largest first.

    Returns:
        Relative boxes (M x 4) and confidences (M, 0 to 1).
    """
    small = photo.copy()
    small.thumbnail((LONG_SIDE, LONG_SIDE))
    detect = load_detector(params.detector, params.yunet_model)
    faces = detect(np.asarray(small)[:, :, ::-1].copy())
    faces = faces[faces[:, 4] >= params.min_confidence]
    faces = faces[np.argsort(-faces[:, 2] * faces[:, 3], kind="stable")]
    return faces[:, :4] / [small.width, small.height, small.width, small.height], faces[:, 4]


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
