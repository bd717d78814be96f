"""Write and run graphs of OpenVINO. Its package is optional, and imported inside the functions."""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from kdbench.errors import Code, UserError
from kdbench.stage import Batch


def has_openvino() -> bool:
    """Return whether the package is installed."""
    return find_spec("openvino") is not None


def require_openvino() -> None:
    """Raise UserError if the package is not installed."""
    if not has_openvino():
        raise UserError(Code.NOT_INSTALLED, "OpenVINO is not installed: pip install 'kdbench[openvino]'")


def to_openvino(source: Path, target: Path) -> None:
    """Convert an ONNX graph: target.xml and target.bin, with all weights as they are in `source`.

    Raises UserError if the package is not installed.
    """
    require_openvino()
    import openvino

    # not convert_model, which sends usage statistics to Google Analytics without asking
    openvino.save_model(openvino.Core().read_model(source), target, compress_to_fp16=False)
    target.write_text(_without_origin(target.read_text(encoding="utf8")), encoding="utf8")


def _without_origin(xml: str) -> str:
    """Return the graph without the record of its conversion, which has the path of the source."""
    from xml.etree import ElementTree

    root = ElementTree.fromstring(xml)
    for record in root.findall("rt_info"):
        root.remove(record)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=False)


class OpenVinoGraph:
    """A graph that runs in OpenVINO on the CPU in fp32, with torch's number of threads."""

    def __init__(self, path: Path) -> None:
        require_openvino()
        import openvino

        options = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # else processors with bf16 round to it
        }
        self.model = openvino.Core().compile_model(path, "CPU", options)
        self.inputs = [one.any_name for one in self.model.inputs]

    def logits(self, batch: Batch) -> Tensor:
        """Return the logits (B, C)."""
        given = {name: value.numpy() for name, value in batch.items() if name in self.inputs}  # type: ignore[attr-defined]
        return torch.from_numpy(self.model(given)["logits"].copy())
