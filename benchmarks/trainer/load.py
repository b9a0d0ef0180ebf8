"""Host memory that each process takes while it loads: a transformer that all of them share, a text encoder.

    python benchmarks/trainer/load.py [--processes 2] [--millions 250] [--folder FOLDER]

Random weights in bfloat16, full fine-tuning, on CPUs: what a process keeps, its part in float32, is host
memory too, and is printed beside the peak. Once as the trainer loads, once as diffusers does, whole in
every process. A T5 of 0.19 billion parameters, stored in bfloat16, is loaded in that type and in float16.
Anonymous memory is counted; pages of the file belong to the page cache, which all share.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from random_pipelines import random_pipeline

WIDTH, HEADS = 1536, 24


def checkpoint(folder: Path, millions: int) -> None:
    """A minuscule pipeline whose transformer has about so many parameters."""
    from diffusers import SD3Transformer2DModel

    def transformer(layers: int) -> Any:
        return SD3Transformer2DModel(
            sample_size=64,
            num_layers=layers,
            attention_head_dim=WIDTH // HEADS,
            num_attention_heads=HEADS,
            joint_attention_dim=256,
            caption_projection_dim=WIDTH,
            pooled_projection_dim=128,
            qk_norm="rms_norm",
        )

    with torch.device("meta"):
        two, three = (sum(p.numel() for p in transformer(n).parameters()) for n in (2, 3))
    model = transformer(max(2, round(millions * 1e6 / (three - two)))).to(torch.bfloat16)
    pipeline = random_pipeline("sd35m", torch.device("cpu"), torch.bfloat16, shrunk=True)
    pipeline.register_modules(transformer=model)
    pipeline.save_pretrained(folder)


def load(rank: int, folder: str, size: int, port: int, whole: bool, found: Any) -> None:
    """Loads as rank `rank`; puts its peak, what it keeps, and how many parameters there are."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    from flow_trainer.models import diffusers_policy
    from flow_trainer.models.load import load_policy
    from flow_trainer.parallel.world import open_world, pick_device
    from flow_trainer.recipe import Model

    if whole:
        diffusers_policy.empty_transformer = lambda *_: None
    config = Model(path=folder, tuning="full", dtype="bfloat16", autocast_on_cpu=True)
    with open_world(pick_device("cpu"), "full") as world:
        before, samples, done = anonymous(), [0], threading.Event()

        def watch() -> None:
            while not done.is_set():
                samples.append(anonymous() - before)
                time.sleep(0.002)

        watcher = threading.Thread(target=watch)
        watcher.start()
        policy = load_policy(config, pick_device("cpu"), with_reference=False, mesh=world.mesh)
        done.set()
        watcher.join()
        count = sum(p.numel() for p in policy.trainable().values())
        found.put((max(samples), anonymous() - before, count))
        world.barrier()


def encoder(folder: str, dtype: torch.dtype, found: Any) -> None:
    """Loads and reads the T5 in `folder`; puts the memory that is this process's own."""
    from transformers import T5EncoderModel

    before = anonymous()
    model = T5EncoderModel.from_pretrained(folder, dtype=dtype)
    for parameter in model.parameters():
        parameter.sum()
    found.put((anonymous() - before, sum(p.nbytes for p in model.parameters())))


def encoders(folder: Path, context: Any) -> None:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(d_model=1024, d_ff=4096, d_kv=64, num_heads=16, num_layers=12)
    model: Any = T5EncoderModel(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    for dtype in (torch.bfloat16, torch.float16):
        found = context.Queue()
        process = context.Process(target=encoder, args=(str(folder), dtype, found))
        process.start()
        own, size = found.get(timeout=600)
        process.join()
        print(f"text encoder in {dtype}: {size / 1e9:.2f} GB, of its own {own / 1e9:.2f} GB")


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--millions", type=int, default=250)
    parser.add_argument("--folder", default=None, help="for the checkpoint (default: temporary)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        checkpoint(Path(folder), options.millions)
        context = mp.get_context("spawn")
        for port, whole in ((29511, True), (29512, False)):
            found = context.Queue()
            arguments = (folder, options.processes, port, whole, found)
            ranks = [
                context.Process(target=load, args=(rank, *arguments))
                for rank in range(options.processes)
            ]
            for rank in ranks:
                rank.start()
            parts = [found.get(timeout=600) for _ in ranks]
            for rank in ranks:
                rank.join()
            peak, kept, count = (max(values) / 1e9 for values in zip(*parts, strict=True))
            how = "whole in every process" if whole else "as the trainer loads"
            print(f"{count:.3f} billion parameters, {how}: peak {peak:.2f} GB, kept {kept:.2f} GB")
        encoders(Path(folder) / "encoder", context)


if __name__ == "__main__":
    main()
