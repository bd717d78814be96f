"""The settings that tell the rows of a table apart, and no others."""

from kdbench.compare.collect import NULL, Run


def telling(groups: list[list[Run]]) -> dict[str, str]:
    """By id, the settings in which these configurations of one method differ; what is null is left out.

    A key that a run does not have was added to kdbench later: that it is missing is no difference.
    """
    firsts = [group[0] for group in groups]
    keys = list(dict.fromkeys(key for run in firsts for key in run.settings))
    keys = [key for key in keys if len({run.settings[key] for run in firsts if key in run.settings}) > 1]
    hand_set = _hand_set(firsts)
    texts = {}
    for run in firsts:
        values = [(key, run.settings.get(key, NULL)) for key in keys]
        values += [(key, run.training.get(key, NULL)) for key in hand_set]
        texts[run.id] = " ".join(f"{key}={value}" for key, value in values if value != NULL)
    return texts


def _hand_set(runs: list[Run]) -> list[str]:
    """The keys of the training whose values differ where the schedule's name does not tell it."""
    known: dict[str, list[Run]] = {}  # by name: lr of successor.lr, which is lr where stages are alike
    for run in runs:
        for name in {key.rpartition(".")[2] for key in run.training}:
            known.setdefault(name, []).append(run)
    found = []
    for key in dict.fromkeys(key for run in runs for key in run.training):
        values = {(run.settings["schedule"], run.training.get(key)) for run in known[key.rpartition(".")[2]]}
        if len(values) > len({schedule for schedule, _ in values}):
            found.append(key)
    return found
