"""Models that transformers does not have: config.json holds a dataclass, and model.safetensors the weights."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdbench.errors import Code, UserError
from kdbench.models.network import Network, labels_of


class Output(NamedTuple):
    """What `forward` returns: the form of transformers' classifiers."""

    logits: Tensor  # (B, C)


class OwnModel(Network):
    """A classifier whose `config` is a dataclass, with transformers' names where it has them."""

    dropouts: ClassVar[tuple[str, ...]] = ()  # `save` writes what the module has
    config_class: ClassVar[Any]  # the dataclass
    module_class: ClassVar[Any]  # makes a classifier of it, with random weights
    stored_class: ClassVar[Any] = None  # the same, where a file holds other tensors than a model in training

    @property
    def fields(self) -> dict[str, Any]:
        """What config.json holds."""
        return asdict(self.config)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What model.safetensors holds."""
        state: dict[str, Tensor] = self.model.state_dict()
        return state

    @classmethod
    def build(
        cls, shape: dict[str, Any], label_names: list[str], attention: str, seed: int, words: bool = False
    ) -> Any:
        config = cls.config_class(**cls.config_of(shape), **labels_of(label_names))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls.module_class(config)

    @classmethod
    def load(cls, folder: Path, attention: str = "sdpa") -> Any:
        """Return what `save` wrote, on the CPU. Raises UserError where the files are not that."""
        kind = cls.config_class.model_type
        try:
            fields = json.loads((folder / "config.json").read_text(encoding="utf8"))
            if fields["model_type"] != kind:
                raise ValueError(f"config.json is of a {fields['model_type']}")
            fields["id2label"] = {int(index): name for index, name in fields["id2label"].items()}
            with torch.random.fork_rng(devices=[]):  # the new weights are drawn, then replaced
                model = (cls.stored_class or cls.module_class)(cls.config_class(**fields))
            model.load_state_dict(load_file(folder / "model.safetensors"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
            problem = f"not a complete {kind}: {type(error).__name__}: {error}"
            raise UserError(Code.INCOMPLETE_MODEL, f"{folder}: {problem}") from error
        return model.eval()

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.fields, indent=2, ensure_ascii=False)
        (folder / "config.json").write_text(text + "\n", encoding="utf8")
        save_file(self.tensors, folder / "model.safetensors")
