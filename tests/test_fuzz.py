"""Damaged input is read, or refused in one line: no traceback, no hang, no loss of memory.

    FUZZ_EXAMPLES=10000 python -m pytest tests/test_fuzz.py    # of each kind, instead of 200

An example is drawn from its number alone.
"""

import json
import os
import resource
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from typer.testing import CliRunner

from commands import classify
from face_attributes.errors import UserError
from face_attributes.inference.recognition import NO_FACE, examine
from face_attributes.networks.matching import fit_state
from face_attributes.networks.weight_files import (
    load_network,
    read_recipe,
    read_weights,
    write_weights,
)
from face_attributes.params import Params, read_params
from face_attributes.photos.label_edits import apply_corrections, read_corrections
from face_attributes.photos.layouts import read_evaluation, read_source
from face_attributes.photos.names import BREAKS_A_LINE
from face_attributes.photos.opening import BadPhotoError, open_photo, readable_formats
from face_attributes.photos.raw import list_photos, read_answers, read_people
from tests.conftest import Change
from tests.small import FALLBACK, small_recipe, tiny_network

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "200"))
MAX_SECONDS = 5
"""Of CPU time, for one example."""
MAX_GROWTH = 500_000
"""Of the process, in kilobytes, over all examples of a kind."""
MAX_PIXELS = 1_000_000

WORDS = (
    "", " ", "nan", "NA", "None", "-1", "0", "1e400", "1.0", "9" * 5000, "\u0663", "\u00b2", "0x10",
    '"', "'", "\0", "\r", "\n", "\t", "\u2028", "\ufeff", "\ud55c", "\u1112\u1161\u11ab", "=1+1",
    ".", "..", "/", "../../etc/passwd", "\\", ";", ",", "~", "x" * 300, "x" * 200_000, "path",
    "mask", "{}", "[", "*a", "&a [*a]", "!!python/object:os.system x", "!!int x", "2020-13-45",
    ": ", "- ", "<<: *a", "---", "...", "%YAML 9.9", "yes", "~: ~", ".inf",
    "1_000", "? x", "|", ">-", "#",
)  # fmt: skip
"""What tables and YAML files are surprised by."""


