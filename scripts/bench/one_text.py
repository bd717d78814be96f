"""One text through `classify` beside its model alone: int8, 3 layers, batch 1, texts of reuters_r52 cut to 64 tokens.

The weights are not trained, which costs no time. `tokenizer read anew`: what every call did before the classifier kept
its tokenizer. The target: `classify` takes at most 1.2 times the model's own time.
"""

from dataclasses import asdict, replace
from itertools import cycle

import harness
import numpy as np
import torch
from omegaconf import OmegaConf

from kdbench.data.batches import Examples
from kdbench.data.tokenize import load_tokenizer, tokenize_here
from kdbench.inference.classifier import classifier_of, graph_predict
from kdbench.inference.int8 import to_int8
from kdbench.inference.onnx import to_onnx
from kdbench.models import students

TEXTS = 50


def main() -> None:
    given = harness.options(__doc__)
    threads = [f"hardware.threads={given.threads}"] if given.threads else []
    with harness.scratch() as outputs:
        config = harness.configure(outputs, "dataset=reuters_r52", "method=finetune", "student=bert_3l", *threads)
        run, hardware = harness.make_run(config)
        folder = outputs / "model"
        folder.mkdir(parents=True)
        students.save(run.student, folder, run.tokenizer_folder, pairs=False)
        OmegaConf.save(OmegaConf.create(asdict(config)), folder / "config.yaml")
        to_onnx(run.student.eval(), folder / "whole.onnx", False)
        to_int8(folder / "whole.onnx", folder / "int8.onnx")
        classify = classifier_of(folder, folder, graph_predict(folder / "int8.onnx", 0.0))
        split = run.data.test.take(np.arange(TEXTS))
        tokens = tokenize_here(split, classify.tokenizer, classify.max_length)
        examples = Examples(tokens, split.ids, split.labels, classify.pad_id)
        batches = cycle([examples.batch(np.array([row])) for row in range(TEXTS)])
        texts, again = cycle(split.texts), cycle(split.texts)

        def model() -> object:
            with torch.inference_mode():
                return classify.predict(next(batches), 0)

        cases = {
            "the model alone": model,
            "classify": lambda: classify([next(texts)]),
            "classify, tokenizer read anew": lambda: replace(classify, tokenizer=load_tokenizer(folder))([next(again)]),
        }
        seconds = harness.interleave(cases, 5 * given.rounds)
        rows = [
            {"what": name, "ms": 1000 * value, "times the model's": value / seconds["the model alone"]}
            for name, value in seconds.items()
        ]
    harness.report("one text, int8", harness.machine(hardware), rows, given.json)


if __name__ == "__main__":
    main()
