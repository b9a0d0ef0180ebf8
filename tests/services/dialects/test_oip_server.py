"""What an Open Inference server says of itself: health, configuration, statistics, index, reflection."""

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from reward_api.wire.v1 import open_inference_pb2 as pb
from reward_services import __version__
from reward_services.chassis.service import State

INFER = "/v2/models/judged/infer"
LENGTH = "Inference-Header-Content-Length"


async def test_health_has_the_bodies_that_kserve_reads(serve):
    running = await serve()
    assert (await running.http.get("/v2/health/live")).json() == {"live": True}
    assert (await running.http.get("/v2/health/ready")).json() == {"ready": True}
    model = await running.http.get("/v2/models/judged/ready")
    assert model.json() == {"name": "judged", "ready": True}
    running.service.state = State.LOADING
    for path in ("/v2/health/ready", "/v2/models/judged/ready"):
        response = await running.http.get(path)
        assert (response.status_code, response.json()["ready"]) == (400, False)


async def test_errors_below_v2_have_the_member_that_the_clients_print(serve):
    running = await serve(token="secret")
    for path in ("/v2/nope", "/v2/models/judged/nope/x"):
        response = await running.http.get(path, headers={"Authorization": "Bearer secret"})
        assert response.status_code == 404
        assert path in response.json()["error"]
    response = await running.http.get("/v2/models/judged")
    assert response.status_code == 401
    assert "token" in response.json()["error"]
    assert "error" not in (await running.http.get("/v1/nope")).json()


async def _grpc(running, method, request, answer):
    async with grpc.aio.insecure_channel(running.target) as channel:
        call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        return answer.FromString(await call(request.SerializeToString()))


async def test_model_config(serve):
    running = await serve()
    config = (await running.http.get("/v2/models/judged/config")).json()
    assert (config["name"], config["max_batch_size"]) == ("judged", 256)
    inputs = {
        one["name"]: (one["data_type"], one["dims"], one["optional"]) for one in config["input"]
    }
    assert inputs == {
        "IMAGE": ("TYPE_UINT8", [-1, -1, 3], False),
        "PROMPT": ("TYPE_STRING", [1], True),
        "METADATA": ("TYPE_STRING", [1], True),
    }
    assert [one["name"] for one in config["output"]] == ["SCORE", "length"]
    over_grpc = await _grpc(
        running, "ModelConfig", pb.ModelConfigRequest(name="judged"), pb.ModelConfigResponse
    )
    assert MessageToDict(over_grpc.config, preserving_proto_field_name=True)["input"][0] == {
        "name": "IMAGE",
        "data_type": "TYPE_UINT8",
        "dims": ["-1", "-1", "3"],
    }
    assert (await running.http.get("/v2/models/other/config")).status_code == 404
    with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
        await _grpc(running, "ModelConfig", pb.ModelConfigRequest(name="x"), pb.ModelConfigResponse)


async def test_statistics(serve, texts):
    running = await serve()
    path = "/v2/models/judged/stats"
    (before,) = (await running.http.get(path)).json()["model_stats"]
    assert before["inference_count"] == before["inference_stats"]["success"]["count"] == 0
    for prompts in (["a", "b"], ["a", "broken"]):
        inputs = [
            {"name": name, "datatype": "BYTES", "shape": [2], "data": data}
            for name, data in (("IMAGE", texts[:2]), ("PROMPT", prompts))
        ]
        await running.http.post(INFER, json={"inputs": inputs})
    (after,) = (await running.http.get("/v2/models/stats")).json()["model_stats"]
    assert after["inference_count"] == 3
    assert after["execution_count"] >= 2
    assert after["inference_stats"]["success"]["ns"] > 0
    assert after["last_inference"] > 0
    over_grpc = await _grpc(
        running, "ModelStatistics", pb.ModelStatisticsRequest(), pb.ModelStatisticsResponse
    )
    assert over_grpc.model_stats[0].inference_count == 3


async def test_the_repository_has_one_model(serve):
    running = await serve()
    index = (await running.http.post("/v2/repository/index")).json()
    assert index == [{"name": "judged", "version": __version__, "state": "READY", "reason": ""}]
    response = await running.http.post("/v2/repository/models/judged/unload")
    assert response.status_code == 415
    assert "one model" in response.json()["error"]
    running.service.state = State.LOADING
    asked = pb.RepositoryIndexRequest(ready=True)
    found = await _grpc(running, "RepositoryIndex", asked, pb.RepositoryIndexResponse)
    assert list(found.models) == []


async def test_reflection_and_health_know_every_service(serve):
    running = await serve(reflection=True)
    await running.grpc_front.set_serving(True)
    name = "inference.GRPCInferenceService"

    def look():
        with grpc.insecure_channel(running.target) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            pool = DescriptorPool(database)
            services = set(database.get_services())
            methods = pool.FindServiceByName(name).methods_by_name
            own = pool.FindServiceByName("reward.v1.RewardService").methods_by_name
            stub: Any = health_pb2_grpc.HealthStub(channel)
            status = stub.Check(health_pb2.HealthCheckRequest(service=name)).status
            return services, dict(methods), set(own), status

    services, methods, own, status = await asyncio.to_thread(look)
    assert {name, "reward.v1.RewardService", "grpc.health.v1.Health"} <= services
    assert own == {"Score", "ScoreGradient", "GetMetadata"}
    assert methods["ModelInfer"].input_type.full_name == "inference.ModelInferRequest"
    assert "ModelConfig" in methods
    assert status == health_pb2.HealthCheckResponse.SERVING
