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
