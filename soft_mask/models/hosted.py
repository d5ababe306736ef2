"""A published diffusion language model on a decoder of ``transformers`` that attends to both sides.

The published code of Dream and LLaDA is a copy of a decoder with the causal mask taken out. ``transformers`` runs its own
decoders that way when ``config.is_causal`` is False, so their weights need no code but that: they get its dtypes, device
maps, quantisation, attention kernels, checkpointing and adapters, and no remote code is imported.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from soft_mask.models.checkpoint import read_config, read_object, write_config
from soft_mask.models.host_guards import check_files, check_host, check_report, default_frequencies

__all__ = ["HostedModel"]

GENERATION = "generation_config.json"


class HostedModel(nn.Module):
    """What Dream and LLaDA share; meets ``MaskedDiffusionModel``.

    Attributes:
        host: the decoder of ``transformers`` with its head. Adapters go here: ``peft.get_peft_model(model.host, ...)``
            puts its layers into the host, and this model runs them.
        config: sizes, in the words of the published ``config.json``.
        generation_config: what ``generation_config.json`` held; empty where there was none.
    """

    shift: ClassVar[int] = 0
    bans_mask = False
    default_steps: ClassVar[int | None] = None
    default_alg: ClassVar[str]
    #: Patterns of the published names and the host's in their place.
    key_mapping: ClassVar[dict[str, str]] = {}
    config_class: ClassVar[Any]

    def __init__(self, config: Any, *, host: nn.Module | None = None, generation_config: dict[str, Any] | None = None) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            raise TypeError(f"config must be a {self.config_class.__name__}, got {type(config).__name__}")
        self.config = config
        self.generation_config = dict(generation_config or {})
        self.mask_token_id: int = config.mask_token_id
        self.vocab_size: int = config.vocab_size
        self.host: Any = host if host is not None else self.host_class()(self.host_config(config))
        if host is None:
            self.eval()

    @staticmethod
    def host_class() -> Any:
        """The class of ``transformers`` that runs these weights."""
        raise NotImplementedError

    @staticmethod
    def host_config(config: Any) -> Any:
        """The host's configuration, ``is_causal`` False among it."""
        raise NotImplementedError

    @property
    def embedding(self) -> Tensor:
        """The token table ``[V, d]``."""
        weight = self.host.get_input_embeddings().weight
        if weight.is_meta:
            raise RuntimeError("the embedding is off-loaded to the disk or never loaded: give it a device in device_map")
        return weight

    @property
    def model_length(self) -> int:
        """The longest sequence."""
        return self.config.max_position_embeddings

    def positions(self, attention_mask: Tensor) -> Tensor:  # [B, L] -> [B, L] int64
        """Position ids of a padded batch: counted over what is attended to, as upstream does; 1 where padding is."""
        valid = attention_mask.bool()
        return (valid.long().cumsum(-1) - 1).masked_fill(~valid, 1)

    def hidden(
        self,
        inputs_embeds: Tensor,  # [B, L, d]
        attention_mask: Tensor | None = None,  # [B, L] bool or 0/1, or [B, 1, L, L] bool: what may be attended to
        position_ids: Tensor | None = None,  # [B, L] int64
        cache: Any = None,
    ) -> Tensor:  # [B, L, d]
        """The decoder's output after its last norm. Rows of padding hold numbers that mean nothing.

        Args:
            position_ids: counted over ``attention_mask [B, L]`` when None, and 0 .. L-1 without one.
            cache: of ``transformers``, for a call on a part of the sequence; with it position_ids must be given.

        Raises:
            ValueError: a shape does not fit, or the sequence is longer than ``model_length``.
        """
        if inputs_embeds.dim() != 3 or inputs_embeds.shape[-1] != self.embedding.shape[1]:
            raise ValueError(f"inputs_embeds must be [B, L, {self.embedding.shape[1]}], got shape {list(inputs_embeds.shape)}")
        batch, length = inputs_embeds.shape[:2]
        if length > self.model_length:
            raise ValueError(f"a sequence has {length} tokens, more than max_position_embeddings={self.model_length}")
        if attention_mask is not None and attention_mask.dim() == 2:
            if cache is None and attention_mask.shape != (batch, length):
                raise ValueError(f"attention_mask must be [{batch}, {length}], got shape {list(attention_mask.shape)}")
            if position_ids is None:
                position_ids = self.positions(attention_mask)
            attention_mask = attention_mask.bool()
        elif attention_mask is not None:
            attention_mask = self._additive(attention_mask, inputs_embeds)
        if position_ids is None and cache is not None:
            raise ValueError("position_ids must be given with a cache: they say where in the sequence these rows stand")
        return self.host.get_decoder()(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def _additive(self, mask: Tensor, like: Tensor) -> Tensor:
        """A mask of pairs as the host's attention takes it: bool for SDPA, and to be added for the eager one."""
        if mask.dim() != 4 or mask.dtype != torch.bool:
            raise ValueError(f"attention_mask must be [B, L], or [B, 1, L, L] bool, got {mask.dtype} {list(mask.shape)}")
        if self.host.config._attn_implementation != "eager":
            return mask
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill(~mask, torch.finfo(like.dtype).min)

    def head(self, rows: Tensor) -> Tensor:  # [.., d] -> [.., V]
        """Raw logits of rows of :meth:`hidden`: unshifted, the mask's column intact."""
        return self.host.get_output_embeddings()(rows)

    def forward(
        self,
        input_ids: Tensor,  # [B, L] int64
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:  # [B, L, V]
        """Raw logits of every row, not shifted: one binary pass, no feedback."""
        if input_ids.dim() != 2:
            raise ValueError(f"input_ids must be [B, L], got shape {list(input_ids.shape)}")
        embeds = nn.functional.embedding(input_ids, self.embedding)
        return self.head(self.hidden(embeds, attention_mask, position_ids))

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        # model.to(bfloat16) would round the rotary frequencies, and thousands of tokens on every angle would be wrong: they
        # are moved, never narrowed.
        frequencies = {name: buffer for name, buffer in self.named_buffers() if name.endswith("inv_freq")}
        super()._apply(fn, recurse)
        for name, before in frequencies.items():
            path, _, own = name.rpartition(".")
            moved = self.get_buffer(name)
            if moved.dtype != before.dtype:
                self.get_submodule(path)._buffers[own] = before.to(moved.device)
        return self

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Recompute layers in backward, non-reentrantly unless told otherwise."""
        options.setdefault("gradient_checkpointing_kwargs", {"use_reentrant": False})
        self.host.gradient_checkpointing_enable(**options)

    def published_state(self) -> dict[str, Tensor]:
        """The weights under their published names; a tied head is left out."""
        state = dict(self.host.state_dict())
        if self.config.tie_word_embeddings:
            state.pop("lm_head.weight", None)
        return state

    def published_generation(self) -> dict[str, Any]:
        """What the published code wants in ``generation_config.json``."""
        return {}

    def save_pretrained(self, folder: str | os.PathLike[str], *, max_shard_size: str | int = "5GB") -> None:
        """Write ``config.json``, safetensors under the published names (in shards where large), ``generation_config.json``.

        Raises:
            NotADirectoryError: ``folder`` is a file.
            ValueError: the host is quantised, or holds adapters that were not merged.
        """
        from huggingface_hub import save_torch_state_dict

        if getattr(self.host, "hf_quantizer", None) is not None:
            raise ValueError("the model is quantised: these weights are not those of the published layout")
        state = self.published_state()
        if odd := [name for name in state if "lora_" in name or ".base_layer." in name]:
            raise ValueError(f"the model holds adapters ({odd[0]}, ...): merge them before it is saved whole")
        target = Path(folder)
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(f"{os.fspath(target)!r} is a file; a folder to write into was expected")
        target.mkdir(parents=True, exist_ok=True)
        save_torch_state_dict(state, target, max_shard_size=max_shard_size, metadata={"format": "pt"})
        dtype = str(self.embedding.dtype).removeprefix("torch.")
        write_config(target, {**self.config.to_dict(), "torch_dtype": dtype})
        if generation := {**self.published_generation(), **self.generation_config}:
            (target / GENERATION).write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], *, mask_token_id: int | None = None, probe: bool = True, **options: Any
    ) -> Any:
        """Read a local folder in the published layout, in eval mode; guarded as :func:`soft_mask.load_model` says.

        Args:
            mask_token_id: must be the folder's; asked for where its files do not tell it.
            probe: run the model on eight tokens to see that a later one is attended to.
            options: of ``transformers``' ``from_pretrained``: ``dtype`` ("auto" when left out), ``device_map``,
                ``attn_implementation``, ``quantization_config`` ...

        Raises:
            FileNotFoundError: a file, or a shard, is not there.
            ValueError: files are broken, of another model, or do not agree with each other.
        """
        from soft_mask.models.tokenizer import agreed_mask_id

        values = read_config(folder)
        path = Path(folder) / GENERATION
        generation = read_object(path) if path.is_file() else {}
        mask = agreed_mask_id(folder, values, generation, mask_token_id)
        config = cls.config_class.from_dict({**values, "mask_token_id": mask})
        own = cls.host_config(config)
        quantised = "quantization_config" in values or "quantization_config" in options
        check_files(folder, cls, own, by_shape=not quantised)
        host, report = cls._load(folder, own, options)
        check_report(report, os.fspath(folder))
        model = cls(config, host=host, generation_config=generation).eval()
        check_host(model, default_frequencies(own), probe=probe)
        return model

    @classmethod
    def _load(cls, folder: str | os.PathLike[str], config: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        forbidden = {"trust_remote_code", "config", "output_loading_info", "key_mapping", "use_safetensors", "state_dict"}
        if odd := sorted(forbidden & set(options)):
            raise ValueError(f"{odd[0]} can not be given: config and weights are the folder's, and no remote code is run")
        options.setdefault("dtype", "auto")
        from transformers import GenerationConfig

        return cls.host_class().from_pretrained(
            os.fspath(folder),
            config=config,
            key_mapping=cls.key_mapping or None,
            output_loading_info=True,
            use_safetensors=True,
            local_files_only=True,
            generation_config=GenerationConfig(),  # the folder's own is of diffusion, and would be complained about
            **options,
        )
