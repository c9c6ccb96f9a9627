"""Whole models as people export them: each output is ONNX Runtime's, at batch one and, where the export allows it, three."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import jaxq

QUICK = {
    "gru.ts",
    "lstm.ts",
    "timm_resnet18.ts",
    "mnist_cnn/mnist",
    "kws_dscnn/kws_dscnn",
    "silero_vad/silero_vad_16k_op15",
}
ARCHITECTURES = [
    "bert.ts",
    "clip.ts",
    "gpt2.ts",
    "gru.ts",
    "llama.ts",
    "lstm.ts",
    "sd_vae.ts",
    "segformer.dyn",
    "t5enc.ts",
    "timm_convnext_tiny.dyn",
    "timm_deit3_small_patch16_224.ts",
    "timm_densenet121.ts",
    "timm_efficientnet_b0.dyn",
    "timm_inception_v3_299.ts",
    "timm_mixer_s16_224.ts",
    "timm_mobilenetv3_large_100.ts",
    "timm_regnety_004.dyn",
    "timm_resnet18.ts",
    "timm_resnet50.dyn",
    "timm_swin_tiny_patch4_window7_224.ts",
    "timm_vit_tiny_patch16_224.dyn",
    "tv_deeplabv3_resnet50.ts",
    "tv_shufflenet_v2_x1_0.dyn",
    "wav2vec2.ts",
    "yolov5n.ts",
    "yolov8n.ts",
]
MODELS = [
    "cifar_resnet20/resnet20",
    "cifar_resnet8_tiny/resnet8_tiny",
    "dncnn_s25/dncnn_s25",
    "fastestdet/FastestDet",
    "gtcrn/gtcrn_simple",
    "kws_dscnn/kws_dscnn",
    "minilm_l6/minilm_l6",
    "mnist_cnn/mnist",
    "mobilenetv1_x0.25/mobilenetv1_x0.25",
    "mobilenetv2_1.0_dq/mobilenetv2_1.0_dq",
    "openwakeword/embedding_model",
    "silero_vad/silero_vad_16k_flat",
    "silero_vad/silero_vad_16k_op15",
    "squeezenet1.1/squeezenet1.1",
    "supres_espcn/espcn_x3",
    "vit_cifar/vit_cifar_a",
    "yolox_nano/yolox_nano",
]

# Free dimensions, by name; one that is not named is the batch on axis 0, and else SIZE.
SIZES = {
    "wav2vec2.ts": {"s": 4000},
    "silero_vad/silero_vad_16k_op15": {"sequence": 576},
    "silero_vad/silero_vad_16k_flat": {"sequence": 576},
}
SIZE = 16
LARGEST_TOKEN = 100
PIXELS = {"yolox_nano/yolox_nano"}  # images from 0 to 255: of small values its float32 sums keep little
VALUES = {"sr": np.array(16000, np.int64)}


def names(each: list[str]):
    return [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in each]


def inputs_of(model: onnx.ModelProto, name: str, batch: int) -> dict[str, np.ndarray]:
    """Random inputs: images and waves are normal, tokens small integers, masks ones."""
    random, feed = np.random.default_rng(batch), {}
    weights = {tensor.name for tensor in model.graph.initializer}
    for given in model.graph.input:
        if given.name in weights:
            continue
        kind = given.type.tensor_type
        axes = [dim.dim_value or dim.dim_param for dim in kind.shape.dim]
        sizes = SIZES.get(name, {})
        is_batch = [size == axes[0] or size == "batch" for size in axes]
        shape = [
            size if isinstance(size, int) else (batch if first else sizes.get(size, SIZE))
            for size, first in zip(axes, is_batch, strict=True)
        ]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if given.name in VALUES:
            feed[given.name] = VALUES[given.name]
        elif dtype == np.int64:
            masks = "mask" in given.name
            feed[given.name] = np.ones(shape, dtype) if masks else random.integers(1, LARGEST_TOKEN, shape)
        elif name in PIXELS:
            feed[given.name] = random.uniform(0, 255, shape).astype(dtype)
        else:
            feed[given.name] = random.standard_normal(shape).astype(dtype)
    return feed


def assert_runs_alike(path: Path, name: str, batch: int) -> None:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = inputs_of(onnx.load(path, load_external_data=False), name, batch)
    if batch > 1 and any(given.shape and given.shape[0] == 1 for given in session.get_inputs()):
        pytest.skip("the batch of this export is fixed")
    try:
        wanted = session.run(None, feed)
    except Exception as error:
        if batch == 1:
            raise
        pytest.skip(f"the batch is written into a shape of this export: {error}"[:200])
    found = jaxq.load(path)(feed)
    for made, value in zip(session.get_outputs(), wanted, strict=True):
        mine = np.asarray(found[made.name])
        assert mine.dtype == value.dtype
        assert mine.shape == value.shape
        largest = np.abs(value).max()
        assert np.abs(mine.astype(np.float64) - value).max() <= 1e-4 * largest, made.name


@pytest.fixture(scope="session")
def skeleton(shared_data):
    """The tool that puts random weights where those of the public model were."""
    path = shared_data.parent / "tools" / "skeleton.py"
    if not path.is_file():
        pytest.skip("needs shared/tools/skeleton.py")
    specification = importlib.util.spec_from_file_location("skeleton", path)
    module = importlib.util.module_from_spec(specification)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)  # the folder is not ours
        specification.loader.exec_module(module)
    return module


def test_every_file_is_listed(shared_data):
    found = {path.name.removesuffix(".onnx.xz") for path in (shared_data / "architectures").glob("*.onnx.xz")}
    assert found == set(ARCHITECTURES)
    models = {str(path.relative_to(shared_data / "models"))[:-5] for path in (shared_data / "models").glob("*/*.onnx")}
    assert models == set(MODELS)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", names(ARCHITECTURES))
def test_architecture_runs_as_in_the_runtime(shared_data, skeleton, tmp_path, name, batch):
    path = tmp_path / "model.onnx"
    onnx.save(skeleton.build(str(shared_data / "architectures" / f"{name}.onnx.xz")), path)
    assert_runs_alike(path, name, batch)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", names(MODELS))
def test_model_runs_as_in_the_runtime(shared_data, name, batch):
    assert_runs_alike(shared_data / "models" / f"{name}.onnx", name, batch)
