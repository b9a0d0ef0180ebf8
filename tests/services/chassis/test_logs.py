"""One line per message, whatever it quotes."""

import io
import json
import logging

import pytest

from reward_services.chassis import logs


@pytest.fixture
def root():
    """The root logger, left as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield root
    root.handlers[:], root.level = handlers, level


def _logged(root, form, message, **fields):
    logs.configure("info", form, "jpeg")
    root.handlers[0].setStream(io.StringIO())
    root.info(message, extra=fields)
    return root.handlers[0].stream.getvalue()


def test_text_is_one_line(root):
    line = _logged(root, "text", "a\nforged line\r\u2028", request_id="r-1")
    assert line.endswith("jpeg: a\\nforged line\\n\\n request_id=r-1\n")
    assert len(line.splitlines()) == 1


def test_json_is_one_line(root):
    line = _logged(root, "json", "a\nb", request_id="r-1")
    assert len(line.splitlines()) == 1
    assert (
        json.loads(line).items()
        >= {"message": "a\nb", "request_id": "r-1", "reward": "jpeg"}.items()
    )


def test_repeats_are_bounded_and_counted(root, monkeypatch):
    now = 0.0
    monkeypatch.setattr(logs.time, "monotonic", lambda: now)
    logs.configure("info", "json", "jpeg")
    root.handlers[0].setStream(io.StringIO())
    for i in range(10_000):
        root.warning(f"refused {i}", extra={"reason": "SCHEMA"})
        root.error("internal error", exc_info=i == 0)
        root.info("scored")
    root.warning("another kind", extra={"reason": "IMAGE_DECODE"})
    now = 2.0
    root.warning("refused at last", extra={"reason": "SCHEMA"})
    lines = [json.loads(line) for line in root.handlers[0].stream.getvalue().splitlines()]
    refused = [line for line in lines if line.get("reason") == "SCHEMA"]
    assert len(refused) == logs.BURST + 1
    assert (refused[-1]["message"], refused[-1]["left_out"]) == ("refused at last", 9_900)
    assert sum(line["message"] == "internal error" for line in lines) == logs.BURST
    assert sum(line["message"] == "scored" for line in lines) == 10_000
    assert sum(line["message"] == "another kind" for line in lines) == 1
