"""Names of files and people: which are the same, and how they are shown."""

import os
import re
import unicodedata
from pathlib import Path

from face_attributes.errors import UserError

BREAKS_A_LINE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Control characters, and others that end a line for some programs."""


def normal_form(name: str) -> str:
    """Return a name's composed form (NFC): macOS stores Hangul, umlauts and accents decomposed."""
    return unicodedata.normalize("NFC", name)


def readable_name(path: Path | str) -> str:
    """Convert a name to one line of valid Unicode.

    Undecodable bytes and characters that break a line become backslash escapes.
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return BREAKS_A_LINE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def names_in(folder: Path) -> dict[str, str]:
    """List the visible names in a folder, sorted: normal form -> name on the disk.

    Hidden names (`._mask1.jpg`, `.DS_Store`) are left out. Empty if there is no such folder.

    Raises:
        UserError: if two names have the same normal form.
    """
    names = dict[str, str]()
    listed = sorted(os.listdir(folder)) if folder.is_dir() else []
    for name in listed:
        if name.startswith("."):
            continue
        if normal_form(name) in names:
            raise UserError(
                f"{folder} has two names that look the same, {readable_name(name)!r}, in two "
                "forms of Unicode: rename or remove one of them"
            )
        names[normal_form(name)] = name
    return names