def damage(content: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """Flip bits, overwrite, cut out or repeat a part, cut off the end, or swap the header."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        # Headers are short, and decide the most.
        reach = len(changed) if rng.random() < 0.5 else min(len(changed), 300)
        start = int(rng.integers(0, max(reach, 1)))
        length = int(2 ** rng.uniform(0, 8))
        match rng.integers(6):
            case 0:
                for position in rng.integers(0, max(reach, 1), 8):
                    changed[position : position + 1] = bytes([rng.integers(256)])
            case 1:
                value = rng.choice([0, 1, 127, 128, 255])
                changed[start : start + length] = bytes([value]) * length
            case 2:
                del changed[start : start + length]
            case 3:
                changed[start:start] = changed[start : start + length]
            case 4:
                del changed[start:]
            case _:
                other = others[rng.integers(len(others))]
                changed[:start] = other[:start]
    return bytes(changed)


def damage_text(content: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """Replace, insert, repeat or remove words or lines of a text; or damage its bytes."""
    if rng.random() < 0.2:
        return damage(content, others, rng)
    text = content.decode()
    for _ in range(rng.integers(1, 4)):
        separator = str(rng.choice(["\n", ",", ": ", " "]))
        parts = text.split(separator)
        place = int(rng.integers(len(parts)))
        word = WORDS[rng.integers(len(WORDS))]
        match rng.integers(5):
            case 0:
                parts[place] = word
            case 1:
                parts.insert(place, word)
            case 2:
                parts.insert(place, parts[rng.integers(len(parts))])
            case 3:
                del parts[place]
            case _:
                cut = int(rng.integers(len(parts[place]) + 1))
                parts[place] = parts[place][:cut] + word + parts[place][cut:]
        text = separator.join(parts)
    return text.encode(str(rng.choice(["utf-8"] * 8 + ["utf-8-sig", "utf-16"])))


def check(message: str) -> None:
    """Each line of an error can be read."""
    assert message
    for line in message.split("\n"):
        assert line.strip() and not BREAKS_A_LINE.search(line), repr(message)


def fuzz(
    seeds: Sequence[bytes],
    read: Callable[[bytes], object],
    change: Callable[[bytes, Sequence[bytes], np.random.Generator], bytes] = damage,
) -> None:
    """Read EXAMPLES damaged versions of `seeds`, each of which is good as it is."""
    for content in seeds:
        read(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for number in range(EXAMPLES):
        rng = np.random.default_rng(number)
        content = change(seeds[rng.integers(len(seeds))], seeds, rng)
        start = time.process_time()
        try:
            with warnings.catch_warnings(action="error"):
                read(content)
        except (UserError, BadPhotoError) as error:
            refused += 1
            check(str(error))
        except Exception as error:
            error.add_note(f"example {number}")
            raise
        assert time.process_time() - start < MAX_SECONDS, f"example {number}"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_GROWTH
    assert 0 < refused < EXAMPLES


# --- photos


@pytest.fixture(scope="module")
def photos(portraits: list[Path]) -> list[bytes]:
    """A face in the formats and modes that people keep photos in."""
    face = Image.open(portraits[0]).resize((96, 128))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x8769] = 6, "a face", {0x9003: "2020:01:01 00:00:00"}
    transparent = face.convert("RGBA")
    transparent.putalpha(200)
    deep = Image.fromarray(np.asarray(face.convert("L"), dtype=np.uint16) * 257)
    turned = face.rotate(90)
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (face, "jpeg", {}),
        (face, "jpeg", {"exif": exif, "progressive": True}),
        (face, "jpeg", {"restart_marker_rows": 1}),
        (face.convert("CMYK"), "jpeg", {}),
        (face, "png", {"exif": exif, "icc_profile": bytes(500)}),
        (transparent, "png", {}),
        (deep, "png", {}),
        (face.quantize(16), "png", {"transparency": 3}),
        (face.convert("1"), "png", {}),
        (face, "gif", {"save_all": True, "append_images": [turned]}),
        (face, "webp", {}),
        (transparent, "webp", {"lossless": True, "exif": exif}),
        (face, "webp", {"save_all": True, "append_images": [turned]}),
        (face, "avif", {"exif": exif}),
    ]
    contents = []
    for image, kind, options in kinds:
        content = BytesIO()
        image.save(content, kind, **options)
        contents.append(content.getvalue())
    return contents


def test_damaged_photos(photos: list[bytes]) -> None:
    """As the stages open them, and as `classify` and the demo do."""
    recipe = small_recipe(FALLBACK)

    def read(content: bytes) -> None:
        with suppress(BadPhotoError):
            open_photo(BytesIO(content), MAX_PIXELS)
        examined = examine("photo", BytesIO(content), recipe, False, MAX_PIXELS)
        assert all(face.crop.shape == (32, 32, 3) for face in examined.faces)
        if examined.problem not in ("", NO_FACE):
            # A lack of memory is said of a machine, not of a photo.
            assert "memory" not in examined.problem
            raise BadPhotoError(examined.problem)

    assert len(readable_formats()) >= 5
    fuzz(photos, read)


def test_classify_and_draw_on_damaged_photos(
    photos: list[bytes], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has its row, whatever happens to the others."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    names = [f"photos/{number:05}.jpg" for number in range(EXAMPLES)]
    for number, name in enumerate(names):
        rng = np.random.default_rng(number)
        Path(name).write_bytes(damage(photos[rng.integers(len(photos))], photos, rng))
    options = ["--networks", str(trained), "--json", "rows.json", "--annotate", "drawn"]
    result = CliRunner().invoke(classify.main, ["photos", *options])
    assert result.exit_code == 1, result.output + str(result.exception)
    rows = json.loads(Path("rows.json").read_text())
    assert list(dict.fromkeys(row["file"] for row in rows)) == names
    assert {row["class"] is None for row in rows} == {True, False}


# --- tables


@pytest.fixture
def in_raw(raw: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in the small data set."""
    monkeypatch.chdir(raw)
    yield raw


@pytest.mark.usefixtures("in_raw")
def test_damaged_tables_of_people() -> None:
    table = Path("train/train.csv")

    def read(content: bytes) -> None:
        table.write_bytes(content)
        assert len(list_photos(read_people(table), Path("train"))[0])
        assert len(read_source(Path("train"), {}).photos)

    fuzz([table.read_bytes()], read, damage_text)


@pytest.mark.usefixtures("in_raw")
def test_damaged_tables_of_photos() -> None:
    people = ["000001_female_Any_25", "000001_male_Any_30", "3_male_Any_60"]
    rows = [
        f"train/images/{person}/{stem}.jpg,{number},{mask},{gender},{age},{race}"
        for number, (person, gender, age, race) in enumerate(
            zip(people, ["f", "male", "Male"], [25, 30, 60], ["", "Any", "Any"], strict=True)
        )
        for stem, mask in (("mask1", "worn"), ("incorrect_mask", 1), ("normal", "Not worn"))
    ]

    def read(content: bytes) -> None:
        Path("photos.csv").write_bytes(content)
        assert len(read_source(Path("photos.csv"), {}).photos)

    content = "\n".join(["path,person,mask,gender,age,race", *rows, ""])
    fuzz([content.encode()], read, damage_text)


@pytest.mark.usefixtures("in_raw")
def test_damaged_tables_of_evaluation_photos_and_answers() -> None:
    def read_info(content: bytes) -> None:
        Path("eval/info.csv").write_bytes(content)
        read_evaluation(Path("eval"))

    def read_ans(content: bytes) -> None:
        Path("answers.csv").write_bytes(content)
        assert read_answers(Path("answers.csv"), ["a.jpg", "b.jpg"])["ans"].between(0, 17).all()

    content = Path("eval/info.csv").read_bytes()
    fuzz([content], read_info, damage_text)
    fuzz([content], read_ans, damage_text)


@pytest.mark.usefixtures("in_raw")
def test_damaged_corrections() -> None:
    people, _ = list_photos(read_people(Path("train/train.csv")), Path("train"))

    def read(content: bytes) -> None:
        path = Path("corrections.csv")
        path.write_bytes(content)
        assert len(apply_corrections(people, read_corrections(path), path))

    rows = [
        "person,photo,field,old,new,reason,reviewer,decision,score",
        "000001_female_Any_25,,gender,female,male,seen,Ann,accepted,0.9",
        "000001_male_Any_30,,age,30,29,near,Ann,rejected,0.1",
        '3_male_Any_60,normal.jpg,mask,not_worn,incorrect,"swapped, surely",,,',
        "3_male_Any_60,incorrect_mask.jpg,mask,incorrect,not_worn,swapped,,,",
        "3_male_Any_60,mask1.jpg,drop,,,dark,,,1",
    ]
    fuzz(["\n".join(rows).encode()], read, damage_text)


def test_damaged_parameters(change: Change) -> None:
    def read(content: bytes) -> None:
        Path("params.yaml").write_bytes(content)
        assert isinstance(read_params(), Params)

    fuzz([Path("params.yaml").read_bytes()], read, damage_text)


# --- weight files


def test_damaged_weight_files(tmp_path: Path) -> None:
    network = tiny_network()
    state = network.state_dict()
    torch.save(state, tmp_path / "state.pth")
    torch.save({"model": state, "epoch": 3}, tmp_path / "wrapped.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(state, tmp_path / "state.safetensors")
    for suffix in ("pth", "safetensors"):
        path = tmp_path / f"damaged.{suffix}"

        def read(content: bytes, path: Path = path) -> None:
            path.write_bytes(content)
            assert fit_state(network, read_weights(path), str(path)).keys() == state.keys()

        fuzz([each.read_bytes() for each in sorted(tmp_path.glob(f"[!d]*.{suffix}"))], read)


def test_damaged_networks_of_the_pipeline(tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    write_weights(path, tiny_network().state_dict(), small_recipe(FALLBACK))

    def read(content: bytes) -> None:
        path.write_bytes(content)
        assert read_recipe(path).age_edges
        load_network(tiny_network(), path)

    fuzz([path.read_bytes()], read)
