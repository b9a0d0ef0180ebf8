"""Options that change how a run computes, not what: attention kernels, compilation, offload, 8 bits."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from flow_trainer.doctor.fake_device import layer_norm
from flow_trainer.errors import ConfigError, RatioError
from flow_trainer.loop.ratio import check_ratio
from flow_trainer.loop.updates.optimizers import make_optimizer
from flow_trainer.models import diffusers_policy, kernels
from flow_trainer.models.kernels import compile_blocks, compiles, use_attention
from flow_trainer.models.load import load_policy
from flow_trainer.models.policy import Policy
from flow_trainer.recipe import Model, Update, parse_recipe
from flow_trainer.recipe.prompts import Prompt
from flow_trainer.record.optimizer_state import load_state_tensors, state_tensors
from tiny_pipelines import MODELS, build

CPU = torch.device("cpu")
LoadTiny = Callable[..., Policy]


def with_dynamo(test: Callable[..., None]) -> Callable[..., None]:
    """For tests that compile: they take longer, and Dynamo looks at what warns."""
    for what in (
        "`torch.jit.script_method` is deprecated:DeprecationWarning",
        "The .grad attribute of a Tensor:UserWarning",
    ):
        test = pytest.mark.filterwarnings(f"ignore:{what}")(test)
    return pytest.mark.timeout(300)(test)


@pytest.fixture(scope="module")
def load_tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadTiny:
    """A tiny policy of a family with some options; always the same weights."""
    folders: dict[str, Path] = {}

    def load(family: str, **options: Any) -> Policy:
        if family not in folders:
            folders[family] = build(family, tmp_path_factory.mktemp(family))
        config = Model.model_validate(
            {
                "family": family,
                "path": str(folders[family]),
                "height": 8,
                "width": 8,
                "lora_rank": 2,
                **MODELS[family],
                **options,
            }
        )
        torch.manual_seed(0)
        policy = load_policy(config, CPU, with_reference=True)
        with torch.no_grad():
            for parameter in policy.trainable().values():
                parameter += 0.1 * torch.randn_like(parameter)
        return policy

    return load


def velocity(policy: Policy, *, grad: bool = False) -> torch.Tensor:
    torch.manual_seed(1)
    x, sigma = torch.randn(2, *policy.latent_shape), torch.tensor([0.9, 0.4])
    with torch.set_grad_enabled(grad):
        return policy.velocity(x, sigma, policy.encode(["red", "blue"]))


@pytest.mark.parametrize("family", list(MODELS))
def test_attention_kernels_agree_and_are_really_used(
    load_tiny: LoadTiny, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = load_tiny(family)
    math = load_tiny(family, attention="native_math", gradient_checkpointing=True)
    expected = velocity(plain)
    velocity(math)  # encodes the prompts, which has attention too
    calls: list[bool] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def spy(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(torch.backends.cuda.flash_sdp_enabled())
        return attend(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    found = velocity(math, grad=True)
    forward = len(calls)
    found.sum().backward()
    assert len(calls) == 2 * forward  # checkpointing repeats them
    assert not any(calls)
    torch.testing.assert_close(found.detach(), expected, atol=1e-4, rtol=1e-4)
    calls.clear()
    velocity(plain)
    assert all(calls), "the choice belongs to one model"


def test_missing_kernels_are_explained(load_tiny: LoadTiny) -> None:
    with pytest.raises(ConfigError, match="SD3Transformer2DModel with torch alone; use native or"):
        load_tiny("sd3", attention="xformers")
    if importlib.util.find_spec("flash_attn") is None:
        with pytest.raises(ConfigError, match=r"model\.attention = 'flash'.*install"):
            load_tiny("flux", attention="flash")


def test_native_leaves_the_model_alone() -> None:
    layer = nn.Linear(1, 1)
    before = dict(vars(layer))
    use_attention(layer, "native")
    assert vars(layer) == before


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_normed_states_are_cast_once(
    load_tiny: LoadTiny, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    monkeypatch.setattr(F, "layer_norm", layer_norm)  # in float32, as on a GPU
    policy: Any = load_tiny(family, dtype="bfloat16", autocast_on_cpu=True)
    modules = dict(policy._tuning.transformer.named_modules())
    seen: list[torch.dtype] = []
    for name, module in modules.items():
        if name.endswith("attn.to_q"):
            for taker in (module.base_layer, *module.lora_A.values()):
                taker.register_forward_pre_hook(lambda m, args: seen.append(args[0].dtype))
    once = velocity(policy, grad=True)
    assert set(seen) == {torch.bfloat16}
    gradients = torch.autograd.grad(once.square().sum(), list(policy.trainable().values()))
    seen.clear()
    for module in modules.values():
        if hasattr(module, "to_q"):
            module._forward_pre_hooks.clear()
    each_time = velocity(policy, grad=True)
    assert set(seen) == {torch.float32}
    assert torch.equal(once, each_time)
    expected = torch.autograd.grad(each_time.square().sum(), list(policy.trainable().values()))
    found, wanted = (torch.cat([g.flatten() for g in gs]) for gs in (gradients, expected))
    assert torch.cosine_similarity(found, wanted, 0) > 0.9999


@with_dynamo
@pytest.mark.parametrize("family", ["flux", "flux2_klein"])
def test_compiled_blocks_serve_rollout_and_replay(
    load_tiny: LoadTiny, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    from torch._dynamo.utils import counters

    plain = load_tiny(family)
    compile_blocks(nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(1, 1)])}))  # options are known
    # traced and differentiated as ever, but without minutes of a C++ compiler
    monkeypatch.setattr(kernels, "COMPILE", {"dynamic": False, "backend": "aot_eager"})
    policy = load_tiny(family, compile=True)
    assert policy.trainable().keys() == plain.trainable().keys()
    counters.clear()
    sampled, replayed = velocity(policy), velocity(policy, grad=True)
    assert (
        counters["stats"]["unique_graphs"] == 4
    )  # two kinds of blocks, with and without gradients
    assert torch.equal(replayed, sampled)
    torch.testing.assert_close(sampled, velocity(plain), atol=1e-6, rtol=1e-5)
    replayed.square().sum().backward()
    assert all(p.grad is not None for p in policy.trainable().values())


def test_auto_compiles_on_a_gpu_with_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, sd3 = torch.device("cuda"), Model(path="m")
    assert not compiles(sd3, CPU)
    assert compiles(Model(path="m", compile=True), CPU)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(kernels, "has_compiler", lambda: True)
    assert compiles(sd3, cuda)
    assert not compiles(Model(path="m", compile=False), cuda)
    assert not compiles(Model(path="m", family="qwen_image"), cuda)
    assert not compiles(Model(path="m", family="z_image"), cuda)
    monkeypatch.setattr(kernels, "has_compiler", lambda: False)
    assert not compiles(sd3, cuda)


@with_dynamo
@pytest.mark.parametrize("right", [True, False])
def test_auto_gives_up_compiled_blocks_that_move_the_ratio(
    recipe_data: dict[str, Any], monkeypatch: pytest.MonkeyPatch, right: bool
) -> None:
    data = {**recipe_data, "model": {**recipe_data["model"], "compile": "auto"}}
    recipe = parse_recipe(data)
    monkeypatch.setattr(diffusers_policy, "compiles", lambda config, device: True)
    monkeypatch.setattr(
        kernels, "COMPILE", {"dynamic": False, "backend": "eager" if right else _off}
    )
    policy = load_policy(recipe.model, CPU, with_reference=False)
    assert policy.compiled_by_choice
    found = check_ratio(policy, recipe, [Prompt("red"), Prompt("blue")])
    assert policy.compiled_by_choice == right
    assert found.ok
    assert (found.compiled_error is None) == right
    if not right:
        assert "goes on without compiled blocks" in found.explain()
        policy = load_policy(recipe.model, CPU, with_reference=False)
        policy.compiled_by_choice = False  # as with model.compile = true
        with pytest.raises(RatioError, match=r"set model\.compile = false"):
            check_ratio(policy, recipe, [Prompt("red"), Prompt("blue")])


@with_dynamo
def test_auto_goes_on_without_a_compiler_that_fails(
    load_tiny: LoadTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.exc import BackendCompilerFailed

    asked = []

    def fail(graph: Any, inputs: Any, **options: Any) -> Any:
        asked.append(options)
        raise OSError("no space left for kernels\nand more of it")

    monkeypatch.setattr(diffusers_policy, "compiles", lambda config, device: True)
    monkeypatch.setattr(kernels, "COMPILE", {"dynamic": False, "backend": fail})
    policy: Any = load_tiny("sd3", compile="auto")
    with pytest.warns(
        RuntimeWarning, match="failed with OSError: no space left for kernels. "
    ) as said:
        found = velocity(policy)
    assert torch.equal(found, velocity(load_tiny("sd3", compile=False)))
    velocity(policy, grad=True).square().sum().backward()
    assert len(asked) == 1
    assert sum(issubclass(one.category, RuntimeWarning) for one in said) == 1
    with pytest.raises(BackendCompilerFailed, match="no space left"):
        velocity(load_tiny("sd3", compile=True))


def _off(graph: Any, inputs: Any) -> Any:
    """A compiler whose code does not give the same twice."""

    def run(*args: Any) -> Any:
        return tuple(out + 0.1 * torch.rand_like(out) for out in graph(*args))

    return run


def test_offloaded_modules_visit_the_device_and_their_memory_stays(load_tiny: LoadTiny) -> None:
    policy: Any = load_tiny("sd3", offload=True)
    encoder = policy._pipeline.text_encoder
    tensors = [*encoder.parameters(), *encoder.buffers()]
    home = [tensor.data_ptr() for tensor in tensors]

    policy.device = torch.float64  # sends copies, as another device would have
    with policy._on_device(encoder, None):
        assert all(p.dtype == torch.float64 for p in encoder.parameters())
    policy.device = torch.device("cpu")
    assert [tensor.data_ptr() for tensor in tensors] == home
    torch.testing.assert_close(velocity(policy), velocity(load_tiny("sd3", offload=True)))


def test_offloaded_encoders_visit_once_for_a_set_of_prompts(load_tiny: LoadTiny) -> None:
    policy: Any = load_tiny("sd3", offload=True)
    visits, visit = [], policy._on_device

    def count(*modules: Any) -> Any:
        visits.append(len(modules))
        return visit(*modules)

    policy._on_device = count
    words = [f"word {number}" for number in range(70)]  # three batches
    assert policy.prepare_prompts(words).fits
    assert len(visits) == 1
    policy.encode(words)
    assert len(visits) == 1


def train_layer(config: Update, steps: int) -> tuple[dict[str, nn.Parameter], Any]:
    torch.manual_seed(0)
    layer = nn.Linear(128, 64)
    parameters = dict(layer.named_parameters())
    optimizer = make_optimizer(config, parameters)
    descend(parameters, optimizer, range(steps))
    return parameters, optimizer


def descend(parameters: dict[str, nn.Parameter], optimizer: Any, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        for parameter in parameters.values():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_optimizer_state_survives_a_file(name: str, tmp_path: Path) -> None:
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    config = Update.model_validate({"optimizer": name})
    whole, _ = train_layer(config, 5)
    half, optimizer = train_layer(config, 3)
    state = state_tensors(half, optimizer)
    small = state["weight.state1" if name == "adamw8bit" else "weight.exp_avg"]
    assert small.dtype == (torch.uint8 if name == "adamw8bit" else torch.float32)
    save_file(state, tmp_path / "optimizer.safetensors")
    resumed = make_optimizer(config, half)
    load_state_tensors(half, resumed, load_file(tmp_path / "optimizer.safetensors"))
    descend(half, resumed, range(3, 5))
    for key, parameter in whole.items():
        assert torch.equal(half[key], parameter)


def test_another_optimizers_state_is_refused() -> None:
    parameters, optimizer = train_layer(Update(), 1)
    state = {"weight.step": torch.tensor(1), "weight.state1": torch.zeros(64, 128)}
    with pytest.raises(ConfigError, match=r"another update\.optimizer"):
        load_state_tensors(parameters, optimizer, state)


def test_8_bits_without_the_package_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.optim", None)
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        make_optimizer(Update(optimizer="adamw8bit"), dict(nn.Linear(1, 1).named_parameters()))
