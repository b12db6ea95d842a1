"""dvc.yaml says what the code does: the modules, the params and the layers of imports."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from stages.params import Params, Section

ROOT = Path(__file__).parents[1]
PIPELINE: dict[str, Any] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
STAGES = list(PIPELINE)


def stage_of(name: str) -> dict[str, Any]:
    """A stage's definition, also of one with a matrix."""
    return dict(PIPELINE[name])


def imports(module: Path) -> set[Path]:
    """Files of this project that a module imports itself."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stages"):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("stages")]
        else:
            continue
        for name in names:
            path = ROOT / (str(name).replace(".", "/") + ".py")
            found |= {path} if path.exists() else set()
    return found


def all_imports(module: Path) -> set[Path]:
    """A module and all files of this project that it imports, at any depth."""
    seen, waiting = set[Path](), {module}
    while waiting:
        seen |= waiting
        waiting = {name for path in waiting for name in imports(path)} - seen
    return seen


def params_read(module: Path) -> set[str]:
    """Keys that a stage takes from `params`: a section it passes on whole, or single values."""
    tree = ast.parse(module.read_text())
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or id(node) in inner:
            continue
        chain, value = [node.attr], node.value
        while isinstance(value, ast.Attribute):
            chain, value = [value.attr, *chain], value.value
        if isinstance(value, ast.Name) and value.id == "params" and chain[0] in Params.model_fields:
            found.add(".".join(chain[:2]))
    return found


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_runs_the_module_of_its_name(name: str) -> None:
    assert stage_of(name)["cmd"].startswith(f"python -m stages.{name} ")


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_exactly_the_modules_it_imports(name: str) -> None:
    modules = (dep for dep in stage_of(name)["deps"] if dep.startswith("stages/"))
    listed = {dep for dep in modules if dep.endswith(".py")}
    used = {path.relative_to(ROOT).as_posix() for path in all_imports(ROOT / f"stages/{name}.py")}
    assert listed == used


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_lists_its_section_and_exactly_what_it_reads_of_others(name: str) -> None:
    read = params_read(ROOT / f"stages/{name}.py")
    of_others = {key for key in read if key.split(".")[0] != name}
    assert set(stage_of(name)["params"]) == {name, *of_others}
    assert of_others != read, "a stage reads its own section"


def knobs_read(module: Path) -> set[tuple[str, str]]:
    """Section and key of each knob that a module takes from params, or from a section given."""
    tree = ast.parse(module.read_text())
    sections = {
        field.annotation.__name__: name
        for name, field in Params.model_fields.items()
        if isinstance(field.annotation, type)
    }
    given = {
        node.arg if isinstance(node, ast.arg) else getattr(node.target, "id", ""): sections[kind]
        for node in ast.walk(tree)
        if isinstance(node, ast.arg | ast.AnnAssign)
        for kind in [getattr(node.annotation, "id", "")]
        if kind in sections
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = node.value
            name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
            found.add((given.get(name, name), node.attr))
    return found


def test_no_knob_is_read_by_nothing() -> None:
    read = set().union(*(knobs_read(module) for module in (ROOT / "stages").rglob("*.py")))
    for name in STAGES:
        section = Params.model_fields[name].annotation
        assert isinstance(section, type) and issubclass(section, Section)
        assert {(name, key) for key in section.model_fields} <= read


def test_each_stage_has_a_section_and_each_section_is_read() -> None:
    assert set(Params.model_fields) == {*STAGES, "data", "labels"}
    # `data` holds paths, which dvc.yaml passes on as arguments.
    read = {key.split(".")[0] for name in STAGES for key in stage_of(name)["params"]}
    assert read == {*STAGES, "labels"}


def test_no_knob_has_a_name_that_the_run_cache_leaves_out() -> None:
    """DVC's run cache overlooks `size` and `nfiles`, at any depth (`dvc/stage/cache.py`).

    After a change of a knob of that name it would bring back the results of the value before.
    """
    sections = [field.annotation for field in Params.model_fields.values()]
    knobs = {knob for section in sections for knob in getattr(section, "model_fields", {})}
    assert "side" in knobs
    assert not knobs & {"size", "nfiles"}


LAYERS = {
    "errors": set[str](),
    "files": set[str](),
    "params": {"errors"},
    "command": {"errors", "files"},
    "photos": {"errors", "files"},
    "progress": set[str](),
    "faces": {"errors", "params", "photos"},
    "learning": {"errors", "files", "params", "photos", "progress", "scoring"},
    "pages": {"photos"},
    "scoring": {"errors", "photos"},
    "revisions": {"errors", "photos", "scoring"},
    "classifying": {"errors", "faces", "learning", "photos"},
    "serving": set[str](),
}


def layer_of(module: Path) -> str:
    return module.relative_to(ROOT / "stages").parts[0].removesuffix(".py")


def test_imports_point_one_way() -> None:
    for module in (ROOT / "stages").rglob("*.py"):
        layer = layer_of(module)
        below = {layer_of(path) for path in imports(module)} - {layer}
        assert below <= LAYERS.get(layer, set(LAYERS)), module


def test_below_the_stages_only_commands_know_typer_and_only_revisions_knows_dvc() -> None:
    for module in (ROOT / "stages").rglob("*.py"):
        if (layer := layer_of(module)) in LAYERS:
            text = module.read_text()
            assert layer == "command" or "import typer" not in text, module
            assert layer == "revisions" or not re.search("^(import|from) dvc", text, re.M), module
