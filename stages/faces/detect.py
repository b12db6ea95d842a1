"""Finding a face in a photo: one function for each detector."""

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

from stages.errors import UserError
from stages.faces.boxes import Boxes
from stages.params import CropParams

Found = NDArray[np.float64]
"""Faces in a photo, M x 5: left, top, width, height in pixels, confidence from 0 to 1."""
Detect = Callable[[NDArray[np.uint8]], Found]

LONG_SIDE = 320
"""Photos are shrunk to this many pixels before a face is looked for: enough for a portrait."""


def find_faces(photo: Image.Image, params: CropParams) -> tuple[Boxes, NDArray[np.float64]]:
    """All faces of which the detector is sure enough, the largest first.

    Returns:
        Relative boxes (M x 4) and confidences (M, 0 to 1).
    """
    small = photo.copy()
    small.thumbnail((LONG_SIDE, LONG_SIDE))
    found = load_detector(params.detector, params.yunet_model)(np.asarray(small)[:, :, ::-1].copy())
    found = found[found[:, 4] >= params.min_confidence]
    found = found[np.argsort(-found[:, 2] * found[:, 3], kind="stable")]
    return found[:, :4] / [small.width, small.height, small.width, small.height], found[:, 4]


@cache
def load_detector(detector: str, yunet_model: str) -> Detect:
    """The detector of that name: a function from BGR pixels (H x W x 3) to the faces found.

    Raises:
        UserError: if it cannot be used on this machine, or its model file cannot be read.
    """
    # Load it before a pool's processes are forked: in those, OpenCV would wait for ever for its
    # threads, which are not forked with it.
    cv2.setNumThreads(1)
    return {"yuface": _yuface, "haar": _haar, "yunet": _yunet, "none": _none}[detector](yunet_model)


def one_thread() -> None:
    """For a process of a pool that has one for each core: let this one have one thread.

    Threads that wait for each other cost 10x.
    """
    threadpool_limits(1)


def _yuface(_: str) -> Detect:
    if importlib.util.find_spec("yuface") is None:
        raise UserError(
            "crop.detector: yuface is not installed (it exists for Python up to 3.11 on Linux and "
            "Windows): set crop.detector to yunet, with crop.yunet_model, or to haar"
        )
    import yuface

    def detect(bgr: NDArray[np.uint8]) -> Found:
        confidences, boxes, _ = yuface.detect(bgr, conf=0.0)
        return np.column_stack([boxes, confidences / 100]).astype(np.float64)

    return detect


def _haar(_: str) -> Detect:
    cascade = cv2.CascadeClassifier(
        str(Path(cv2.data.haarcascades) / "haarcascade_frontalface_default.xml")
    )

    def detect(bgr: NDArray[np.uint8]) -> Found:
        boxes = cascade.detectMultiScale(cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY), 1.1, 4)
        found = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        return np.column_stack([found, np.ones(len(found))])  # Haar cascades have no confidence

    return detect


def _yunet(model: str) -> Detect:
    if not Path(model).is_file():
        raise UserError(
            f"crop.yunet_model: there is no file {model!r}: download OpenCV Zoo's "
            "face_detection_yunet model into data/detectors and name its path"
        )
    try:
        network = cv2.FaceDetectorYN.create(model, "", (LONG_SIDE, LONG_SIDE), score_threshold=0.1)
    except cv2.error:
        raise UserError(f"crop.yunet_model: {model} is not a YuNet model in ONNX") from None

    def detect(bgr: NDArray[np.uint8]) -> Found:
        network.setInputSize((bgr.shape[1], bgr.shape[0]))
        _, faces = network.detect(bgr)
        found = np.zeros((0, 15)) if faces is None else np.asarray(faces, dtype=np.float64)
        return found[:, [0, 1, 2, 3, 14]]

    return detect


def _none(_: str) -> Detect:
    return lambda bgr: np.zeros((0, 5))
