"""The kinds of task: what a label is, what a model answers from its logits, and what that is judged by.

task                  label of an example           logits of it             answer
classification        a class, int                  (C,)                     the likeliest class
multi_label           0 or 1 for each label, (C,)   (C,)                     1 where the logit is above 0
regression            a number                      (1,)                     the number
token_classification  a class a word, (words,)      (words, C), NaN: unread  the likeliest class of each word

A word that the model does not read, because its text was cut before it, is answered with UNREAD, which is told as O.
Nothing heavy is imported here; what computes is in `metrics.py`.
"""

from collections.abc import Iterable, Sequence

TASKS = ("classification", "multi_label", "regression", "token_classification")
METRICS = {  # those that may choose on dev, at most 1, more is better; the first does where none is named
    "classification": ("accuracy", "macro_f1", "f1", "matthews"),
    "multi_label": ("micro_f1", "macro_f1", "subset_accuracy"),
    "regression": ("pearson", "spearman"),
    "token_classification": ("entity_f1", "word_accuracy"),
}
UNREAD = -1
OUTSIDE = "O"  # the tag of a word that belongs to no entity


def chosen_metric(task: str, metric: str | None) -> str:
    """The metric that chooses: `dataset.metric`, or the task's first."""
    return metric or METRICS[task][0]


def tags(numbers: Iterable[Iterable[int]], names: Sequence[str]) -> list[list[str]]:
    """The words' tags by name, sentence by sentence."""
    return [[OUTSIDE if number == UNREAD else names[number] for number in row] for row in numbers]


def is_bio(names: Iterable[str]) -> bool:
    """Whether the tags mark entities, so that these can be counted; E- and S- (ends, single words) are known too."""
    return all(name == OUTSIDE or name[:2] in ("B-", "I-", "E-", "S-") for name in names)
