"""Invented runs, to compare with each other."""

import numpy as np
import pandas as pd

from face_attributes.photos.labels import NUM_CLASSES, Labels, class_names
from face_attributes.scoring.runs import Run

CLASSES = class_names([30, 60])
LABELS: Labels = np.arange(120) % NUM_CLASSES
"""Labels of 40 people with three photos each."""


def people_of(labels: Labels, photos: int = 3) -> "np.ndarray[tuple[int], np.dtype[np.str_]]":
    """The person of each photo, so many photos each."""
    return np.repeat([f"p{number:03}" for number in range(len(labels) // photos)], photos)


def make_run(labels: Labels, predicted: Labels, name: str = "run") -> Run:
    """A run on people with three photos each, spread over five folds."""
    photo = np.arange(len(labels))
    table = pd.DataFrame(
        {
            "person": people_of(labels),
            "photo": [f"{number}.jpg" for number in photo % 3],
            "fold": photo // 3 % 5,
            "label": labels,
            "predicted": predicted,
        }
    )
    return Run(name, table, CLASSES)


def change_run(run: Run, name: str = "after", **columns: object) -> Run:
    """The same run with another name and some columns replaced."""
    return Run(name, run.predictions.assign(**columns), run.classes)


def predict(labels: Labels, accuracy: float, seed: int) -> Labels:
    """Predict all photos of a person correctly with this probability, otherwise at random."""
    rng = np.random.default_rng(seed)
    correct = np.repeat(rng.random(len(labels) // 3) < accuracy, 3)
    return np.where(correct, labels, rng.integers(0, NUM_CLASSES, len(labels)))
