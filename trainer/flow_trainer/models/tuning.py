"""What is trained of a transformer: a LoRA adapter or all of its weights; and the frozen reference."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from flow_trainer.models.adapter import as_trained, load_adapter
from flow_trainer.models.kernels import cast_once, compile_blocks, run_eagerly, use_attention
from flow_trainer.models.pieces import Pieces, standing_in
from flow_trainer.parallel.sharding import expect_backward, forget_forwards, shard, whole_state
from flow_trainer.recipe import Model


class Tuning:
    def __init__(
        self,
        transformer: Any,
        config: Model,
        lora_targets: list[str],
        *,
        with_reference: bool,
        mesh: DeviceMesh | None = None,
        dtype: torch.dtype = torch.float32,
        pieces: Pieces | None = None,
        teachers: Mapping[str, str] | None = None,
    ) -> None:
        """`dtype`: in which the transformer computes, and in which sharded parameters travel.
        `pieces`: where the values of a transformer without memory are, which is then sharded."""
        self.transformer: Any = transformer.requires_grad_(False).eval()
        self._lora = config.tuning == "lora"
        self._reference: Any = None
        use_attention(transformer, config.attention)
        if config.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        if self._lora:
            with standing_in(transformer):
                _add_adapter(transformer, config, lora_targets)
                self._student = next(iter(transformer.peft_config))
                self._teachers = _add_teachers(transformer, self._student, teachers or {})
        cast_once(transformer)
        if not self._lora:
            if with_reference:
                self._reference = copy.deepcopy(transformer)
            as_float32(transformer).requires_grad_(True)
        if config.compile:
            for module in filter(None, (transformer, self._reference)):
                compile_blocks(module, or_eagerly=config.compile == "auto")
        self._class = type(transformer)
        self._sharded = mesh is not None
        if mesh is not None:
            for module in filter(None, (transformer, self._reference)):
                shard(module, mesh, dtype)
                if pieces is not None:
                    pieces.fill(module)
        self._last: bool | None = None
        self.trainable: dict[str, nn.Parameter] = {
            name: parameter
            for name, parameter in transformer.named_parameters()
            if parameter.requires_grad
        }

    def before_backward(self, *, last: bool) -> None:
        """See `flow_trainer.models.policy.Policy.before_backward`."""
        if self._sharded and last != self._last:
            # an adapter's gradient is small; that of all weights is the model again
            expect_backward(self.transformer, last=last, divided=not self._lora)
            self._last = last

    def run_eagerly(self) -> None:
        """From now on, blocks are not compiled."""
        for module in filter(None, (self.transformer, self._reference)):
            run_eagerly(module)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the transformer is the model without its adapter, or before full fine-tuning."""
        if self._lora:
            self.transformer.disable_adapters()
            try:
                yield
            finally:
                self.transformer.enable_adapters()
            return
        if self._reference is None:
            raise RuntimeError("load the policy with with_reference=True to use a KL term")
        trained, self.transformer = self.transformer, self._reference
        try:
            yield
        finally:
            self.transformer = trained
            if self._sharded:
                forget_forwards(self._reference)

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Inside, weights of 16 bits are float32, exactly."""
        modules = filter(None, (self.transformer, self._reference))
        tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
        cast = [(t, t.dtype) for t in tensors if t.dtype in (torch.float16, torch.bfloat16)]
        for tensor, _ in cast:
            tensor.data = tensor.data.float()
        try:
            yield
        finally:
            for tensor, dtype in cast:
                tensor.data = tensor.data.to(dtype)

    @contextmanager
    def teacher(self, name: str) -> Iterator[None]:
        """Inside, the transformer has this teacher's adapter instead of the trained one."""
        self.transformer.set_adapter(self._teachers[name])
        try:
            yield
        finally:
            self.transformer.set_adapter(self._student)

    def save(self, folder: Path | None, pipeline_class: Any) -> None:
        """See `flow_trainer.models.Policy.save`."""
        state = None
        if self._sharded:
            state = whole_state(self.transformer, keep=folder is not None, wanted=self._saved)
        if folder is None:
            return
        if not self._lora:
            self._whole(state).save_pretrained(folder / "transformer")
            return
        name, config = self._student, self.transformer.peft_config[self._student]
        layers = get_peft_model_state_dict(self.transformer, state_dict=state, adapter_name=name)
        pipeline_class.save_lora_weights(
            folder,
            transformer_lora_layers=dict(layers),
            # without it the loader assumes alpha = rank and scales the adapter wrongly
            transformer_lora_adapter_metadata=config.to_dict(),
        )

    def _saved(self, name: str) -> bool:
        return not self._lora or ".lora_" in name

    def _whole(self, state: dict[str, Tensor] | None) -> Any:
        """The transformer, or one of the same class that holds `state`."""
        if state is None:
            return self.transformer
        with torch.device("meta"):
            model = self._class.from_config(self.transformer.config)
        model.load_state_dict(state, assign=True)
        return model


def as_float32(module: Any) -> Any:
    """The module with float32 weights; untouched when it has them already, because diffusers warns
    of every cast."""
    return module if module.dtype == torch.float32 else module.to(torch.float32)


def _add_adapter(transformer: Any, config: Model, targets: list[str]) -> None:
    if config.adapter is None:
        transformer.add_adapter(
            LoraConfig(
                r=config.lora_rank,
                lora_alpha=config.lora_alpha,
                init_lora_weights="gaussian",
                target_modules=targets,
            )
        )
    else:
        load_adapter(transformer, config.adapter)
    as_trained(transformer)


def _add_teachers(transformer: Any, student: str, teachers: Mapping[str, str]) -> dict[str, str]:
    """Loads every adapter once, frozen; the adapter's name by the teacher's."""
    adapters = {source: f"teacher{i}" for i, source in enumerate(dict.fromkeys(teachers.values()))}
    with warnings.catch_warnings():
        # of several adapters: they are meant
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        for source, adapter in adapters.items():
            load_adapter(transformer, source, adapter, "the teacher")
    if adapters:
        transformer.set_adapter(student)  # which also freezes the others
    return {name: adapters[source] for name, source in teachers.items()}
