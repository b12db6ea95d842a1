"""Adopt: make the project work on your own photos.

    python -m commands.adopt PHOTOS --weights imagenet
    python -m commands.adopt PHOTOS --eval FOLDER --weights FILE --preset quick --copy --track

PHOTOS is a folder with `train.csv` (gender, age, path; a row per person) and `images/<path>/`; or a
table with a row per photo (path, person, mask, gender, age), or a folder with one such table. Says
what is there, shows the difference before it writes, and changes nothing but files in git
(params.yaml, data/corrections.csv, data/answers.csv) and, of a file of weights, a copy in
data/pretrained. With --copy it also writes the photos to data/raw; with --track, DVC's files beside
them. Photos are never modified.
"""

import difflib
import filecmp
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.console import Console
from rich.table import Table
from ruamel.yaml import YAML

from face_attributes.command import user_command
from face_attributes.errors import UserError, last_error
from face_attributes.files import write_table, write_whole
from face_attributes.networks.build import build
from face_attributes.networks.freezing import freeze
from face_attributes.networks.matching import fit_state
from face_attributes.networks.weight_files import read_weights
from face_attributes.params import Params, check_params, read_params, read_yaml
from face_attributes.photos import label_edits
from face_attributes.photos.labels import MASKS, NUM_AGE_GROUPS, attribute_names, class_names
from face_attributes.photos.layouts import Source, read_evaluation, read_source
from face_attributes.photos.overview import count_classes, count_folds, find_unreadable
from face_attributes.photos.photo_table import parse_columns, people_table
from face_attributes.photos.raw import read_answers
from face_attributes.progress import progress

PARAMS = Path("params.yaml")
PRESETS = Path("presets")
CORRECTIONS = Path("data/corrections.csv")
ANSWERS = Path("data/answers.csv")
NO_EVALUATION = Path("data/no_evaluation")
"""A folder like data.eval without photos, for people who have none."""
RAW = Path("data/raw")
"""Where --copy puts the photos."""
PRETRAINED = Path("data/pretrained")

UNSAFE = set("\"'$`\\")
"""Characters that the command lines of dvc.yaml would not pass on as they are."""

Changes = dict[Path, str]
"""The new text of files in git."""
Copies = dict[Path, Path]
"""Path of each file in data/raw -> the file to copy."""


def class_table(photos: "pd.Series[int]", people: "pd.Series[int]", edges: Sequence[int]) -> Table:
    """Lay out the 18 classes as rows of mask and gender, and columns of age groups."""
    names = attribute_names(edges)
    table = Table(title="photos (people)", title_justify="left")
    for column in ("mask", "gender", *names["age"]):
        table.add_column(column, justify="left" if column in ("mask", "gender") else "right")
    counts = [f"{number} ({person})" for number, person in zip(photos, people, strict=True)]
    for row, (mask, gender) in enumerate((m, g) for m in names["mask"] for g in names["gender"]):
        table.add_row(mask, gender, *counts[row * NUM_AGE_GROUPS :][:NUM_AGE_GROUPS])
    return table


def report(source: Source, evaluation: pd.DataFrame, params: Params) -> int:
    """Say what is there; return the number of folds, at most that of params.yaml.

    Raises:
        UserError: if a class has too few people for two folds and the holdout.
    """
    photos, edges = source.photos, params.labels.age_edges
    print(f"{source.table}: {photos['person'].nunique()} people, {len(photos)} photos")
    print(f"evaluation photos: {len(evaluation) or 'none (--eval FOLDER names some)'}")
    if source.rows_are_photos:
        if photos["mask_code"].any():
            print(f"mask codes: {describe_mask_codes(photos)}")
        print(f"columns that are not used: {', '.join(source.unused_columns) or 'none'}")
    else:
        hidden = sum(path.name.startswith(".") for path in (source.folder / "images").rglob("*"))
        others = [f"{each.person}/{each.photo}".rstrip("/") for each in source.rejections]
        print(f"hidden files: {hidden}, ignored; other files: {_count(others)}")
    photos_by_class, people_by_class = count_classes(photos, edges)
    Console().print(class_table(photos_by_class, people_by_class, edges))
    ages = photos.drop_duplicates("person")["age"].value_counts()
    near = [f"{age}: {ages.get(age, 0)}" for edge in edges for age in (edge - 1, edge)]
    print(f"people with an age at an edge between age groups: {', '.join(near)}")
    for name, table in {"labelled": photos, "evaluation": evaluation}.items():
        bad = find_unreadable(table["path"].to_list(), params.clean.max_pixels)
        too_many = len(bad) > params.clean.max_rejected * len(table)
        remedy = f"; replace them: more than {params.clean.max_rejected:.0%} stop the stage clean"
        print(f"unreadable {name} photos: {_count(bad)}{remedy * too_many}")
    wanted = len(params.folds.index)
    possible = count_folds(people_by_class, edges, params.folds.holdout)
    rarest = class_names(edges)[int(people_by_class.argmin())]
    used = f"folds.index gets {possible}" if possible < wanted else f"{wanted} are used"
    beside = f" beside folds.holdout: {params.folds.holdout:g}" if params.folds.holdout else ""
    print(f"folds that every class can fill{beside}: {possible}, because of {rarest}; {used}")
    return min(possible, wanted)


