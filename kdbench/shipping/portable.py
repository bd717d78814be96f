"""Take out of settings, commands and sentences what belongs to one machine, before they are shipped.

Of a local file only its name is left. Sources in a package index or hub stay, because others can fetch them.
"""

import os
import re
import shlex
from pathlib import Path
from typing import Any

FETCHED = ("pypi:", "hub:", "joined:")
OF_THE_MACHINE = ("outputs", "cache_dir", "hardware", "track", "export", "tag")  # keys that do not make a model
_PATHS = ("source", "path", "unlabelled", "members", "outputs", "cache_dir")  # last parts of keys with local values
# An absolute path in a sentence, or one that begins with ~ or ..; not a URL or a share such as 1/2
_PATH = re.compile(r"(?<![\w:/.~\\])(?:~|\.\.|[A-Za-z]:)?(?:[/\\][^\s/\\'\"`,;:()\[\]{}|]+)+")


def portable_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return a run's settings without the keys and the folders of its machine."""
    return {key: _portable(value, key) for key, value in config.items() if key not in OF_THE_MACHINE}


def portable_source(source: str) -> str:
    """Return a source that others can fetch as it is, and of a local file or folder only the name."""
    return source if source.startswith(FETCHED) else Path(os.path.expanduser(source)).name


def portable_command(command: str) -> str:
    """Return a command without the places of its outputs and cache, and with the names of local files alone."""
    kept = []
    for word in shlex.split(command):
        key, equals, value = word.partition("=")
        if key in OF_THE_MACHINE:
            continue
        local = bool(equals) and key.rpartition(".")[2] in _PATHS
        kept.append(f"{key}={portable_source(value)}" if local else portable_text(word))
    return shlex.join(kept)


def portable_text(text: str) -> str:
    """Return a sentence with the names of files in the place of their paths."""
    return _PATH.sub(lambda found: re.split(r"[/\\]", found[0])[-1], text)


def _portable(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return {portable_text(str(name)): _portable(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [_portable(one, key) for one in value]
    if not isinstance(value, str):
        return value
    return portable_source(value) if key in _PATHS else portable_text(value)
