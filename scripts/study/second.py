"""Run the second study.

    python -m scripts.study.second run [--outputs outputs] [--cores 0,1] [--minutes 600]
"""

import re
import sys
from pathlib import Path
from typing import Any

import yaml

from scripts.study.plan import Step

HERE = Path(__file__).parent


def load() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((HERE / "second.yaml").read_text(encoding="utf8"))
    return found


def steps(study: dict[str, Any]) -> list[Step]:
    found = []
    for line in study["order"].splitlines():
        minutes, question, row, seeds = line.split()
        about = study["questions"][question]
        words = (*about["words"].split(), *about["rows"][row].split(), f"seed={seeds}")
        found.append(Step(question, "tweet_sentiment", words, 60 * float(minutes)))
    return found
