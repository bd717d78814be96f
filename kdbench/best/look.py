"""Look at the file before anything is trained: rows, classes, lengths, and whether an English encoder can read it."""

from dataclasses import dataclass

import numpy as np

from kdbench.data.report import data_lines, warnings
from kdbench.data.tokenize import tokenize
from kdbench.errors import Code, UserError

_PROBE = 256  # tokens: longer texts are cut, because a longer pass costs more than it brings (not measured here)
_COVERED = 0.95  # share of the train texts that are not cut
_STEP = 16  # tokens: max_length is a multiple of it
_LETTERS = 0.5  # share of texts that must have a letter, else the column is no text
_LEAST, _MOST = 300, 2000  # rows of dev and of test: a tenth of the file, within these limits [ours]
_SMALLEST, _LARGEST = 0.01, 0.2  # share of the file that each may be [the former is kdbench's limit, the latter ours]
_FERTILE = 3.0  # pieces a word; above it the tokenizer spells the words out, as it does with a foreign language


@dataclass(frozen=True)
class Look:
    rows: dict[str, int]  # of train, dev and test, and without labels
    words: tuple[str, ...]  # of kdbench, that all runs share beside those of the wish: length and cuts
    tokens: float  # mean length of a train text, with special tokens, cut at max_length
    foreign: bool  # the encoder cannot read the texts
    lines: tuple[str, ...]  # for the user


def share_of(rows: int) -> float:
    """Return the share of a file's rows that dev, and test, is cut from it."""
    wanted = min(max(rows // 10, _LEAST), _MOST)
    return min(max(round(wanted / rows, 3), _SMALLEST), _LARGEST)


def look(words: tuple[str, ...]) -> Look:
    """Return what the data set of the words is. Raises UserError if it cannot be used."""
    from kdbench.best.work import configured
    from kdbench.data.stored import stored_dataset
    from kdbench.runs.texts import RunData
    from kdbench.training.hardware import accelerator, settle
    from kdbench.validation.load import cache_folder

    method = "method=logit_kd" if any(word.startswith("dataset.unlabelled=") for word in words) else "method=finetune"
    config, _ = configured((method, *words, f"dataset.max_length={_PROBE}"))
    hardware = settle(config.hardware)
    processes = accelerator(hardware)
    whole = stored_dataset(config.dataset, cache_folder(config))
    every = sum(split["rows"] for split in whole.report["splits"].values())
    cuts = tuple(f"dataset.{name}_fraction={share_of(every):g}" for name in ("dev", "test"))
    config, _ = configured((method, *words, *cuts, f"dataset.max_length={_PROBE}"))
    data = RunData(config, hardware, processes)
    train = data.data.train
    letters = np.mean([any(map(str.isalpha, text)) for text in train.texts])
    if letters < _LETTERS:
        raise UserError(
            Code.MISMATCHED_INPUT,
            f"dataset.text={config.dataset.text}: {100 * (1 - letters):.0f} % of its texts have no letter, such as"
            f" {train.texts[0]!r}. It looks like a column of numbers: name the column with the texts",
        )
    lengths = tokenize(train, data.tokenizer_folder, _PROBE, data.cache).lengths
    longest = int(-(-np.quantile(lengths, _COVERED) // _STEP) * _STEP)
    found = data.read
    said = warnings(found["pieces"])
    spaced = sum(len(text.split()) for text in train.texts)
    fertility = float(lengths.sum() - 2 * len(lengths)) / max(spaced, 1)
    if not said and fertility > _FERTILE:
        said = [
            f"{config.origin.name} needs {fertility:.1f} pieces for a word: the texts are probably not English, and it"
            " reads them badly"
        ]
    cut = np.minimum(lengths, longest)
    lines = [
        *data_lines(found),
        f"texts have {cut.mean():.0f} pieces on average; {np.mean(lengths > longest):.1%} are cut to {longest}",
        *(f"WARNING: {one}" for one in said),
    ]
    rows = {name: split["rows"] for name, split in found["splits"].items()}
    shared = (*cuts, f"dataset.max_length={longest}")
    return Look(rows, shared, float(cut.mean()), bool(said), tuple(lines))
