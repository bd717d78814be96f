"""Upload the folder of an export to the model hub, with the token that the hub's own client has."""

import os
from pathlib import Path

from kdbench.errors import Code, UserError
from kdbench.storage import files as store

LOG_IN = "log in once (hf auth login), or set HF_TOKEN"


def require_name(name: str) -> None:
    """Raise UserError if the hub cannot have a model of this name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        fits = name.count("/") == 1
    except HFValidationError:
        fits = False
    if not fits:
        problem = f"--push {name}: must be org/name or user/name, of letters, digits, -, _ and ."
        raise UserError(Code.OUT_OF_RANGE, problem)


def require_token() -> None:
    """Raise UserError if the hub's client has no token. A command line is no place for one: other users can see it."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise UserError(Code.REFUSED_UPLOAD, f"there is no token for the model hub: {LOG_IN}")


def push(export: Path, name: str, public: bool) -> str:
    """Upload an export as the model `name` and return its address; a new model is private unless `public`.

    The commit has all files or none. Files of an earlier upload that this export does not have are deleted. Raises
    Damaged if a file of the export has changed, UserError if the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    store.verify(export / store.MANIFEST)
    hub = HfApi()
    try:
        repository = hub.create_repo(name, private=not public, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=export, commit_message="Exported by kdbench", delete_patterns=["*"])
    except HfHubHTTPError as error:
        status = error.response.status_code
        told = error.server_message or " ".join(str(error).split())
        remedy = f". To write there, {LOG_IN} of an account that may" if status in (401, 403, 404) else ""
        raise UserError(
            Code.REFUSED_UPLOAD, f"the model hub refused {name} (HTTP {status}: {told[:200]}){remedy}. {_kept(export)}"
        ) from error
    except (OSError, HTTPError, ValueError, RuntimeError) as error:  # no network, or an answer that is none of a hub
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            Code.REFUSED_UPLOAD, f"the model hub cannot be reached at {_endpoint()} ({reason}). {_kept(export)}"
        ) from error
    return str(repository)


def _kept(export: Path) -> str:
    return f"{export} is complete: repeat the command to try again"


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
