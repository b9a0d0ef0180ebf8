"""Every model family trains sharded on two processes what one process trains, against a real reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rank_runs import assert_close, run
from tiny_pipelines import MODELS, build

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.mark.parametrize("family", [name for name in MODELS if name != "sd3"])
def test_a_sharded_run_is_the_same(family: str, brief: dict[str, Any], tmp_path: Path) -> None:
    model = {"family": family, "path": str(build(family, tmp_path)), "height": 8, "width": 8}
    # KL: the reference is sharded too
    brief |= {"epochs": 1, "model": {**model, **MODELS[family], "tuning": "full"}}
    one, two = (run(n, brief, tmp_path / str(n)) for n in (1, 2))
    assert_close(one, two, 1, brief)