def describe_mask_codes(photos: pd.DataFrame) -> str:
    """Say how 0, 1 and 2 are read, and how often they occur: a table may use another order."""
    counts = photos["mask_code"].value_counts()
    meanings = [
        f"{code} is read as {mask} ({counts.get(str(code), 0)} photos)"
        for code, mask in enumerate(MASKS)
    ]
    return f"{', '.join(meanings)}; if your codes mean something else, write words in their place"


def _count(names: Sequence[str]) -> str:
    return f"{len(names)}, such as {names[0]}" if names else "0"


def relative(path: Path) -> str:
    """A path without links as params.yaml names it: relative inside the project, else absolute."""
    project = Path.cwd().resolve()
    return (path.relative_to(project) if path.is_relative_to(project) else path).as_posix()


def photo_parameter(path: Path) -> str:
    """A path in the section `data` of params.yaml.

    Raises:
        UserError: if the command lines of dvc.yaml cannot contain it, or it contains the project.
    """
    if is_inside(Path(), path):
        raise UserError(f"{path} contains this project: move the photos to a folder of their own")
    name = relative(path.resolve())
    if UNSAFE & set(name) or not name.isprintable():
        raise UserError(
            f"{path}: the path contains quotes, $, a backslash or unprintable letters, which "
            "commands of dvc.yaml cannot contain: rename it, or add --copy"
        )
    return name


def is_inside(path: Path, folder: Path = Path()) -> bool:
    """Whether a path, after links, is in a folder: by default, in the project."""
    return path.resolve().is_relative_to(folder.resolve())


def run_git(*arguments: str) -> tuple[int, str]:
    """Run git; return its exit code and output: 127, as in a shell, if git is not installed."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        return 127, ""
    return done.returncode, done.stdout


def warn_if_git_would_add(folder: Path) -> None:
    """Warn if the photos are in the project, and git does not ignore them."""
    if is_inside(folder) and run_git("check-ignore", "-q", str(folder))[0] == 1:
        print(
            f"warning: git does not ignore {folder}: add --track, or a line to .gitignore, before "
            "you commit"
        )


def locate(
    source: Source, evaluation: Path | None, answers: Path | None, copies: Copies, copy: bool
) -> dict[str, str]:
    """Return the section `data` of params.yaml; say where the photos are used from.

    Raises:
        UserError: if photos can only be copied, or cannot be.
    """
    if copy:
        if RAW.exists():
            raise UserError(f"{RAW} is in the way of the copy: move it, or leave out --copy")
        print(f"photos: {len(copies)} files, {size_of(copies)}, will be copied to {RAW}")
    elif source.rows_are_photos:
        raise UserError(
            f"a table with a row per photo needs --copy: {len(copies)} photos ({size_of(copies)}) "
            f"are then copied to {RAW}, in a folder per person, and yours stay as they are"
        )
    else:
        print("photos: used in place, nothing is copied")
        warn_if_git_would_add(source.folder)

    def name(folder: Path, copied: Path) -> str:
        return copied.as_posix() if copy else photo_parameter(folder)

    return {
        "train": name(source.folder, RAW / "train"),
        "eval": name(evaluation, RAW / "eval") if evaluation else NO_EVALUATION.as_posix(),
        "answers": name(answers, ANSWERS) if answers else ANSWERS.as_posix(),
        "corrections": CORRECTIONS.as_posix(),
    }


def list_tracked(values: Mapping[str, Mapping[str, str]]) -> list[str]:
    """List what --track lets DVC track: the photos, and a file of weights.

    Raises:
        UserError: if one of them is outside the project.
    """
    data, weights = values["data"], values["weights"]["source"]
    paths = [path for path in (data["train"], data["eval"]) if path != NO_EVALUATION.as_posix()]
    paths = [RAW.as_posix() if Path(path).is_relative_to(RAW) else path for path in paths]
    if weights not in ("none", "imagenet"):
        paths.append(weights)
    outside = [path for path in paths if Path(path).is_absolute()]
    if outside:
        raise UserError(
            f"--track: {outside[0]} is outside the project, where DVC cannot track it: add --copy"
        )
    # DVC refuses a path inside another that it tracks.
    parents = {path: set(map(str, Path(path).parents)) for path in paths}
    return [path for path in parents if not parents[path] & parents.keys()]


def find_preset(name: str) -> Path:
    """Return the file of a preset.

    Raises:
        UserError: if there is none of that name; it lists those there are.
    """
    names = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in names:
        known = ", ".join(names) or f"none; run in the folder that contains {PRESETS}"
        raise UserError(f"there is no preset {name!r}: choose one of {known}")
    return PRESETS / f"{name}.yaml"


def merge(values: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Set values in nested sections; a list keeps its style."""
    for key, value in changes.items():
        match values.get(key), value:
            case dict() as section, dict():
                merge(section, value)
            case list() as items, list():
                items[:] = value
            case _:
                values[key] = value


