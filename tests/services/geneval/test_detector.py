"""The detector against mmdet's own inference, with the same weights and the same image files."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import cv2
import numpy as np
import pytest
import torch

from mask2former_checkpoint import FILE, published_name, write_checkpoint
from reward_services.chassis.weights import WeightsError
from reward_services.geneval import mmcv_ops
from reward_services.geneval.checkpoint import find_checkpoint, read_config, read_weights, renamed
from reward_services.geneval.detections import Detections
from reward_services.geneval.detector import (
    Mask2Former,
    Preprocessing,
    build,
    load_detector,
    tight_boxes,
)
from reward_services.geneval.openmmlab import Config

META = {"dataset_meta": {"classes": ("person",), "palette": [(220, 20, 60)]}}
SIZES = [(96, 128), (128, 96), (64, 64), (150, 200), (100, 77)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("mask2former"))


@pytest.fixture(scope="module")
def detector(folder: Path) -> Mask2Former:
    return load_detector(folder, device="cpu")


@pytest.fixture(scope="module")
def mmdet_model(folder: Path) -> Any:
    return mmdets_own(folder)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """RGB, of blocks with soft borders, so that resizing and the channel order matter."""
    return [picture(size, seed) for seed, size in enumerate(SIZES)]


def picture(size: tuple[int, int], seed: int) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(blocks, size[::-1], interpolation=cv2.INTER_CUBIC)


def mmdets_own(folder: Path) -> Any:
    """Built and loaded by mmdet: it knows the names of 3.x only."""
    checkpoint = find_checkpoint(folder)
    converted = folder.with_name(f"{folder.name}-3x.pth")
    torch.save({"state_dict": read_weights(checkpoint.weights), "meta": META}, converted)
    config = read_config(checkpoint.config)
    build(config)  # mmdet is imported quietly
    from mmdet.apis import init_detector

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return init_detector(config, str(converted), device="cpu")


def mmdets_answer(model: Any, image: Path | np.ndarray, *, as_float: bool = True) -> Detections:
    from mmdet.apis import inference_detector

    model = copy.copy(model)
    model.cfg = copy.deepcopy(model.cfg)  # inference_detector changes it when it is given arrays
    model.cfg.test_dataloader.dataset.pipeline[0].to_float32 = as_float
    answer: Any = inference_detector(model, image if isinstance(image, np.ndarray) else str(image))
    found = answer.pred_instances.numpy()
    kept = found.scores > np.float32(0.3)
    return Detections(found.labels[kept], found.scores[kept], found.bboxes[kept], found.masks[kept])


def assert_same(found: Detections, expected: Detections, tolerance: float = 0.0) -> None:
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    np.testing.assert_array_equal(found.masks, expected.masks)


def png(path: Path, image: np.ndarray) -> Path:
    cv2.imwrite(str(path), image[:, :, ::-1])
    return path


def test_equals_mmdet_on_the_same_file(
    detector: Mask2Former, mmdet_model: Any, images: Sequence[np.ndarray], tmp_path: Path
) -> None:
    for index, image in enumerate(images):
        expected = mmdets_answer(mmdet_model, png(tmp_path / f"{index}.png", image))
        (found,) = detector.detect([image])
        assert 3 < len(found.labels) < 60
        assert found.masks.shape == (len(found.labels), *image.shape[:2])
        assert_same(found, expected)
        types = [array.dtype for array in (found.labels, found.scores, found.boxes, found.masks)]
        assert types == [np.int64, np.float32, np.float32, np.bool_]


def test_a_batch_of_several_sizes_equals_single_images(
    detector: Mask2Former, images: Sequence[np.ndarray]
) -> None:
    batch = [*images, *(picture(size, 10 + seed) for seed, size in enumerate(SIZES))]
    for image, found in zip(batch, detector.detect(batch), strict=True):
        assert_same(found, detector.detect([image])[0], tolerance=1e-4)
    assert detector.detect([]) == []


def test_swapped_channels_are_what_mmdet_makes_of_rgb_arrays(
    folder: Path, mmdet_model: Any, detector: Mask2Former, images: Sequence[np.ndarray]
) -> None:
    swapped = load_detector(folder, device="cpu", swap_channels=True)
    image = images[0]
    (found,) = swapped.detect([image])
    assert_same(found, mmdets_answer(mmdet_model, image))
    assert not np.array_equal(found.scores, detector.detect([image])[0].scores)
    assert swapped.identity == f"{detector.identity} channels-swapped"


def test_the_benchmarks_own_preprocessing(mmdet_model: Any, tmp_path: Path) -> None:
    """mmdet 2.x resizes uint8, which mmdet 3.x does when its configuration does not ask for floats."""
    published = Preprocessing((128, 96), as_float=False, pad_with_grey=True)
    detector = Mask2Former(mmdet_model, published, identity="")
    image = picture((64, 64), 3)
    expected = mmdets_answer(mmdet_model, png(tmp_path / "x.png", image), as_float=False)
    assert_same(detector.detect([image])[0], expected)


def test_the_published_file_alone_is_prepared_as_in_the_benchmark() -> None:
    config = read_config(None)
    assert Preprocessing.of(config, published=True) == Preprocessing((1333, 800), False, True)
    assert Preprocessing.of(config, published=False) == Preprocessing((1333, 800), True, False)
    prepared = Preprocessing.of(config, published=True).prepare(picture((768, 1280), 0))
    assert prepared.pixels.shape == (800, 1333, 3)
    assert prepared.pixels.dtype == np.uint8
    assert prepared.size == (768, 1280)


def test_padding_is_grey_before_or_zero_after_normalisation(mmdet_model: Any) -> None:
    image = picture((90, 100), 0)
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float()
    mean = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    for grey in (True, False):
        preprocessing = Preprocessing((128, 96), as_float=False, pad_with_grey=grey)
        planes = Mask2Former(mmdet_model, preprocessing, identity="")._normalised(image[None])
        assert planes.shape == (1, 3, 96, 128)
        torch.testing.assert_close(planes[0, :, :90, :100], (pixels - mean) / std)
        border = ((128 - mean) / std if grey else torch.zeros(3, 1, 1)).expand(3, 96, 128)
        torch.testing.assert_close(planes[0, :, 90:], border[:, 90:])
        torch.testing.assert_close(planes[0, :, :, 100:], border[:, :, 100:])


def test_tight_boxes() -> None:
    masks = np.zeros((3, 5, 7), bool)
    masks[0, 1, 2] = masks[0, 3, 5] = masks[2] = True
    assert tight_boxes(masks).tolist() == [[2, 1, 6, 4], [0, 0, 0, 0], [0, 0, 7, 5]]


def test_bfloat16_stays_near_and_is_named(
    folder: Path, detector: Mask2Former, images: Sequence[np.ndarray]
) -> None:
    half = load_detector(folder, device="cpu", dtype="bfloat16")
    (found,), (exact,) = half.detect([images[0]]), detector.detect([images[0]])
    assert found.scores.dtype == np.float32
    assert abs(len(found.scores) - len(exact.scores)) <= 10
    assert set(found.labels) & set(exact.labels)
    assert half.identity == f"{detector.identity} bfloat16"


def test_an_image_without_objects(folder: Path, images: Sequence[np.ndarray]) -> None:
    blind = load_detector(folder, device="cpu")
    blind._model.panoptic_head.cls_embed.bias.data[-1] += 100
    for found, image in zip(blind.detect(images), images, strict=True):
        assert found.labels.shape == found.scores.shape == (0,)
        assert found.boxes.shape == (0, 4)
        assert found.masks.shape == (0, *image.shape[:2])


@pytest.mark.parametrize("layer", ["cls_embed", "mask_embed.4"])
def test_logits_that_are_not_finite_are_an_error(
    folder: Path, layer: str, images: Sequence[np.ndarray]
) -> None:
    broken = load_detector(folder, device="cpu")
    broken._model.panoptic_head.get_submodule(layer).bias.data[3] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        broken.detect([images[0]])


def test_both_layouts_and_formats_give_the_same_weights(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    published = torch.load(folder / FILE, weights_only=True)["state_dict"]
    attention = "panoptic_head.transformer_decoder.layers.0.attentions"
    assert f"{attention}.0.attn.in_proj_weight" in published
    weights = read_weights(folder / FILE)
    assert published.keys() & weights.keys() != published.keys()
    assert weights.keys() == build(read_config(folder / "config.py")).state_dict().keys()
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "w.safetensors"
    )
    again = read_weights(tmp_path / "w.safetensors")
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize(
    ("published", "name"),
    [
        (
            "encoder.layers.5.attentions.0.value_proj.bias",
            "encoder.layers.5.self_attn.value_proj.bias",
        ),
        ("encoder.layers.0.ffns.0.layers.0.0.bias", "encoder.layers.0.ffn.layers.0.0.bias"),
        ("encoder.layers.0.norms.1.bias", "encoder.layers.0.norms.1.bias"),
        (
            "decoder.layers.8.attentions.0.attn.in_proj_bias",
            "decoder.layers.8.cross_attn.attn.in_proj_bias",
        ),
        (
            "decoder.layers.8.attentions.1.attn.in_proj_bias",
            "decoder.layers.8.self_attn.attn.in_proj_bias",
        ),
        ("decoder.layers.3.ffns.0.layers.1.weight", "decoder.layers.3.ffn.layers.1.weight"),
        ("decoder.post_norm.weight", "decoder.post_norm.weight"),
        ("backbone.stages.2.blocks.17.attn.w_msa.qkv.bias",) * 2,
    ],
)
def test_names_of_mmdet_2(published: str, name: str) -> None:
    parts = {
        "encoder.": "panoptic_head.pixel_decoder.encoder.",
        "decoder.": "panoptic_head.transformer_decoder.",
    }
    for short, long in parts.items():
        if published.startswith(short):
            published, name = published.replace(short, long, 1), name.replace(short, long, 1)
    assert list(renamed({published: torch.empty(0)})) == [name]
    assert published_name(name) == published


@pytest.mark.parametrize("core", ["_core", "core"])
def test_numpy_beside_the_weights_loads(core: str, tmp_path: Path) -> None:
    """As numpy 2 names its internals and as numpy 1 did, with which the published file was made."""
    meta = {"best": np.float64(0.1), "seed": np.int64(3), "history": np.ones(2, np.float32)}
    torch.save({"meta": meta, "state_dict": {"x": torch.ones(1)}}, tmp_path / "new.pth")
    with ZipFile(tmp_path / "new.pth") as new, ZipFile(tmp_path / "old.pth", "w") as old:
        for entry in new.namelist():
            old.writestr(entry, new.read(entry).replace(b"numpy._core", b"numpy." + core.encode()))
    assert read_weights(tmp_path / "old.pth") == {"x": torch.ones(1)}


def test_code_in_a_checkpoint_is_refused(tmp_path: Path) -> None:
    trap = tmp_path / "trap"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (trap,)

    torch.save({"state_dict": {}, "meta": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(WeightsError, match="does not load"):
        read_weights(tmp_path / "trap.pth")
    assert not trap.exists()


def test_unfit_weights_are_named(folder: Path, tmp_path: Path) -> None:
    weights = torch.load(folder / FILE, weights_only=True)["state_dict"]
    missing = weights.pop("panoptic_head.cls_embed.bias")
    weights["panoptic_head.extra"] = missing
    (tmp_path / "config.py").write_bytes((folder / "config.py").read_bytes())
    torch.save(weights, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"\(2 differences\): no panoptic_head.cls_embed.bias"):
        load_detector(tmp_path, device="cpu")


def test_what_a_folder_must_hold(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no Mask2Former checkpoint"):
        find_checkpoint(tmp_path / "absent")
    with pytest.raises(WeightsError, match="nothing of the kind"):
        find_checkpoint(tmp_path)
    for name in ("a.pth", "config.py"):
        (tmp_path / name).write_bytes(b"x")
    assert find_checkpoint(tmp_path).config == tmp_path / "config.py"
    assert find_checkpoint(tmp_path / "a.pth").config is None
    with pytest.raises(WeightsError, match="does not load"):
        read_weights(tmp_path / "a.pth")
    torch.save([1], tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="no state_dict"):
        read_weights(tmp_path / "a.pth")
    (tmp_path / "b.safetensors").touch()
    with pytest.raises(WeightsError, match=r"one \.pth or \.safetensors"):
        find_checkpoint(tmp_path)


def test_plain_deformable_attention_equals_its_definition() -> None:
    """Deformable DETR (arXiv 2010.04159), equation 3: per query a weighted sum of values sampled
    bilinearly at fractional places of every level, zero outside."""
    mmcv_ops.make_importable()
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    draw = torch.Generator().manual_seed(1)
    shapes = torch.tensor([[3, 4], [6, 8]])
    images, heads, width, queries, points = 2, 3, 4, 5, 2
    values = torch.randn(images, 12 + 48, heads, width, generator=draw)
    places = torch.rand(images, queries, heads, 2, points, 2, generator=draw) * 1.4 - 0.2
    weights = torch.rand(images, queries, heads, 2, points, generator=draw)
    found = multi_scale_deformable_attn_pytorch(values, shapes, places, weights)
    expected = torch.zeros(images, queries, heads, width)
    for level, (start, (rows, columns)) in enumerate(zip((0, 12), shapes.tolist(), strict=True)):
        plane = values[:, start : start + rows * columns].view(images, rows, columns, heads, width)
        for image, query, head, point in np.ndindex(images, queries, heads, points):
            x, y = places[image, query, head, level, point].tolist()
            sample = bilinear(plane[image, :, :, head], x * columns - 0.5, y * rows - 0.5)
            expected[image, query, head] += weights[image, query, head, level, point] * sample
    torch.testing.assert_close(found, expected.flatten(2), rtol=1e-5, atol=1e-5)


def bilinear(plane: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """plane (rows, columns, channels); the pixel centres lie at whole x and y."""
    total = torch.zeros(plane.shape[-1])
    left, top = int(np.floor(x)), int(np.floor(y))
    for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
            total += (1 - abs(x - column)) * (1 - abs(y - row)) * plane[row, column]
    return total


def test_configurations_are_written_and_read_without_yapf(tmp_path: Path) -> None:
    values = {"scale": (1333, 800), "names": ["a b", "c"], "nested": {"deep": None}}
    Config(values).dump(tmp_path / "config.py")
    assert Config.fromfile(tmp_path / "config.py").to_dict() == values
    assert "yapf_third_party" not in sys.modules


def test_the_stand_in_for_the_extension() -> None:
    mmcv_ops.make_importable()
    mmcv_ops.make_importable()
    from mmcv import _ext  # type: ignore[attr-defined]

    if not mmcv_ops._is_stand_in(_ext):
        pytest.skip("mmcv's compiled extension is installed")
    assert not mmcv_ops.compiled_ops()
    with pytest.raises(NotImplementedError, match="operator nms is compiled"):
        _ext.nms(torch.zeros(1, 4))


@pytest.mark.gpu
def test_compiled_and_plain_attention_give_the_same_boxes(
    folder: Path, images: Sequence[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    mmcv_ops.make_importable()
    if not (torch.cuda.is_available() and mmcv_ops.compiled_ops()):
        pytest.skip("needs a GPU and mmcv's operators compiled for it")
    detector = load_detector(folder, device="cuda")
    compiled = detector.detect(images)
    monkeypatch.setattr("mmcv.ops.multi_scale_deform_attn.IS_CUDA_AVAILABLE", False)
    for found, expected in zip(detector.detect(images), compiled, strict=True):
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_shipped_configuration_at_full_size(tmp_path: Path) -> None:
    """68.7 M parameters: names and shapes, and the answer on a 256x256 PNG, which is seen at 800x800."""
    folder = write_checkpoint(tmp_path / "full", size="full")
    published = torch.load(folder / FILE, weights_only=True)["state_dict"]
    assert len(published) == 649
    buffers = [tensor for name, tensor in published.items() if name.endswith("position_index")]
    sizes = sum(map(torch.numel, published.values())) - sum(map(torch.numel, buffers))
    assert sizes == 68_739_547
    detector = load_detector(folder, device="cpu")
    image = picture((256, 256), 5)
    expected = mmdets_answer(mmdets_own(folder), png(tmp_path / "x.png", image))
    assert len(expected.labels) > 3
    assert_same(detector.detect([image])[0], expected, tolerance=1e-4)
    alone = load_detector(folder / FILE, device="cpu")
    assert alone.prepare(image).pixels.dtype == np.uint8
    assert alone.identity != detector.identity


def test_the_file_alone_is_taken_for_the_published_model(folder: Path) -> None:
    assert find_checkpoint(folder / FILE) == replace(find_checkpoint(folder), config=None)
    with pytest.raises(WeightsError, match="does not fit the configuration"):
        load_detector(folder / FILE, device="cpu")
