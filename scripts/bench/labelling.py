"""A teacher answers many raw texts: as in a run of kdbench, and by what others have for the same weights.

    kdbench-export RUN --onnx --int8
    python scripts/bench/labelling.py RUN FILE --threads 1      # FILE: a CSV with a column `text`

Each case reads the same texts, tokenising included, and takes turns with the others. kdbench sorts by length. The
peers get batches of 32, as their documents have it; a pipeline without `batch_size` takes single texts.
sentence-transformers is left out where it is not installed; it gives vectors, not classes.
Time is that of the process over all its threads, so other programs disturb little; with one thread it is the time a
user waits on a quiet machine.
"""

import argparse
import csv
import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch

from kdbench.data.batches import Examples
from kdbench.data.datasets import Split
from kdbench.data.teacher_cache import compute_outputs
from kdbench.data.tokenize import load_tokenizer, pad_id, tokenize_here
from kdbench.inference.classifier import graph_predict
from kdbench.inference.finished_run import open_run
from kdbench.models import students
from kdbench.stage import Predict
from kdbench.storage.results import EXPORT
from kdbench.training.hardware import Hardware, settle

Case = Callable[[list[str]], Any]
PEERS = 32  # texts of a batch
ENCODE = "sentence-transformers' encode"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--texts", type=int, default=1024, help="of a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    harness.hush()
    torch.set_num_threads(given.threads)
    with given.file.open(encoding="utf8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    with harness.scratch() as outputs:
        hardware = settle(harness.configure(outputs, "method=finetune", f"hardware.threads={given.threads}").hardware)
    cases = cases_of(given.run, hardware, given.threads)
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    answers: dict[str, list[Any]] = {name: [] for name in cases}
    for turn in range(given.rounds + 1):
        part = texts[turn * given.texts : (turn + 1) * given.texts]
        for name, case in cases.items():
            began = time.process_time()
            found = case(part)
            if turn:  # the first warms up
                seconds[name].append(time.process_time() - began)
                answers[name].append(np.asarray(found))
    speed = {name: given.texts / float(np.median(of)) for name, of in seconds.items()}
    exact = np.concatenate(answers["kdbench, fp32"]).argmax(1)
    rows = []
    for name in cases:
        alike = 100 * np.mean(np.concatenate(answers[name]).argmax(1) == exact)
        rows.append(
            {
                "what": name,
                "texts/s": speed[name],
                "/ pipeline": speed[name] / speed["transformers.pipeline"],
                "labels as fp32, %": "" if name == ENCODE else f"{alike:.2f}",
            }
        )
    harness.report(f"labelling, {given.texts} texts a round", harness.machine(hardware), rows, given.json)


def cases_of(run: Path, hardware: Hardware, threads: int) -> dict[str, Case]:
    """Return the ways to answer n texts: each gives logits or probabilities (n, C), or vectors (n, H)."""
    finished = open_run(run)
    folder, length = finished.model, finished.dataset.max_length
    model = students.load(folder)
    graph, small = (run / EXPORT / "onnx" / name for name in ("model.onnx", "model_quantized.onnx"))

    def ours(predict: Predict, precision: str = "fp32") -> Case:
        def case(texts: list[str]) -> Any:
            split = Split(np.arange(len(texts)), texts, np.zeros(len(texts), np.int64))
            examples = Examples(tokenize_here(split, tokenizer, length), split.ids, split.labels, padding)
            with harness.within(precision):
                return compute_outputs(examples, predict).numpy()

        return case

    tokenizer, padding = load_tokenizer(folder), pad_id(folder)
    found: dict[str, Case] = {}
    for precision in dict.fromkeys([hardware.precision, "fp32"]):
        found[f"kdbench, {precision}"] = ours(lambda batch, step: students.logits(model, batch), precision)
    found["kdbench, int8 graph"] = ours(graph_predict(small, 0.0))
    found["ONNX Runtime, in the file's order"] = plain_onnx(graph, folder, length, threads)
    found |= pipelines(folder, length)
    if importlib.util.find_spec("sentence_transformers"):
        found[ENCODE] = encoder(folder, length)
    return found


def plain_onnx(graph: Path, folder: Path, length: int, threads: int) -> Case:
    """Batches in the order of the file, padded to their longest text."""
    import onnxruntime
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    names = {one.name for one in session.get_inputs()}

    def case(texts: list[str]) -> Any:
        parts = []
        for first in range(0, len(texts), PEERS):
            batch = tokenizer(
                texts[first : first + PEERS], truncation=True, max_length=length, padding=True, return_tensors="np"
            )
            parts.append(session.run(["logits"], {name: batch[name] for name in names})[0])
        return np.concatenate(parts)

    return case


def pipelines(folder: Path, length: int) -> dict[str, Case]:
    from transformers import pipeline

    classify: Any = pipeline("text-classification", model=str(folder), device="cpu", top_k=None)
    names = [classify.model.config.id2label[at] for at in range(classify.model.config.num_labels)]

    def case(texts: list[str], **options: int) -> Any:
        told = classify(texts, truncation=True, max_length=length, **options)
        by_name = [{one["label"]: one["score"] for one in answer} for answer in told]
        return [[answer[name] for name in names] for answer in by_name]

    return {
        "transformers.pipeline": case,
        f"transformers.pipeline, batch_size={PEERS}": lambda texts: case(texts, batch_size=PEERS),
    }


def encoder(folder: Path, length: int) -> Case:
    from sentence_transformers import SentenceTransformer, models

    word = models.Transformer(str(folder), max_seq_length=length)
    pooling = models.Pooling(word.get_word_embedding_dimension())
    model: Any = SentenceTransformer(modules=[word, pooling], device="cpu")
    return lambda texts: model.encode(texts, batch_size=PEERS, show_progress_bar=False)


if __name__ == "__main__":
    main()
