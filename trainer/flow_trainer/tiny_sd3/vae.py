"""The small VAE: 64x32 pixels to latents (8, 8, 16), a factor of 4."""

# diffusers annotates its arguments and results more narrowly than what it takes and gives
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

import random
import string
from collections.abc import Callable

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from flow_trainer.tiny_sd3.signs import render

SAMPLES, BATCH, PEAK_RATE = 8000, 16, 4e-3
KL_WEIGHT = 2e-3


def train_vae(steps: int, samples: int, say: Callable[[str], None]) -> AutoencoderKL:
    """Trains on random four-letter strings: L1 + squared error + a weak KL; sets the latent's shift
    and scale so that the transformer sees mean 0 and standard deviation 1."""
    torch.manual_seed(0)
    rng = random.Random(0)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=64,
    )
    words = ["".join(rng.choices(string.ascii_uppercase, k=4)) for _ in range(samples)]
    pixels = torch.from_numpy(np.stack([render(word, rng) for word in words])).permute(0, 3, 1, 2)
    # channels last: a third faster on CPUs
    vae.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, steps, pct_start=0.1)
    for step in range(steps):
        x = _unit(pixels[torch.randint(samples, (BATCH,))])
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample
        l1 = (x - y).abs().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = l1 + (x - y).pow(2).mean() + KL_WEIGHT * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            say(f"vae {step + 1}/{steps}  L1 {l1.item():.4f}")
    with torch.no_grad():
        latents = torch.cat(
            [vae.encode(_unit(chunk)).latent_dist.mean for chunk in pixels[:2000].split(100)]
        )
    vae.register_to_config(
        shift_factor=float(latents.mean()), scaling_factor=float(1 / latents.std())
    )
    return vae


def to_latents(vae: AutoencoderKL, images: list[np.ndarray]) -> Tensor:
    """Normalised latents (B, 8, 8, 16) of images (32, 64, 3) uint8."""
    with torch.no_grad():
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        mean = vae.encode(_unit(pixels)).latent_dist.mean
    return (mean - vae.config["shift_factor"]) * vae.config["scaling_factor"]


def _unit(pixels: Tensor) -> Tensor:
    return pixels.float() / 127.5 - 1
