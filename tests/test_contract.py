"""dvc.yaml matches the code: modules, packages, parameters; and imports point one way."""

import ast
import inspect
import re
import shlex
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from face_attributes.params import Params, Section, read_params

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "face_attributes"
PIPELINE: dict[str, Any] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
STAGES = list(PIPELINE)
FRAME = {
    "command",
    "errors",
    "files",
    "params",
    "processes",
    "progress",
    "ray_cluster",
    "revisions",
}
"""Modules that cannot change a result, so that no stage depends on them."""


def modules(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*.py"))


@cache
def imports(module: Path) -> frozenset[Path]:
    """Files of this project that a module imports itself."""
    files = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        files |= {ROOT / (name.replace(".", "/") + ".py") for name in names}
    return frozenset(path for path in files if path.exists())


def all_imports(module: Path) -> set[Path]:
    """Files of this project that a module imports, at any depth, without the frame."""
    seen, waiting = set[Path](), set(imports(module))
    while waiting:
        seen |= waiting
        waiting = {path for each in waiting for path in imports(each)} - seen
    return {path for path in seen if not (path.parent == LIBRARY and path.stem in FRAME)}


def code_dependencies(stage: str) -> set[Path]:
    """Modules and packages of the project that a stage depends on."""
    paths = {ROOT / dep for dep in PIPELINE[stage]["deps"] if not dep.startswith("$")}
    return {path for path in paths if path.parts[len(ROOT.parts)] in ("stages", LIBRARY.name)}


def test_the_folder_stages_is_the_pipeline() -> None:
    assert sorted(path.stem for path in modules("stages")) == sorted(["__init__", *STAGES])
    assert sorted(path.name for path in (ROOT / "stages").iterdir() if path.is_dir()) in (
        [],
        ["__pycache__"],
    )


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_the_module_of_its_name(stage: str) -> None:
    assert PIPELINE[stage]["cmd"].startswith(f"python -m stages.{stage} ")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_writes_to_its_argument_out_and_those_after_it(stage: str) -> None:
    """Which `stage_command` locks."""
    [command] = import_module(f"stages.{stage}").main.registered_commands
    names = list(inspect.signature(command.callback).parameters)
    arguments = [Path(word) for word in shlex.split(PIPELINE[stage]["cmd"])[3:]]
    locked = set(arguments[names.index("out") :])
    entries = [
        entry for kind in ("outs", "metrics", "plots") for entry in PIPELINE[stage].get(kind, [])
    ]
    listed = [Path(entry if isinstance(entry, str) else next(iter(entry))) for entry in entries]
    assert len(arguments) == len(names)
    assert all(locked & {path, *path.parents} for path in listed)
    assert all(any(place in (path, *path.parents) for path in listed) for place in locked)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_packages_that_it_imports_and_no_others(stage: str) -> None:
    listed, own = code_dependencies(stage), ROOT / f"stages/{stage}.py"
    used = all_imports(own)
    assert own in listed
    packages = {path for path in listed if path.is_dir()}
    covered = {path for path in used if path in listed or set(path.parents) & packages}
    assert used == covered, "imported, but not in deps"
    python = {path for path in listed - {own} if path.suffix == ".py"}
    assert python <= used
    assert all(any(package in path.parents for path in used) for package in packages)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_templates_that_it_fills(stage: str) -> None:
    text = (ROOT / f"stages/{stage}.py").read_text()
    templates = set(re.findall(r'render\(\s*"([\w.]+)"', text))
    included = {
        name
        for template in templates
        for name in re.findall(r'include "([\w.]+)"', (LIBRARY / "pages" / template).read_text())
    }
    data = {path.name for path in code_dependencies(stage) if path.suffix not in ("", ".py")}
    assert data == templates | included


def parameters_read(module: Path) -> set[str]:
    """Sections and single values that a stage takes from `params`, as `section` or `section.key`.

    An alias such as `train = params.train` counts as reading the whole section.
    """
    tree = ast.parse(module.read_text())
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    keys = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or id(node) in inner:
            continue
        chain, value = [node.attr], node.value
        while isinstance(value, ast.Attribute):
            chain, value = [value.attr, *chain], value.value
        if isinstance(value, ast.Name) and value.id == "params" and chain[0] in Params.model_fields:
            keys.add(".".join(chain[:2]))
    for node in tree.body:  # what `params.model_dump(exclude=PAGE_SECTIONS)` includes
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PAGE_SECTIONS":
            keys |= set(Params.model_fields) - set(ast.literal_eval(node.value))
    return keys


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_its_section_and_exactly_what_it_reads_of_others(stage: str) -> None:
    read = parameters_read(ROOT / f"stages/{stage}.py")
    own = {key for key in read if key.split(".")[0] == stage}
    listed = set(PIPELINE[stage]["params"])
    sections = {key for key in listed if "." not in key}
    assert own, "a stage reads its own section"
    assert stage in sections
    unlisted = {key for key in read if key not in listed and key.split(".")[0] not in sections}
    assert not unlisted, "read, but not listed"
    via_recipe = {"crop"} if stage == "train" else set[str]()  # `make_recipe` reads it
    unread = {
        key
        for key in listed - {stage} - via_recipe
        if not any(each == key or each.startswith(f"{key}.") for each in read)
    }
    assert not unread, "listed, but not read"


def sections(section: type[Section] = Params, prefix: str = "") -> dict[str, type[Section]]:
    """All sections of params.yaml, at any depth, by name."""
    found = {}
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            found |= {f"{prefix}{name}": kind} | sections(kind, f"{prefix}{name}.")
    return found


def parameters() -> set[str]:
    """The full names of all parameters."""
    return {
        f"{name}.{key}"
        for name, section in sections().items()
        for key in section.model_fields
        if f"{name}.{key}" not in sections()
    }


def keys_read(module: Path) -> set[tuple[type[Section], str]]:
    """Section and key of each parameter that a module reads.

    Of `x.optimizer.ema`, of an argument or field annotated with the section's type, and of an alias
    such as `settings = params.optimizer`.
    """
    tree = ast.parse(module.read_text())
    by_type = {section.__name__: section for section in sections().values()}
    by_name = {name.split(".")[-1]: section for name, section in sections().items()}
    variables = dict(by_name)
    for node in ast.walk(tree):
        match node:
            case ast.arg(arg=name, annotation=ast.Name(id=kind)) if kind in by_type:
                variables[name] = by_type[kind]
            case ast.AnnAssign(target=ast.Name(id=name), annotation=ast.Name(id=kind)) if (
                kind in by_type
            ):
                variables[name] = by_type[kind]
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Attribute(attr=section)) if (
                section in by_name
            ):
                variables[name] = by_name[section]
    keys = set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr=key) if name in variables:
                keys.add((variables[name], key))
            case ast.Attribute(value=ast.Attribute(attr=name), attr=key) if name in variables:
                keys.add((variables[name], key))
    return keys


