"""benchmarks/train_step.py on published architectures, shrunk for a CPU."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "sampling.prompts_per_epoch": 2,
    "sampling.group_size": 2,
    "sampling.micro_batch": 2,
    "sampling.num_steps": 5,
    "model.height": 32,
    "model.width": 32,
    "model.max_sequence_length": 16,
}


@pytest.fixture
def train_step(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import train_step

    return train_step


@pytest.mark.timeout(300)
@pytest.mark.parametrize("model", ["sd35m", "flux"])
def test_both_ways_do_the_same_work(train_step: ModuleType, model: str) -> None:
    settings = [f"--set={key}={value}" for key, value in SMALL.items()]
    options = train_step.parse(["--model", model, "--shrunk", "--device", "cpu", *settings])
    bench = train_step.make_bench(options)
    epochs = train_step.measure(bench, rounds=1, reward=0.1)
    (here,), (official,) = epochs["here"], epochs["official loop"]
    assert here.sampled == official.sampled
    assert here.updated == official.updated
    images, f = 4, train_step.forwards(bench.recipe)
    assert here.sampled.tokens == images * f.sampling * 4  # tokens of a 32 x 32 image
    assert here.encode_s == 0.0 < official.encode_s
    table = train_step.phase_table(bench, epochs["here"])
    assert f"| sampling | {f.sampling} |" in table
    assert "| whole epoch" in train_step.comparison_table(epochs, images)
    assert any("times as long" in line for line in train_step.notes(bench, epochs, options))
