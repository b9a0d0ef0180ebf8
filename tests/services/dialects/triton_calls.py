"""Calls a service with the published tritonclient and prints what came back as JSON.

Run by test_triton_client.py in an environment of its own: tritonclient wants protobuf < 7, and its
messages have the names that other copies of the protocol have, too.

    python triton_calls.py HTTP_TARGET GRPC_TARGET FOLDER

FOLDER holds pixels.npy (uint8 [N, H, W, 3]) and files/0.png ...
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.grpc.aio as over_grpc_aio
import tritonclient.http as over_http
import tritonclient.http.aio as over_http_aio
from tritonclient.utils import InferenceServerException

MODEL = "judged"


def inputs(module: Any, image: np.ndarray, prompts: list[str], **options: Any) -> list[Any]:
    """IMAGE, PROMPT and METADATA for a client of `module`."""
    text = np.array([prompt.encode() for prompt in prompts], np.object_)
    metadata = np.array([json.dumps({"n": i}).encode() for i in range(len(prompts))], np.object_)
    arrays = {"IMAGE": image, "PROMPT": text, "METADATA": metadata}
    made = []
    for name, array in arrays.items():
        tensor = module.InferInput(name, array.shape, "UINT8" if array.ndim > 1 else "BYTES")
        tensor.set_data_from_numpy(array, **(options if name != "IMAGE" else {}))
        made.append(tensor)
    return made


def lists(result: Any, *names: str) -> dict[str, Any]:
    return {name: result.as_numpy(name).tolist() for name in names}


def about(client: Any, module: Any) -> dict[str, Any]:
    as_json = {"as_json": True} if module is over_grpc else {}
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(MODEL),
        "server": client.get_server_metadata(**as_json),
        "model": client.get_model_metadata(MODEL, **as_json),
        "config": client.get_model_config(MODEL, **as_json),
        "statistics": client.get_inference_statistics(MODEL, **as_json),
        "index": client.get_model_repository_index(**as_json),
        "unknown": failure(lambda: client.get_model_config("other")),
    }


def failure(call: Any) -> str:
    try:
        call()
    except InferenceServerException as error:
        return str(error)
    return "it did not fail"


def synchronous(module: Any, target: str, pixels: np.ndarray, files: np.ndarray) -> dict[str, Any]:
    client = module.InferenceServerClient(target)
    count = len(pixels)
    wanted = [module.InferRequestedOutput("length"), module.InferRequestedOutput("SCORE")]
    tensors = inputs(module, pixels, ["ü"] * count)
    found = about(client, module)
    everything = client.infer(MODEL, tensors, request_id="a-7", timeout=10_000_000)
    found["raw"] = lists(everything, "SCORE", "length")
    found["id"] = everything.get_response(**_as_json(module))["id"]
    chosen = client.infer(MODEL, inputs(module, files, ["ab"] * count), outputs=wanted)
    found["files"] = lists(chosen, "SCORE", "length")
    broken = inputs(module, pixels, ["broken", *["a"] * (count - 1)])
    found["failed_item"] = failure(lambda: client.infer(MODEL, broken))
    found["wrong_model"] = failure(lambda: client.infer("other", tensors))
    client.close()
    return found


def _as_json(module: Any) -> dict[str, bool]:
    return {"as_json": True} if module is over_grpc else {}


def json_tensors(target: str, files: np.ndarray) -> dict[str, Any]:
    """The HTTP client without binary tensors, for text; as JSON answers for everything."""
    client = over_http.InferenceServerClient(target)
    tensors = inputs(over_http, files, ["a"] * len(files), binary_data=False)
    wanted = [over_http.InferRequestedOutput("SCORE", binary_data=False)]
    found = lists(client.infer(MODEL, tensors, outputs=wanted), "SCORE")
    client.close()
    return found


async def asynchronous(
    module: Any, tensors: Any, target: str, pixels: np.ndarray
) -> dict[str, Any]:
    client = module.InferenceServerClient(target)
    result = await client.infer(MODEL, inputs(tensors, pixels, ["a"] * len(pixels)))
    await client.close()
    return lists(result, "SCORE")


def main() -> None:
    http, grpc, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    pixels = np.load(folder / "pixels.npy")
    paths = [folder / "files" / f"{i}.png" for i in range(len(pixels))]
    files = np.array([path.read_bytes() for path in paths], np.object_)
    found = {
        "http": synchronous(over_http, http, pixels, files),
        "grpc": synchronous(over_grpc, grpc, pixels, files),
        "json": json_tensors(http, files),
        "http_aio": asyncio.run(asynchronous(over_http_aio, over_http, http, pixels)),
        "grpc_aio": asyncio.run(asynchronous(over_grpc_aio, over_grpc, grpc, pixels)),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
