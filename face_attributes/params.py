"""params.yaml as frozen, strict, typed objects: one class per section, no defaults in code.

params.yaml itself documents each parameter, beside its value.
"""

import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from face_attributes.errors import UserError

Detector = Literal["yuface", "haar", "yunet", "none"]
Device = Literal["auto", "cuda", "cpu"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Heads = Literal["joint", "split", "ages"]

Model = Annotated[str, Field(min_length=1)]  # checked by networks.build, which knows all names
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Zoom = Annotated[float, Field(ge=0, lt=0.9)]  # leaves something of a crop of 16 pixels
Rate = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


def _ascend(edges: list[int]) -> list[int]:
    if len(edges) != 2 or edges[0] >= edges[1]:
        raise ValueError("write two ages, the lower one first, such as [30, 60]")
    return edges


def _count_up(folds: list[int]) -> list[int]:
    if folds != list(range(len(folds))):
        raise ValueError(f"count up from 0, each fold once, such as {list(range(len(folds)))}")
    return folds


def _auto_or_rate(value: object) -> object:
    if value != "auto" and (type(value) not in (int, float) or not 0 <= value <= 10):  # type: ignore[operator]
        raise ValueError("write auto or a number from 0 to 10")
    return value


Tau = Annotated[Literal["auto"] | float, BeforeValidator(_auto_or_rate)]
AgeEdges = Annotated[list[Annotated[int, Field(ge=1, le=120)]], AfterValidator(_ascend)]
FoldIndex = Annotated[list[int], Field(min_length=2), AfterValidator(_count_up)]


class Section(BaseModel):
    """A section of params.yaml: unknown keys and wrong types are errors, values cannot change."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class DataParams(Section):
    train: str
    eval: str
    answers: str
    corrections: str


class LabelParams(Section):
    age_edges: AgeEdges


class SampleParams(Section):
    people: Annotated[int, Field(ge=12, le=100_000)]
    evaluation_people: Annotated[int, Field(ge=0, le=100_000)]
    seed: Seed


class CleanParams(Section):
    max_rejected: Share
    max_pixels: Count


class CropParams(Section):
    detector: Detector
    yunet_model: str
    min_confidence: Share
    margin: Annotated[float, Field(gt=0, le=100)]
    side: Annotated[int, Field(ge=16, le=1024)]  # DVC's run cache ignores parameters named `size`


class DuplicateParams(Section):
    hash_distance: Annotated[int, Field(ge=0, le=32)]
    similarity: Annotated[float, Field(ge=0.5, le=1)]


class FoldParams(Section):
    index: FoldIndex
    group_by: Literal["person", "photo"]
    holdout: Annotated[float, Field(ge=0, le=0.5)]
    seed: Seed


class WeightParams(Section):
    model: Model
    source: Annotated[str, Field(min_length=1)]
    seed: Seed


class OptimizerParams(Section):
    name: Literal["adamw", "sgd"]
    head_epochs: Annotated[int, Field(ge=0, lt=2**31)]
    lr_decay: Annotated[float, Field(gt=0, le=1)]
    weight_decay: Rate
    warmup: Share
    ema: Annotated[float, Field(ge=0, lt=1)]


class TargetParams(Section):
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    old_from: Annotated[int, Field(ge=1, le=120)]
    age_softness: Rate


class ImbalanceParams(Section):
    sampler: Literal["as_is", "balanced", "undersampled"]
    sampler_strength: Share
    loss: Literal["cross_entropy", "class_weighted", "focal", "logit_adjusted"]
    focal_gamma: Rate
    logit_tau: Rate


class AugmentationParams(Section):
    shift: Share
    flip: Share
    brightness: Share
    rotation: Annotated[float, Field(ge=0, le=180)]
    zoom: Share
    camera: Share
    occlusion: Share
    mixup: Rate


class PredictionParams(Section):
    flip: bool
    zoom: Zoom


class TrainParams(Section):
    freeze: Annotated[str, Field(min_length=1)]
    epochs: Count
    patience: Count
    batch_size: Annotated[int, Field(ge=2, le=65_536)]  # BatchNorm needs two
    head_lr: Rate
    backbone_lr: Rate
    heads: Heads
    cached_views: Annotated[int, Field(ge=0, lt=2**31)]
    cache_gb: Rate
    device: Device
    precision: Precision
    seed: Seed
    optimizer: OptimizerParams
    targets: TargetParams
    imbalance: ImbalanceParams
    augmentation: AugmentationParams
    prediction: PredictionParams

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        """Refuse values that contradict each other."""
        loss, mixup = self.imbalance.loss, self.augmentation.mixup
        if self.heads == "ages" and loss != "cross_entropy":
            raise ValueError(
                f"imbalance.loss: {loss} weights classes, but heads: ages also learns the age in "
                "years, which has no class weights: set train.imbalance.loss to cross_entropy, or "
                "train.heads to split"
            )
        if self.cached_views and mixup:
            raise ValueError(
                f"augmentation.mixup: {mixup:g} mixes different photos in each epoch, which cannot "
                "be cached: set train.cached_views or train.augmentation.mixup to 0"
            )
        return self


class PredictParams(Section):
    tau: Tau
    batch_size: Count


class AggregateParams(Section):
    bootstrap: Annotated[int, Field(ge=100, le=100_000)]


class SuspectParams(Section):
    min_score: Share
    near_edge: Annotated[int, Field(ge=0, le=30)]


class ReviewParams(Section):
    thumbnail: Annotated[int, Field(ge=32, le=1024)]


class ReportParams(Section):
    examples: Count


class ModelCardParams(Section):
    min_people: Annotated[int, Field(ge=2)]


class Params(Section):
    """All of params.yaml."""

    data: DataParams
    labels: LabelParams
    sample: SampleParams
    clean: CleanParams
    crop: CropParams
    duplicates: DuplicateParams
    folds: FoldParams
    weights: WeightParams
    train: TrainParams
    predict: PredictParams
    aggregate: AggregateParams
    suspects: SuspectParams
    review: ReviewParams
    report: ReportParams
    model_card: ModelCardParams


def read_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check params.yaml as YAML 1.2, like DVC (`1e-3` is a number).

    Raises:
        UserError: a line for each unknown key, missing key and invalid value.
    """
    return check_params(read_yaml(path), path)


def read_yaml(path: Path) -> object:
    """Read a YAML file as plain values.

    Raises:
        UserError: if the file is missing, unreadable or not valid YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run in the folder that contains it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    try:
        return _yaml().load(text)
    except YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {_locate(error, text)}") from None
    except KeyError:  # ruamel.yaml's, of `%YAML 9.9`
        raise UserError(f"{path} is not valid YAML: %YAML names no version of it") from None
    except RecursionError:
        raise UserError(f"{path}: {_deep_line(text)} is nested too deeply") from None


def check_params(content: object, path: Path) -> Params:
    """Check the content of params.yaml; `path` is the file that errors name.

    Raises:
        UserError: a line for each unknown key, missing key and invalid value.
    """
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise UserError("\n".join(_explain(path, error))) from None


class _Constructor(SafeConstructor):
    """Python values of YAML, where an impossible one (`!!int x`, 2020-13-45) is a YAMLError."""

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (YAMLError, RecursionError):
            raise
        except Exception as error:  # ValueError, KeyError, IndexError, ... of int(), date(), ...
            problem = f"not a valid value ({error})"
            raise ConstructorError(problem=problem, problem_mark=node.start_mark) from None


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    return yaml


def _locate(error: YAMLError, text: str) -> str:
    """Say in one line what is wrong, in which line and, unless the structure is broken, key."""
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark = error.problem_mark
    place = f"line {mark.line + 1}"
    if isinstance(error, ConstructorError):
        keys, node = list[str](), _yaml().compose(text)
        while isinstance(node, MappingNode):
            inside = [
                (key, value)
                for key, value in node.value
                if key.start_mark.index <= mark.index < value.end_mark.index
            ]
            node = inside[0][1] if inside else None
            keys += [key.value for key, _ in inside if isinstance(key, ScalarNode)]
        place += f", {'.'.join(keys)}" if keys else ""
    reasons = [error.context, error.problem]
    return f"{place}: {', '.join(' '.join(reason.split()) for reason in reasons if reason)}"


def _deep_line(text: str) -> str:
    """The line where nesting is far deeper than any params.yaml; the parser does not recurse."""
    depth = 0
    for event in _yaml().parse(text):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > 50:
            return f"line {event.start_mark.line + 1}"
    raise AssertionError("only deep nesting exceeds Python's recursion limit")


def _explain(path: Path, error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"]) or "the file"
        key = key if key.isprintable() else repr(key)
        match problem["type"]:
            case "extra_forbidden":
                known = ", ".join(_section(problem["loc"]).model_fields)
                lines.append(f"{path}: {key} is unknown; the keys there are {known}")
            case "missing":
                lines.append(f"{path}: {key} is missing: add it; {_expected(problem['loc'])}")
            case "value_error" if len(problem["loc"]) == 1:  # parameters of a section contradict
                lines.append(f"{path}: {key}.{_message(problem)}")
            case _:
                lines.append(f"{path}: {key}: {_message(problem)} (is {_shown(problem['input'])})")
    return lines


def _message(problem: ErrorDetails) -> str:
    """Reword pydantic's message about an invalid value."""
    if problem["type"] == "model_type":
        return "its keys belong below it, one per line"
    message = problem["msg"].removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def _expected(location: tuple[int | str, ...]) -> str:
    """Describe the value that a missing key should have: the complaint about None in its place."""
    name = str(location[-1])
    try:
        _section(location).model_validate({name: None})
    except ValidationError as error:
        return next(_message(each) for each in error.errors() if each["loc"] == (name,))
    raise AssertionError(f"{name} is optional")


def _section(location: tuple[int | str, ...]) -> type[BaseModel]:
    """Return the section that holds the key at `location`."""
    section: type[BaseModel] = Params
    for part in location[:-1]:
        kind = section.model_fields[str(part)].annotation
        assert isinstance(kind, type) and issubclass(kind, BaseModel)
        section = kind
    return section


def _shown(value: object) -> str:
    try:
        text = reprlib.repr(value)  # of aliases within aliases, repr would never end
    except ValueError:  # an integer with more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."
