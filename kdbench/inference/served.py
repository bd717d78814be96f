"""The model of kdbench-serve: the ONNX graph of an export, run by onnxruntime and tokenizers alone, without torch.

Its files are read once, each into memory, and checked against the manifest of the export. So an export that is
replaced while it is opened is read as the old one or as the new one, and never as half of each. No file is a pickle.
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from kdbench.declared import architecture_traits
from kdbench.errors import Code, UserError
from kdbench.inference.calibration import CALIBRATION, Calibration
from kdbench.inference.forms import graph_file, is_export, session
from kdbench.storage.files import MANIFEST, Damaged, contents, fitting
from kdbench.storage.results import EXPORT
from kdbench.tasks import kind, traits
from kdbench.validation.load import recorded_dataset

TRIES, PAUSE = 5, 0.2  # seconds: an export is replaced by two renames, between which it is not there


@dataclass(frozen=True)
class ServedModel:
    """A graph with its tokenizer and labels. One thread at a time may call it."""

    path: Path
    digest: str  # 12 hex digits of all that it was read from
    task: str
    labels: list[str]
    pairs: bool  # reads two texts
    probable: bool  # its logits give probabilities
    speed: float  # of a FastBERT
    pad_id: int
    calibration: Calibration
    tokenizer: Any
    session: Any

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Return the answer to each of n >= 1 texts, as kdbench-predict --json has it."""
        (logits,) = self.session.run(["logits"], self._inputs(texts, pairs))
        calibrated = logits / np.float32(self.calibration.temperature)
        told = kind(self.task).tell(calibrated, texts, self.labels, self.probable)
        return [self.calibration.judged(one)._asdict() for one in told]

    def _inputs(self, texts: Sequence[str], pairs: Sequence[str] | None) -> dict[str, NDArray[Any]]:
        """Return what the graph takes: (n, T) each."""
        given = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        encoded = self.tokenizer.encode_batch(given)
        length = max(1, *(len(one.ids) for one in encoded))
        ids = np.full((len(encoded), length), self.pad_id, np.int64)
        mask, types = (np.zeros_like(ids) for _ in range(2))
        for row, one in enumerate(encoded):
            used = slice(len(one.ids))
            ids[row, used], mask[row, used], types[row, used] = one.ids, 1, one.type_ids
        known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        known["speed"] = np.array(self.speed, np.float32)
        return {one.name: known[one.name] for one in self.session.get_inputs()}


def find_graph(path: Path) -> Path:
    """Return the graph of a run, of an export or of a file. Raises UserError if there is none."""
    path = Path(os.path.expanduser(path))
    graph = graph_file(path)
    if graph is None:
        export = path / EXPORT if is_export(path / EXPORT) else path
        if not is_export(export):
            raise UserError(
                Code.NOT_A_RUN,
                f"{path} has no export: kdbench-export RUN --onnx writes one, where RUN is a finished run",
            )
        graph = graph_file(export / "onnx")
        assert graph is not None  # the folder of a graph, or refused
    if graph.suffix != ".onnx":
        raise UserError(
            Code.UNSUPPORTED_EXPORT, f"{graph}: kdbench-serve runs ONNX graphs: name one that ends in .onnx"
        )
    return graph


def open_model(path: Path, threads: int) -> ServedModel:
    """Return the model of a run, of an export or of a graph's file.

    Raises UserError if there is none or its task is not served, Damaged if a file is not what was exported.
    """
    for last in (*[False] * (TRIES - 1), True):
        try:
            return _open(find_graph(path), threads)
        except Damaged:
            if last:
                raise
            time.sleep(PAUSE)  # it may be replaced at this moment
    raise AssertionError


def _open(graph: Path, threads: int) -> ServedModel:
    export = graph.parents[1]
    own = graph.relative_to(export).as_posix()
    needed = ["config.json", "config.yaml", "tokenizer.json", own]
    read = contents(export / MANIFEST, needed, optional=[CALIBRATION])
    with fitting(export):
        config = json.loads(read["config.json"])
        dataset = recorded_dataset(OmegaConf.create(read["config.yaml"].decode()))  # type: ignore[arg-type]
        architecture = architecture_traits(config["model_type"])
        labels = [config["id2label"][str(at)] for at in range(len(config["id2label"]))]
        if traits(dataset.task).words:
            raise UserError(
                Code.UNSUPPORTED_TASK,
                f"{export}: kdbench-serve answers texts, and this model labels words (task={dataset.task}):"
                " use kdbench-predict",
            )
        return ServedModel(
            path=graph,
            digest=hashlib.sha256(b"".join(hashlib.sha256(read[name]).digest() for name in sorted(read))).hexdigest()[
                :12
            ],
            task=dataset.task,
            labels=labels,
            pairs=dataset.text_pair is not None,
            probable=architecture.probabilities,
            speed=float(config.get("speed", 0.0)),
            pad_id=config.get("pad_token_id") or 0,
            calibration=Calibration(**json.loads(read.get(CALIBRATION, b"{}"))),
            tokenizer=_tokenizer(read["tokenizer.json"], None if architecture.whole_texts else dataset.max_length),
            session=session(read[own], threads),
        )


def _tokenizer(content: bytes, length: int | None) -> Any:
    """Return the tokenizer, which cuts texts to `length` tokens as in training; None: it does not cut."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_buffer(content)
    tokenizer.no_padding()
    if length is None:
        tokenizer.no_truncation()
    else:
        tokenizer.enable_truncation(length, strategy="longest_first")
    return tokenizer
