"""The forms of an export: where each has its file, by the names under which other programs look for it.

transformers.js reads onnx/model.onnx and onnx/model_quantized.onnx, Text Embeddings Inference and Optimum
onnx/model.onnx, sentence-transformers and Optimum Intel openvino/openvino_model.xml.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

from kdbench.errors import Code, UserError


class Form(NamedTuple):
    file: str  # below the folder of the export
    shown: str  # in the model card
    option: str  # of kdbench-export, that writes it


FORMS = {
    "onnx": Form("onnx/model.onnx", "ONNX, fp32", "--onnx"),
    "int8": Form("onnx/model_quantized.onnx", "ONNX, int8", "--int8"),
    "fp16": Form("onnx/model_fp16.onnx", "ONNX, fp16 (for a GPU)", "--fp16"),
    "openvino": Form("openvino/openvino_model.xml", "OpenVINO, fp32", "--openvino"),
}
FIRST = {"onnx": "onnx", "openvino": "openvino"}  # folder -> the form that is meant where only the folder is named


def graph_file(path: Path) -> Path | None:
    """Return the graph that `path` names: a file, or the first graph of a folder such as export/onnx.

    None if `path` is another folder. Raises UserError if a graph should be there, but is not.
    """
    path = Path(os.path.expanduser(path))
    named = {Path(form.file).name: form for form in FORMS.values()}
    if path.name in FIRST and not (path / "config.json").is_file() and is_export(path.parent):
        path = path.parent / FORMS[FIRST[path.name]].file
    elif path.is_dir() or (path.name not in named and not path.exists()):
        return None
    if path.name not in named or not is_export(path.parents[1]):
        known = ", ".join(form.file for form in FORMS.values())
        raise UserError(
            Code.NOT_A_RUN, f"{path} is no graph of an export: name RUN/export, or one of its files {known}"
        )
    if not path.is_file():
        option = named[path.name].option
        raise UserError(
            Code.NOT_A_RUN,
            f"{path} is missing: kdbench-export RUN {option} writes it, where RUN is the folder of the run",
        )
    return path


def is_export(folder: Path) -> bool:
    """Return whether `folder` has the settings and the labels of an exported model."""
    return (folder / "config.json").is_file() and (folder / "config.yaml").is_file()


def session(graph: Path | bytes, threads: int) -> Any:
    """Return a session of onnxruntime that runs an ONNX graph on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def weights_file(graph: Path) -> Path:
    """Return the file with the weights of a graph: OpenVINO has them beside it."""
    return graph.with_suffix(".bin") if graph.suffix == ".xml" else graph


def graph_bytes(graph: Path) -> int:
    """Return the size of a graph with its weights."""
    return sum(path.stat().st_size for path in {graph, weights_file(graph)})
