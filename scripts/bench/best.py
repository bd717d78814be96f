"""What other tools make of the same file in the same time, beside kdbench-best.

    python scripts/bench/best.py data tweet_sentiment DIR --rows 1000     # kdbench's Python: train, raw, held-out CSVs
    python scripts/bench/best.py TOOL DIR --seconds 300 --encoder FOLDER  # the tool's own Python: one JSON line
    python scripts/bench/best.py judge DIR --model best/train/model       # kdbench's: the same line for its answer

A tool gets DIR/train.csv and the seconds, in its documented quick form, and nothing of the held-out texts. Its time
includes its imports. The encoder is a folder that transformers loads. Latency is the median of single texts,
through the tool's own call.
"""

import argparse
import csv
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

BEGAN = time.monotonic()
TIMED = 200  # texts
DEV = 0.15  # share of the rows for tools that need a validation set

Answer = Callable[[Sequence[str]], Sequence[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["data", "judge", *TOOLS])
    parser.add_argument("words", nargs="+", help="[DATASET] DIR")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--encoder")
    parser.add_argument("--model")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(options.words[-1])
    if options.what == "data":
        make_data(options.words[0], folder, options.rows)
        return
    texts, labels = columns(folder / "train.csv")
    judged = options.what == "judge"
    answer = kdbench_model(options.model) if judged else TOOLS[options.what](texts, labels, options)
    seconds = time.monotonic() - BEGAN
    held_out, truth = columns(folder / "held_out.csv")
    given = list(answer(held_out))
    right = sum(a == b for a, b in zip(given, truth, strict=True))
    times = []
    for text in held_out[: TIMED + 20]:
        began = time.perf_counter()
        answer([text])
        times.append(time.perf_counter() - began)
    told = {"tool": options.what, "data": folder.name, "rows": len(texts), "given_s": options.seconds}
    told |= {"took_s": round(seconds, 1), "n": len(truth), "accuracy": round(100 * right / len(truth), 2)}
    told |= {"macro_f1": round(100 * macro_f1(truth, given), 2), "ms": round(1000 * statistics.median(times[20:]), 3)}
    print(json.dumps(told), flush=True)


def columns(path: Path) -> tuple[list[str], list[str]]:
    with path.open(encoding="utf8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["label"] for row in rows]


def macro_f1(truth: Sequence[str], given: Sequence[str]) -> float:
    scores = []
    for name in sorted(set(truth)):
        hit = sum(a == b == name for a, b in zip(truth, given, strict=True))
        scores.append(2 * hit / (truth.count(name) + list(given).count(name)))
    return statistics.mean(scores)


def make_data(name: str, folder: Path, rows: int | None) -> None:
    """Write a data set of kdbench as a user has it: labelled rows (train and dev), raw texts, and held-out rows."""
    from kdbench.best.work import configured
    from kdbench.data.datasets import Split, load_dataset
    from kdbench.validation.load import cache_folder

    limit = [] if rows is None else [f"dataset.max_train_samples={rows}", "dataset.unlabelled=rest"]
    config, _ = configured(("method=tfidf", f"dataset={name}", *limit))
    data = load_dataset(config.dataset, cache_folder(config))
    every = load_dataset(replace(config.dataset, max_train_samples=None), cache_folder(config)).train
    chosen = {*data.train.ids.tolist()}
    raw = [at for at, number in enumerate(every.ids.tolist()) if number not in chosen]
    folder.mkdir(parents=True)

    def write(part: str, *splits: Split, with_label: bool = True) -> None:
        with (folder / f"{part}.csv").open("w", encoding="utf8", newline="") as file:
            out = csv.writer(file)
            out.writerow(["text", "label"] if with_label else ["text"])
            for split in splits:
                for text, label in zip(split.texts, split.labels, strict=True):
                    out.writerow([" ".join(text.split()), *([data.label_names[label]] if with_label else [])])

    write("train", data.train, data.dev)
    write("raw", every.take(np.array(raw, dtype=np.int64)), with_label=False)
    write("held_out", data.test)


def kdbench_model(model: str) -> Answer:
    import kdbench

    classify = kdbench.load_classifier(model)
    return lambda texts: [one.label for one in classify(list(texts))]


def validation(texts: list[str], labels: list[str], seed: int) -> tuple[list[int], list[int]]:
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)
    cut = int(DEV * len(order))
    return order[cut:], order[:cut]


def fasttext(texts: list[str], labels: list[str], options: Any) -> Answer:
    """Search hyperparameters on a validation set for all of the time (autotune)."""
    import fasttext as library

    names = sorted(set(labels))
    folder = Path(tempfile.mkdtemp())
    for part, chosen in zip(("train", "dev"), validation(texts, labels, options.seed), strict=True):
        lines = (f"__label__{names.index(labels[at])} {texts[at].lower()}\n" for at in chosen)
        (folder / part).write_text("".join(lines), encoding="utf8")
    model = library.train_supervised(
        str(folder / "train"), autotuneValidationFile=str(folder / "dev"), autotuneDuration=int(options.seconds),
        thread=2, verbose=0,
    )  # fmt: skip

    def answer(given: Sequence[str]) -> list[str]:
        # The method of the library fails with numpy 2, so its C++ object is asked.
        found = (model.f.predict(text.lower() + "\n", 1, 0.0, "strict") for text in given)
        return [names[int(one[0][1].removeprefix("__label__"))] if one else names[0] for one in found]

    return answer


def model2vec(texts: list[str], labels: list[str], options: Any) -> Answer:
    """Distil static vectors from the encoder, then train vectors and head with early stopping."""
    from model2vec.distill import distill
    from model2vec.train import StaticModelForClassification

    static = distill(options.encoder, pca_dims=256)
    model = StaticModelForClassification.from_static_model(model=static)
    model.fit(texts, labels)
    pipeline = model.to_pipeline()
    return lambda given: list(pipeline.predict(list(given)))


def setfit(texts: list[str], labels: list[str], options: Any) -> Answer:
    """Tune the encoder on pairs, then fit a logistic regression. As many steps as the time allows, an epoch at most."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, models
    from setfit import SetFitModel, Trainer, TrainingArguments
    from sklearn.linear_model import LogisticRegression

    word = models.Transformer(options.encoder, max_seq_length=128)
    body = SentenceTransformer(modules=[word, models.Pooling(word.get_word_embedding_dimension())], device="cpu")
    model = SetFitModel(model_body=body, model_head=LogisticRegression(max_iter=1000), labels=sorted(set(labels)))
    data = Dataset.from_dict({"text": texts, "label": labels})

    def trained(steps: int) -> float:
        began = time.monotonic()
        arguments = TrainingArguments(
            batch_size=16, max_steps=steps, output_dir=tempfile.mkdtemp(), seed=options.seed, report_to="none"
        )
        Trainer(model=model, args=arguments, train_dataset=data).train()
        return time.monotonic() - began

    began = time.monotonic()
    body.encode(texts[:256])
    last = (time.monotonic() - began) / 256 * len(texts) + 20  # the regression's pass, and room
    few = trained(5)
    many = trained(15)
    step = (many - few) / 10
    left = options.seconds - (time.monotonic() - BEGAN) - last - (few - 5 * step)
    trained(max(1, int(left / step)))
    return lambda given: [str(one) for one in model.predict(list(given))]


def trainer(texts: list[str], labels: list[str], options: Any) -> Answer:
    """Fine-tune the encoder: 3 epochs by default, more if the time allows, up to 10; the best epoch on dev is kept."""
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    names = sorted(set(labels))
    tokenizer = AutoTokenizer.from_pretrained(options.encoder)
    model = AutoModelForSequenceClassification.from_pretrained(options.encoder, num_labels=len(names))

    class Rows(torch.utils.data.Dataset[dict[str, Any]]):
        def __init__(self, chosen: list[int]) -> None:
            self.rows = [
                dict(tokenizer(texts[at], truncation=True, max_length=128), labels=names.index(labels[at]))
                for at in chosen
            ]

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, at: int) -> dict[str, Any]:
            return self.rows[at]

    train, dev = (Rows(chosen) for chosen in validation(texts, labels, options.seed))

    def fit(epochs: float, steps: int = -1) -> float:
        began = time.monotonic()
        kept = "epoch" if steps < 0 else "no"
        arguments = TrainingArguments(
            output_dir=tempfile.mkdtemp(), num_train_epochs=epochs, max_steps=steps, learning_rate=5e-5,
            per_device_train_batch_size=16, per_device_eval_batch_size=64, eval_strategy=kept, save_strategy=kept,
            load_best_model_at_end=steps < 0, metric_for_best_model="accuracy", save_total_limit=1, use_cpu=True,
            seed=options.seed, report_to="none", disable_tqdm=True,
        )  # fmt: skip
        Trainer(
            model=model, args=arguments, train_dataset=train, eval_dataset=dev,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=lambda seen: {"accuracy": float((seen[0].argmax(-1) == seen[1]).mean())},
        ).train()  # fmt: skip
        return time.monotonic() - began

    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    few, many = fit(1, 5), fit(1, 15)
    model.load_state_dict(fresh)
    epoch = (many - few) / 10 * (len(train) / 16 + len(dev) / 16 / 3)
    left = options.seconds - (time.monotonic() - BEGAN) - 10
    fit(max(1, min(10, int(left / epoch))))
    model.eval()

    def answer(given: Sequence[str]) -> list[str]:
        found = []
        with torch.inference_mode():
            for first in range(0, len(given), 64):
                batch = tokenizer(
                    list(given[first : first + 64]), truncation=True, max_length=128, padding=True, return_tensors="pt"
                )
                found += [names[at] for at in model(**batch).logits.argmax(-1).tolist()]
        return found

    return answer


def autogluon(texts: list[str], labels: list[str], options: Any) -> Answer:
    """Stack and bag models of the table, n-grams of the text as columns: its preset for the best score."""
    from autogluon.tabular import TabularPredictor
    from pandas import DataFrame

    predictor = TabularPredictor(label="label", eval_metric="accuracy", path=tempfile.mkdtemp(), verbosity=0)
    left = options.seconds - (time.monotonic() - BEGAN)
    predictor.fit(DataFrame({"text": texts, "label": labels}), time_limit=left, presets="best_quality")
    return lambda given: list(predictor.predict(DataFrame({"text": list(given)})))


TOOLS: dict[str, Callable[[list[str], list[str], Any], Answer]] = {
    "autogluon": autogluon, "fasttext": fasttext, "model2vec": model2vec, "setfit": setfit, "trainer": trainer,
}  # fmt: skip

if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
