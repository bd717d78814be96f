"""Models around an encoder of any architecture: config.json has that of the encoder, and the head's own keys."""

from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from kdbench.errors import Code, UserError
from kdbench.models.network import Network, labels_of, network, refuse_missing, view


class Around(Network):
    """A classifier that has an `encoder` without its pooler, and a head of its own."""

    module_class: ClassVar[Any]  # makes a classifier of the config, with random weights

    @property
    def encoder(self) -> Any:
        return self.model.encoder

    @property
    def token_types(self) -> bool:
        read: bool = view(self.encoder).token_types
        return read

    @classmethod
    def config_class(cls) -> Any:
        """Return the class of configurations, with the keys of the head."""
        raise NotImplementedError

    @classmethod
    def head_of(cls, shape: dict[str, Any]) -> dict[str, Any]:
        """Return what config.json says of the head of a student of this shape."""
        return {}

    @classmethod
    def build(
        cls, shape: dict[str, Any], label_names: list[str], attention: str, seed: int, words: bool = False
    ) -> Any:
        """Return a model around an encoder like that of the checkpoint in `shape["config"]`.

        The head keeps PyTorch's initialisation.
        """
        around = network(shape["config"]["model_type"])
        own = around.config_of(shape)
        config = cls.config_class()(
            encoder=own, **cls.head_of(shape), pad_token_id=own.get("pad_token_id"), **labels_of(label_names)
        )
        config._attn_implementation = around.attention(attention)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls.module_class(config)
        cls(model).set_dropout(0.0)
        return model

    @classmethod
    def load(cls, folder: Path, attention: str = "sdpa") -> Any:
        try:
            weights = load_file(folder / "model.safetensors")
        except SafetensorError as error:
            raise OSError(f"{folder}: model.safetensors is cut short or damaged: {error}") from error
        config = cls.config_class().from_pretrained(folder)
        if config.encoder is None:
            raise UserError(Code.INCOMPLETE_MODEL, f"{folder}: config.json does not say which encoder it is around")
        config._attn_implementation = network(config.encoder["model_type"]).attention(attention)
        with torch.random.fork_rng(devices=[]):
            model = cls.module_class(config)
        refuse_missing(folder, model.load_state_dict(weights, strict=False).missing_keys)
        return model.eval()

    def save(self, folder: Path) -> None:
        self.config.encoder = self.encoder.config.to_dict()
        self.config.save_pretrained(folder)
        tensors = {name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}
        save_file(tensors, folder / "model.safetensors")


def encoder_of(config: Any) -> Any:
    """Return an encoder with random weights, as `config.encoder` describes it, without a pooler."""
    from transformers import AutoConfig, AutoModel

    own = AutoConfig.for_model(**config.encoder)
    made: Any = AutoModel.from_config(own, attn_implementation=config._attn_implementation)
    made.pooler = None  # of another classifier
    return made


@cache
def base_config() -> Any:
    """Return the base of the configurations, made on first use because its own base is transformers'."""
    from transformers import PreTrainedConfig

    class AroundConfig(PreTrainedConfig):
        encoder: dict[str, Any] | None = None  # the config.json of its encoder
        pad_token_id: int | None = None

        @property
        def vocab_size(self) -> int:
            assert self.encoder is not None  # Around.load
            size: int = self.encoder["vocab_size"]
            return size

    return AroundConfig