def new_params(preset: Path, changes: Mapping[str, Any]) -> tuple[str, Params]:
    """Apply a preset and then `changes` to params.yaml; comments stay.

    Returns:
        The new text, and the parameters that it contains.

    Raises:
        UserError: naming the preset and the key, if a value is refused.
    """
    content = read_yaml(preset)
    if not isinstance(content, dict):
        raise UserError(f"{preset} must have the sections of params.yaml, such as train")
    yaml, text = YAML(), StringIO()
    yaml.width = 4096
    values = yaml.load(PARAMS.read_text(encoding="utf-8"))
    merge(values, content)
    merge(values, changes)
    yaml.dump(values, text)
    params = check_params(YAML(typ="safe").load(text.getvalue()), preset)
    return text.getvalue(), params


def choose_weights(weights: str) -> tuple[dict[str, Any], str]:
    """Return the changes of params.yaml for --weights, and the line that explains them.

    A file is copied to PRETRAINED, unless it is there: DVC notices changes nowhere else.

    Raises:
        UserError: if another file is in the way of the copy.
    """
    if not weights:
        return {
            "weights": {"source": "none"},
            "train": {"freeze": "none", "cached_views": 0},
        }, (
            "weights: none named, so networks start from random ones, with nothing frozen; "
            "pretrained ones score much higher: add --weights imagenet, or --weights FILE"
        )
    if weights == "imagenet":
        return {"weights": {"source": weights}}, "weights: ImageNet's; `dvc repro` downloads them"
    file, target = Path(weights), PRETRAINED / Path(weights).name
    # The file itself may be a link into DVC's cache (`cache.type symlink`).
    source = relative(file.parent.resolve() / file.name)
    if is_inside(file.parent, PRETRAINED):
        return {"weights": {"source": source}}, f"weights: {file}, in place"
    if target.exists() and not filecmp.cmp(file, target, shallow=False):
        raise UserError(f"{target} is in the way of the copy: move it, or pass it as --weights")
    return {"weights": {"source": target.as_posix()}}, f"weights: a copy in {PRETRAINED}"


def check_network(params: Params, weights: str, preset: Path) -> None:
    """Check that a file of weights fits the network, and that the network has the frozen part.

    Raises:
        UserError: naming --weights or the preset.
    """
    try:
        state = None if weights in ("", "imagenet") else read_weights(Path(weights))
    except UserError as error:
        raise UserError(str(error).replace("weights.source:", "--weights:")) from None
    model, side = params.weights.model, params.crop.side
    try:
        network = build(model, side, params.train.heads, params.weights.seed)
        freeze(network, params.train.freeze)
    except UserError as error:
        raise UserError(f"{preset} (weights.model: {model}): {error}") from None
    try:
        if state is not None:
            fit_state(network, state, weights)
    except UserError as error:
        raise UserError(
            f"{preset} (weights.model: {model}): {error}; the preset sets weights.model: choose "
            f"one for your file, such as --preset gpu for a resnet50, or add one of your own to "
            f"{PRESETS}/"
        ) from None


