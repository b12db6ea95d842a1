"""Networks as files that run without this project: torch.export programs and ONNX, fp32 and int8.

ONNX needs the packages of requirements-export.txt, which are imported only where they are used.
"""

import importlib.util
import io
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import Dim, ExportedProgram

from face_attributes.errors import UserError
from face_attributes.inference.ensemble import Ensemble, Probabilities
from face_attributes.photos.packed import Pixels

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
MAX_ONNX_WEIGHTS = 2**31 - 2**24
"""Bytes: protobuf is limited to 2 GiB, and the graph needs some of them."""

INPUT, OUTPUT = "crops", "probabilities"
METADATA = "metadata.json"

QUANTISED_OPERATORS = ["Conv", "MatMul"]
"""Nearly all of the work. The last layer (a Gemm) and what follows stay in float32, and so do sums
and pooling, which int8 makes less exact and no faster."""
CALIBRATION_BATCH = 16

Predictor = Callable[[Pixels], Probabilities]
"""Maps crops (B x side x side x 3, RGB, uint8) to probabilities (B x 18, float32)."""


def check_onnx_packages() -> None:
    """Check that ONNX files can be written here.

    Raises:
        UserError: if a package is missing; with the command that installs it.
    """
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"ONNX needs {', '.join(missing)}: run `pip install -r requirements-export.txt`, or "
            "set --format torch, which needs no more packages"
        )


def trace(ensemble: Ensemble, side: int) -> ExportedProgram:
    """Trace the ensemble into a program that takes any number of crops of this side."""
    ensemble.eval().requires_grad_(False)
    ensemble.to(memory_format=torch.contiguous_format)  # saving channels_last weights warns
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)  # a batch of 1 would become fixed
    program = torch.export.export(ensemble, (example,), dynamic_shapes=({0: Dim("batch")},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # contains paths of this machine
    return program


def to_torch(program: ExportedProgram, metadata: Mapping[str, Any]) -> bytes:
    """Convert to a file for `torch.export.load`, with the metadata in its `METADATA`."""
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata, indent=2)})
    return file.getvalue()


def load_torch(content: bytes) -> Predictor:
    """Load a file that `to_torch` made, to run it."""
    module = torch.export.load(io.BytesIO(content)).module()

    def predict(crops: Pixels) -> Probabilities:
        with torch.inference_mode():
            probabilities: Probabilities = module(torch.from_numpy(crops)).numpy()
        return probabilities

    return predict


def to_onnx(program: ExportedProgram) -> bytes:
    """Convert to an ONNX file with an input `INPUT` and an output `OUTPUT`.

    Raises:
        UserError: if it would be larger than an ONNX file can be.
    """
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    if size > MAX_ONNX_WEIGHTS:
        raise UserError(
            f"the networks have {size / 1e9:.1f} GB together, and an ONNX file at most 2 GB: "
            "export one network with --fold, or set --format torch"
        )
    exported = torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT]
    )
    assert exported is not None
    content: bytes = exported.model_proto.SerializeToString()
    return content


def add_onnx_metadata(content: bytes, metadata: Mapping[str, Any]) -> bytes:
    """Add metadata to an ONNX file as `metadata_props`: strings as they are, the rest as JSON."""
    import onnx

    model = onnx.load_from_string(content)
    texts = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in metadata.items()
    }
    onnx.helper.set_model_props(model, texts)
    with_metadata: bytes = model.SerializeToString()
    return with_metadata


def load_onnx(content: bytes) -> Predictor:
    """Load an ONNX file, to run it on the CPU with as many threads as torch uses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only: its optimiser's warnings ask for no action
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def predict(crops: Pixels) -> Probabilities:
        probabilities: Probabilities = session.run([OUTPUT], {INPUT: crops})[0]
        return probabilities

    return predict


class CalibrationReader:
    """Crops as onnxruntime's calibration reads them: batch by batch, then None."""

    def __init__(self, crops: Pixels) -> None:
        self.batches = iter(np.array_split(crops, -(-len(crops) // CALIBRATION_BATCH)))

    def get_next(self) -> dict[str, Pixels] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch}


def quantise(content: bytes, crops: Pixels) -> bytes:
    """Convert an ONNX file to int8 (static, QDQ, per channel), with value ranges from `crops`."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        fp32, prepared, int8 = (
            Path(folder) / f"{name}.onnx" for name in ("fp32", "prepared", "int8")
        )
        fp32.write_bytes(content)
        # onnxruntime's symbolic shape inference lacks ReduceLogSumExp; ONNX's own runs anyway.
        quant_pre_process(fp32, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            int8,
            CalibrationReader(crops),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTISED_OPERATORS,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return int8.read_bytes()