def test_every_parameter_is_read_by_some_code() -> None:
    read = {
        key
        for folder in ("face_attributes", "stages", "commands")
        for module in modules(folder)
        if module != LIBRARY / "params.py"
        for key in keys_read(module)
    }
    text = (ROOT / "dvc.yaml").read_text()
    for name in parameters():
        section, key = name.rsplit(".", 1)
        if section == "data":  # paths, which dvc.yaml passes on as arguments
            assert f"${{{name}}}" in text
        else:
            assert (sections()[section], key) in read, name


def test_params_yaml_stays_short() -> None:
    assert len(parameters()) <= 68
    assert len([key for key in parameters() if re.fullmatch(r"train\.\w+", key)]) <= 12
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) < 300


def test_each_stage_has_a_section_and_each_section_is_read() -> None:
    assert set(Params.model_fields) == {*STAGES, "data", "labels"}
    assert read_params(ROOT / "params.yaml").train.freeze == "none"
    listed = {key.split(".")[0] for stage in STAGES for key in PIPELINE[stage]["params"]}
    assert listed == {*STAGES, "labels"}


def test_no_parameter_has_a_name_that_the_run_cache_ignores() -> None:
    """DVC's run cache ignores `size` and `nfiles`, at any depth (`dvc/stage/cache.py`).

    After a change of such a parameter it would restore the results of the value before.
    """
    names = {key.split(".")[-1] for key in parameters()}
    assert "side" in names
    assert not names & {"size", "nfiles"}


LAYERS = {
    "errors": set[str](),
    "files": set[str](),
    "params": {"errors"},
    "processes": {"errors", "files"},
    "progress": {"processes"},
    "command": {"errors", "files", "processes"},
    "revisions": {"errors"},
    "ray_cluster": {"errors"},
    "photos": {"errors", "files", "progress"},
    "faces": {"errors", "params", "photos"},
    "networks": {"errors", "files", "params", "photos", "processes"},
    "scoring": {"errors", "photos", "revisions"},
    "pages": set[str](),
    "training": {
        "errors",
        "files",
        "params",
        "photos",
        "processes",
        "progress",
        "networks",
        "scoring",
    },
    "inference": {"errors", "files", "params", "photos", "progress", "networks", "faces"},
}
"""What each module of the frame and each package may import, the lowest first."""


def layer_of(module: Path) -> str:
    """The package or module of the library that a file belongs to, or its folder."""
    folder, *rest = module.relative_to(ROOT).parts
    return rest[0].removesuffix(".py") if folder == LIBRARY.name else folder


def test_imports_point_one_way() -> None:
    """Stages and commands import the library, and never each other."""
    for module in modules(LIBRARY.name):
        if module != LIBRARY / "__init__.py":
            layer = layer_of(module)
            assert {layer_of(path) for path in imports(module)} - {layer} <= LAYERS[layer], module
    for folder in ("stages", "commands"):
        for module in modules(folder):
            above = {layer_of(path) for path in imports(module)} - set(LAYERS)
            # Two modules are no commands, and a sweep on the cluster is a sweep.
            allowed = {"demo": {"serving.py"}, "cluster": {"sweep.py", "remote_stage.py"}}
            assert not above or imports(module) & {
                path for path in modules("commands") + modules("stages")
            } <= {ROOT / "commands" / name for name in allowed.get(module.stem, ())}, module


def test_training_takes_only_metrics_from_scoring() -> None:
    used = {path for module in modules("face_attributes/training") for path in imports(module)}
    assert {path.name for path in used if layer_of(path) == "scoring"} == {"metrics.py"}


def test_in_the_library_only_one_module_knows_typer_and_one_each_dvc_and_ray() -> None:
    for module in modules(LIBRARY.name):
        text = module.read_text()
        assert module.stem == "command" or "import typer" not in text, module
        assert module.stem == "revisions" or not re.search("^(import|from) dvc", text, re.M), module
        assert module.stem == "ray_cluster" or not re.search(r"^\s*(import|from) ray\b", text, re.M)


def test_module_names_are_distinct() -> None:
    stems = [
        path.stem
        for folder in ("stages", "commands", "benchmarks", LIBRARY.name)
        for path in modules(folder)
        if path.stem != "__init__"
    ]
    roots = sorted(stem.removesuffix("s").removesuffix("ing").removesuffix("e") for stem in stems)
    assert sorted(set(roots)) == roots