def empty_labels(photos: pd.DataFrame, evaluation: pd.DataFrame) -> Changes:
    """Empty the corrections and answers in git, unless they are about these photos."""
    changes = {}
    try:
        corrections = label_edits.read_corrections(CORRECTIONS)
        label_edits.apply_corrections(photos, corrections, CORRECTIONS)
    except UserError:
        changes[CORRECTIONS] = ",".join(label_edits.COLUMNS) + "\n"
    try:
        read_answers(ANSWERS, evaluation["photo"])
    except UserError:
        changes[ANSWERS] = "ImageID,ans\n"
    return changes


def list_copies(source: Source, evaluation: pd.DataFrame, folder: Path | None) -> Copies:
    """List what --copy copies: photos and tables, without hidden and unused files."""
    photos = source.photos[["person", "photo", "path"]].itertuples(index=False)
    copies = {Path("train/images", person, photo): Path(path) for person, photo, path in photos}
    if not source.rows_are_photos:
        copies[Path("train/train.csv")] = source.table
    if folder is not None:
        copies[Path("eval/info.csv")] = folder / "info.csv"
        for photo, path in evaluation.itertuples(index=False):
            copies[Path("eval/images", photo)] = Path(path)
    return copies


def size_of(copies: Copies) -> str:
    """Size of the files to copy, in GB.

    Raises:
        UserError: if the disk has less space.
    """
    needed, free = sum(file.stat().st_size for file in copies.values()), shutil.disk_usage(".").free
    if needed > free:
        raise UserError(
            f"a copy of the photos needs {needed / 1e9:.2f} GB, but {free / 1e9:.2f} GB are free: "
            "free some space, or leave out --copy"
        )
    return f"{needed / 1e9:.2f} GB"


@contextmanager
def copied(copies: Copies, source: Source) -> Iterator[None]:
    """Copy photos and tables under a temporary name; rename it when the block ends without error.

    A table with a row per photo becomes train.csv; origin.csv then says where each photo is from.
    """
    if not copies:
        yield
        return
    out = RAW.with_name(RAW.name + ".partial")
    shutil.rmtree(out, ignore_errors=True)
    try:
        for target, file in progress(copies.items(), len(copies), "files copied"):
            (out / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, out / target)
        if source.rows_are_photos:
            write_table(out / "train/train.csv", people_table(source.photos))
            write_table(out / "train/origin.csv", source.photos[["person", "photo", "path"]])
        yield
        out.rename(RAW)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def read_or_empty(path: Path) -> str:
    """Read a text file; "" if it is missing."""
    return path.read_text(encoding="utf-8") if path.exists() else ""


def show_difference(changes: Changes) -> None:
    """Print the difference between the files in git and their new text."""
    for path, text in changes.items():
        lines = difflib.unified_diff(
            read_or_empty(path).splitlines(),
            text.splitlines(),
            f"{path}, now",
            f"{path}, new",
            n=0,
            lineterm="",
        )
        print(*(line for line in lines if not line.startswith("@@")), sep="\n")


def uncommitted(paths: Sequence[str]) -> list[str]:
    """List the files that git could not restore: changed since the last commit, or not in it."""
    status = ("status", "--porcelain", "--ignored", "--")
    return [path for path in paths if Path(path).exists() and run_git(*status, path) != (0, "")]


def undo_commands(written: Sequence[str], tracked: Sequence[str]) -> str:
    """Shell commands that undo writing and tracking; to be made before either.

    Files that git cannot restore are left out: `confirm` warns of them.

    Args:
        written: files and folders that will be written.
        tracked: files and folders that DVC will track.
    """
    dvc_files = [f"{path}.dvc" for path in tracked]
    existing = [path for path in (*written, *dvc_files) if Path(path).exists()]
    lost = uncommitted(existing)
    commands = {
        "git checkout": [path for path in existing if path not in lost],
        "dvc remove": [path for path in dvc_files if path not in existing],
        "rm -r": [path for path in written if path not in existing],
    }
    return "; ".join(f"{name} {shlex.join(paths)}" for name, paths in commands.items() if paths)


