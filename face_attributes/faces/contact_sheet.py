"""A contact sheet: the crops of a few people, as the network sees them."""

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from face_attributes.faces.boxes import DETECTED
from face_attributes.photos.packed import Crops

PEOPLE = 12
PHOTOS = 7
TILE = 112
CAPTION = 26
COLOURS: dict[str, str] = {
    **dict.fromkeys(DETECTED.values(), "#1971c2"),
    "detected": "#2f9e44",
    "person": "#f08c00",
    "all": "#e03131",
    "centre": "#868e96",
}
LEGEND = {
    "detected": "face detected",
    "turned_90": "photo turned",
    "person": "person's median box",
    "all": "median box of all",
    "centre": "middle of the photo",
}


def draw_contact_sheet(boxes: pd.DataFrame, masks: pd.Series, crops: Crops) -> Image.Image:
    """Draw a row of up to 7 crops per person, for up to 12 people spread evenly over the table.

    The colour of a frame says how the box was found.

    Args:
        boxes: person, photo and way of each crop.
        masks: mask state of each crop, in words.
        crops: in the same order.
    """
    people = boxes["person"].drop_duplicates().to_list()
    chosen = [people[row] for row in np.unique(np.linspace(0, len(people) - 1, PEOPLE).astype(int))]
    rows_by_person = {
        person: np.flatnonzero(boxes["person"] == person)[:PHOTOS] for person in chosen
    }
    sheet = Image.new("RGB", (PHOTOS * TILE, CAPTION + len(chosen) * (TILE + CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for entry, (way, text) in enumerate(LEGEND.items()):
        left = 8 + entry * (sheet.width // len(LEGEND))
        draw.rectangle((left, 8, left + 10, 18), fill=COLOURS[way])
        draw.text((left + 16, 6), text, "black", font)
    for line, (person, rows) in enumerate(rows_by_person.items()):
        top = CAPTION + line * (TILE + CAPTION)
        draw.text((6, top + 8), person, "black", font)
        for column, row in enumerate(rows):
            left, below = column * TILE, top + CAPTION
            way = boxes["way"].iloc[row]
            draw.rectangle(
                (left + 1, below + 1, left + TILE - 2, below + TILE - 2), fill=COLOURS[way]
            )
            tile = Image.fromarray(crops[row]).resize((TILE - 8, TILE - 8))
            sheet.paste(tile, (left + 4, below + 4))
            draw.text(
                (left + 8, below + TILE - 20),
                str(masks.iloc[row]).replace("_", " "),
                "white",
                font,
                stroke_width=2,
                stroke_fill="black",
            )
    return sheet
