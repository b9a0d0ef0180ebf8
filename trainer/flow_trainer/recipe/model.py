"""[model]: which weights, at what size, in which precision, and what of them trains."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from flow_trainer.recipe.section import Section

FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "sd3": {},
    "flux": {
        "dtype": "bfloat16",
        "guidance": 3.5,
        "max_sequence_length": 512,
        "lora_rank": 64,
        "lora_alpha": 128,
    },
    "qwen_image": {
        "dtype": "bfloat16",
        "guidance": 4.0,
        "max_sequence_length": 1024,
        "lora_rank": 64,
        "lora_alpha": 128,
    },
    "z_image": {
        "dtype": "bfloat16",
        "guidance": 5.0,
        "max_sequence_length": 512,
        "lora_rank": 64,
        "lora_alpha": 128,
    },
    "flux2_klein": {
        "dtype": "bfloat16",
        "guidance": 4.0,
        "max_sequence_length": 512,
        "lora_rank": 64,
        "lora_alpha": 128,
    },
}
"""Where a family's published recipes differ from the fields' defaults, which are SD3.5's."""

RAGGED = ("qwen_image", "z_image")
"""Families that take texts of different lengths, and mask them in attention."""
WITHOUT_MASK = ("native_flash", "flash", "flash_hub")
"""Attention kernels that know no mask."""


class Model(Section):
    family: Literal["sd3", "flux", "qwen_image", "z_image", "flux2_klein"] = "sd3"
    path: str
    """Hub id, or a folder in diffusers' pipeline layout (relative: to the recipe's own folder)."""
    revision: str | None = None
    height: int = Field(default=512, ge=8)
    """Pixels."""
    width: int = Field(default=512, ge=8)
    dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    """Autocast type of the transformer on a GPU; weights that train stay float32. CPUs use float32."""
    autocast_on_cpu: bool = False
    """Compute in `dtype` on a CPU too: slow, but shows its precision where there is no GPU."""
    guidance: float = Field(default=4.5, ge=1.0)
    """Guidance scale w in sampling and training. Classifier-free, v = v_0 + w (v_prompt - v_0), 1 means
    none (half the cost); diffusers counts Z-Image's from 0, so that its 4 is 5 here. FLUX.1: an input
    of the model."""
    max_sequence_length: int = Field(default=128, ge=0)
    """Text tokens; for SD3 those of T5, 0 for checkpoints without it. FLUX.1 and FLUX.2 see the padding
    up to this length too, so that another length is another image."""
    tuning: Literal["lora", "full"] = "lora"
    lora_rank: int = Field(default=32, ge=1)
    lora_alpha: int = Field(default=64, ge=1)
    adapter: str | None = None
    """Adapter to start from, or to evaluate: a folder or hub repository in peft's layout (the
    published Flow-GRPO adapters) or an adapter/ of a run. Its rank and targets count. The reference
    of a KL term stays the model without it."""
    gradient_checkpointing: bool = False
    compile: Literal["auto"] | bool = "auto"
    """torch.compile of the transformer's blocks, the same for sampling and replay. auto: on a GPU where
    Triton finds a C compiler, for families whose texts are all equally long (not for Qwen-Image and
    Z-Image), and as long as the ratio of an unchanged policy is 1 with it."""
    attention: Literal[
        "native",
        "native_flash",
        "native_cudnn",
        "native_efficient",
        "native_math",
        "flash",
        "flash_hub",
        "xformers",
    ] = "native"
    """What computes attention, in sampling and replay alike. native: torch's choice among its own
    kernels; native_...: one of them. The others, for all but SD3, need their packages:
    flash-attn, kernels, xformers. The flash kernels are not for Qwen-Image and Z-Image, whose texts are
    masked."""
    offload: bool = False
    """Text encoders and VAE stay in host memory and visit the GPU for each use."""
    prompt_cache_gb: float = Field(default=16.0, gt=0)
    """Host memory for encoded prompts. When all prompts of the recipe fit, the text encoders are freed
    before training; else prompts are encoded as they come."""

    @property
    def classifier_free(self) -> float:
        """Scale of the guidance that takes a second forward; 1 where there is none."""
        return 1.0 if self.family == "flux" else self.guidance

    @model_validator(mode="before")
    @classmethod
    def _family_defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {**FAMILY_DEFAULTS.get(str(data.get("family")), {}), **data}

    @model_validator(mode="after")
    def _masked_texts(self) -> Model:
        if self.family in RAGGED and self.attention in WITHOUT_MASK:
            raise ValueError(
                f"attention = {self.attention} cannot mask the texts of {self.family}, which differ in "
                "length: use native, which takes torch's flash kernel where all are equally long"
            )
        return self
