"""A contact sheet: the crops of a few people, to see at a glance what the network will see."""

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from stages.photos.packed import Pixels

PEOPLE = 12
TILE = 112
CAPTION = 26
COLOURS = {"detected": "#2f9e44", "person": "#f08c00", "all": "#e03131", "centre": "#868e96"}
LEGEND = {
    "detected": "face found",
    "person": "median box of the person",
    "all": "median box of all",
    "centre": "middle of the photo",
}


def draw_contact_sheet(boxes: pd.DataFrame, masks: pd.Series, crops: Pixels) -> Image.Image:
    """A row for each of up to 12 people, spread evenly over the table; a frame tells the way.

    Args:
        boxes: person, photo and way of each crop.
        masks: mask state of each crop, in words.
        crops: N x size x size x 3, uint8.
    """
    people = boxes["person"].drop_duplicates().to_list()
    chosen = [people[row] for row in np.unique(np.linspace(0, len(people) - 1, PEOPLE).astype(int))]
    rows_of = {person: np.flatnonzero(boxes["person"] == person) for person in chosen}
    columns = max(len(rows) for rows in rows_of.values())
    sheet = Image.new("RGB", (columns * TILE, CAPTION + len(chosen) * (TILE + CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for place, (way, text) in enumerate(LEGEND.items()):
        left = 8 + place * (sheet.width // len(LEGEND))
        draw.rectangle((left, 8, left + 10, 18), fill=COLOURS[way])
        draw.text((left + 16, 6), text, "black", font)
    for line, (person, rows) in enumerate(rows_of.items()):
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
