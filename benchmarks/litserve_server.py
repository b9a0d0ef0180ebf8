"""LitServe as its documentation shows it: a JSON request with base64 data, a LitAPI, one worker."""

from __future__ import annotations

import argparse
import base64
import time
from typing import Any

import litserve
import numpy as np


class NoopApi(litserve.LitAPI):
    """A request holds any number of images; with `max_batch_size` > 1 requests are batched."""

    def __init__(self, sleep_s: float, max_batch_size: int) -> None:
        timeout = 0.01 if max_batch_size > 1 else 0.0
        super().__init__(max_batch_size=max_batch_size, batch_timeout=timeout)
        self._sleep_s = sleep_s
        self._is_batched = max_batch_size > 1

    def setup(self, device: str) -> None:
        pass

    def decode_request(self, request: dict) -> list[np.ndarray]:
        shape = request["shape"]
        return [
            np.frombuffer(base64.b64decode(image), np.uint8).reshape(shape)
            for image in request["images"]
        ]

    def batch(self, inputs: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
        return inputs

    def unbatch(self, output: list[list[float]]) -> list[list[float]]:
        return output

    def predict(self, x: Any) -> Any:
        time.sleep(self._sleep_s)
        return [_scores(images) for images in x] if self._is_batched else _scores(x)

    def encode_response(self, output: list[float]) -> dict[str, list[float]]:
        return {"scores": output}


def _scores(images: list[np.ndarray]) -> list[float]:
    return [float(image[0, 0, 0]) for image in images]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--sleep-ms", type=float, default=0.0)
    parser.add_argument("--max-batch-size", type=int, default=1)
    options = parser.parse_args()
    api = NoopApi(options.sleep_ms / 1000, options.max_batch_size)
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1)
    server.run(host="127.0.0.1", port=options.port, generate_client_file=False)


if __name__ == "__main__":
    main()