def confirm(changes: Changes, yes: bool) -> None:
    """Ask before writing, unless --yes.

    Raises:
        UserError: if there is no terminal to ask on.
    """
    lost = uncommitted(list(map(str, changes)))
    if lost:
        print(
            f"warning: {', '.join(lost)}: not committed, so `git checkout` cannot undo the change"
        )
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():  # None if it is closed
        raise UserError("nothing is written: there is no terminal to ask on; add --yes")
    if not typer.confirm("Write this?"):
        print("nothing is written")
        raise typer.Exit(1)


def write_all(contents: Mapping[Path, bytes]) -> None:
    """Write all files to temporary ones, and replace none before all of them are written."""
    with ExitStack() as files:
        for path, content in contents.items():
            files.enter_context(write_whole(path)).write(content)


def track_files(paths: Sequence[str]) -> None:
    """Let DVC track photos and weights.

    Raises:
        UserError: with DVC's reason.
    """
    command = [sys.executable, "-m", "dvc", "add", *paths]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(
            f"params.yaml is written, but `dvc add {shlex.join(paths)}` says: "
            f"{last_error(done.stderr)}"
        )


@user_command
def main(
    photos: Annotated[Path, typer.Argument(help="Folder or table of your photos")],
    evaluation: Annotated[
        Path | None, typer.Option("--eval", help="Folder of photos to predict")
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(help="Known labels of the photos of --eval, as ImageID,ans")
    ] = None,
    weights: Annotated[str, typer.Option(help="A file of pretrained weights, or imagenet")] = "",
    preset: Annotated[str, typer.Option(help="A file in presets/, without .yaml")] = "faces",
    columns: Annotated[
        str, typer.Option(help="Columns of a table with a row per photo, as person=who,mask=state")
    ] = "",
    copy: Annotated[bool, typer.Option("--copy", help="Copy the photos to data/raw")] = False,
    track: Annotated[
        bool, typer.Option("--track", help="Let DVC track photos and weights")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Write without asking")] = False,
) -> None:
    """Make the project work on your own PHOTOS."""
    if answers and not evaluation:
        raise UserError("--answers needs --eval FOLDER, the photos that the answers are of")
    preset_file = find_preset(preset)
    read_params()  # here an error is that of params.yaml, and below the preset's
    _, params = new_params(preset_file, {})
    check_network(params, weights, preset_file)
    source = read_source(photos, parse_columns(columns))
    evaluation_photos = read_evaluation(evaluation or NO_EVALUATION)
    if answers:
        known = read_answers(answers, evaluation_photos["photo"])
        print(f"{answers}: {len(known)} known labels of {len(evaluation_photos)} evaluation photos")
    copies = list_copies(source, evaluation_photos, evaluation)
    values: dict[str, Any] = {"data": locate(source, evaluation, answers, copies, copy)}
    folds = report(source, evaluation_photos, params)

    weight_values, remark = choose_weights(weights)
    print(remark)
    values |= weight_values
    if folds < len(params.folds.index):
        values["folds"] = {"index": list(range(folds))}
    to_track = list_tracked(values) if track else []

    text, _ = new_params(preset_file, values)
    changes = {PARAMS: text, **empty_labels(source.photos, evaluation_photos)}
    if answers and copy:
        changes[ANSWERS] = answers.read_text(encoding="utf-8-sig")
    changes = {path: new for path, new in changes.items() if new != read_or_empty(path)}
    show_difference(changes)
    if changes:
        confirm(changes, yes)

    contents = {path: new.encode() for path, new in changes.items()}
    copied_weights = Path(values["weights"]["source"])
    if copied_weights.is_relative_to(PRETRAINED) and not copied_weights.exists():
        contents[copied_weights] = Path(weights).read_bytes()
    undo = undo_commands([*map(str, contents), *[RAW.as_posix()] * copy], to_track)
    with copied(copies if copy else {}, source):
        write_all(contents)
    try:
        if to_track:
            track_files(to_track)
    finally:
        if undo:
            print(f"undo: {undo}")
    add = [f"git add {shlex.join(f'{path}.dvc' for path in to_track)}"] if to_track else []
    print(f"next: {'; '.join([*add, 'dvc repro'])}")


if __name__ == "__main__":
    main()
