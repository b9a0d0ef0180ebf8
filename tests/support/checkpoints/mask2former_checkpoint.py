"""Mask2Former checkpoints in the layout that mmdet 2.x publishes, with weights from a seed.

    python tests/support/checkpoints/mask2former_checkpoint.py FOLDER [tiny|full]

Random weights detect nothing: their scores stay far below 0.3. So the class head is biased (queries
prefer a few classes) and the mask head is sharpened, until an image gives a handful of detections.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import torch

from reward_services.geneval.checkpoint import read_config
from reward_services.geneval.detector import build
from reward_services.geneval.openmmlab import Config

FILE = "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth"
_MASK_SPREAD, _CLASS_SPREAD = 6.0, 4.0  # standard deviations of the logits
_NOTHING = 14.0  # logit of "no object"
_BACKGROUND = -12.0  # what is added to the logits of masks, so that they cover little


def write_checkpoint(
    folder: Path, *, size: Literal["tiny", "full"] = "tiny", seed: int = 0
) -> Path:
    """Writes `config.py` and the checkpoint into `folder` and returns it.

    tiny: 0.45 M parameters, images of at most 128 x 96, so milliseconds each; full: the configuration
    that mmdet ships (68.7 M parameters, 1333 x 800).
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = read_config(None)
    if size == "tiny":
        _shrink(config)
    Config({"model": config.model, "test_dataloader": config.test_dataloader}).dump(
        folder / "config.py"
    )
    torch.manual_seed(seed)
    model = build(config)
    _calibrate(model)
    weights = {published_name(name): tensor for name, tensor in model.state_dict().items()}
    meta = {
        "epoch": 50,
        "iter": 368750,
        "CLASSES": ("person", "bicycle"),
        "config": "model = dict()",
    }
    torch.save({"meta": meta, "state_dict": weights}, folder / FILE)
    return folder


def published_name(name: str) -> str:
    """A parameter's name in mmdet 3.x -> in 2.x, written apart from the code under test."""
    parts = name.split(".")
    if "layers" not in parts or parts[0] != "panoptic_head":
        return name
    decoder = "transformer_decoder" in parts
    numbered = {
        "self_attn": ["attentions", "1" if decoder else "0"],
        "cross_attn": ["attentions", "0"],
        "ffn": ["ffns", "0"],
    }
    return ".".join(new for part in parts for new in numbered.get(part, [part]))


def _shrink(config: Any) -> None:
    """The same architecture with fewer and narrower layers, in the places where they are stated."""
    width = 32
    config.model.backbone.update(embed_dims=16, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8])
    head = config.model.panoptic_head
    head.update(in_channels=[16, 32, 64, 128], feat_channels=width, out_channels=width)
    head.positional_encoding.num_feats = width // 2
    head.pixel_decoder.positional_encoding.num_feats = width // 2
    head.pixel_decoder.norm_cfg.num_groups = 4
    head.pixel_decoder.encoder.num_layers = 2
    head.transformer_decoder.num_layers = 3
    for layers in (head.pixel_decoder.encoder.layer_cfg, head.transformer_decoder.layer_cfg):
        layers.ffn_cfg.update(embed_dims=width, feedforward_channels=64)
        for attention in ("self_attn_cfg", "cross_attn_cfg"):
            if attention in layers:
                layers[attention].update(embed_dims=width, num_heads=4)
    for step in config.test_dataloader.dataset.pipeline:
        if step.type == "Resize":
            step.scale = (128, 96)


@torch.no_grad()
def _calibrate(model: Any) -> None:
    """Centres and scales class and mask logits on one made-up image, so that a few queries are sure
    of a class and masks have borders."""
    head = model.eval().panoptic_head
    image = torch.randn(1, 3, 4, 4).repeat_interleave(32, -1).repeat_interleave(32, -2)
    features = model.extract_feat(image)
    pixels, _ = head.pixel_decoder(features)
    head.pixel_decoder.mask_feature.bias -= pixels.mean((0, 2, 3))
    classes, masks = (last[-1][0] for last in head(features, []))
    head.mask_embed[-1].weight *= _MASK_SPREAD / masks.std()
    head.mask_embed[-1].bias *= _MASK_SPREAD / masks.std()
    # Channel 0 becomes a constant of every mask logit.
    head.pixel_decoder.mask_feature.weight[0], head.pixel_decoder.mask_feature.bias[0] = 0, 1
    head.mask_embed[-1].weight[0], head.mask_embed[-1].bias[0] = 0, _BACKGROUND
    spread = _CLASS_SPREAD / (classes - classes.mean(0)).std()
    head.cls_embed.weight *= spread
    head.cls_embed.bias.copy_(-spread * (classes.mean(0) - head.cls_embed.bias))
    head.cls_embed.bias[-1] += _NOTHING


if __name__ == "__main__":
    print(write_checkpoint(Path(sys.argv[1]), size=sys.argv[2] if sys.argv[2:] else "tiny"))  # type: ignore[arg-type]
