"""Arrays in mapped files, and the memory that a large model takes: its own size, not twice."""

import json
import mmap
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import Network
from onnx import TensorProto, helper

from jaxq.engine.execute import traced_params
from jaxq.engine.mapped import forget_pages, is_mapped, mapping
from jaxq.onnx_io.external_data import data_files
from jaxq.onnx_io.load import load
from jaxq.onnx_io.save import save
from jaxq.options import AdvancedQuantizationParameters
from jaxq.pipeline import quantize

SIDE = 4096  # of the square weights of the large model, 64 MiB each


@pytest.fixture
def file(tmp_path) -> np.ndarray:
    """A million numbers in a mapped file, behind a few bytes that are not ours."""
    path = tmp_path / "numbers.bin"
    path.write_bytes(bytes(20) + np.arange(1 << 20, dtype=np.float32).tobytes())
    with path.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, np.float32, offset=20)


def test_views_of_a_mapped_file_are_recognised(file):
    assert is_mapped(file)
    assert is_mapped(file[10:].reshape(2, -1))
    assert mapping(file) is mapping(file[5:])
    assert not is_mapped(file.copy())
    assert not is_mapped(np.zeros(3))


def test_forgotten_pages_are_read_again(file):
    before = file.sum(dtype=np.float64)
    for part in (file, file[1000:500000], file[:0], file[::2], file.copy()):
        forget_pages(part)
    assert file.sum(dtype=np.float64) == before


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux says how much of a file is in memory")
def test_params_that_are_on_the_device_take_no_room_in_the_file(file):
    file.sum()
    assert resident(file) >= file.nbytes
    placed = traced_params({"w": file})
    assert resident(file) < file.nbytes // 2
    np.testing.assert_array_equal(placed["w"], file)


def test_quantizing_gives_the_pages_of_the_weights_back(tmp_path):
    network = Network()
    network.node("MatMul", [network.input("x", ["N", 512]), network.weight("w", 512, 512)], "y")
    network.output("y", ["N", 512])
    onnx.save(network.proto(), tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    model = load(tmp_path / "m.onnx")
    random = np.random.default_rng(0)
    data = [random.normal(size=(1, 512)).astype(np.float32) for _ in range(10)]
    quantize(model, data, advanced_parameters=AdvancedQuantizationParameters(disable_bias_correction=True))
    assert is_mapped(model.params["w"])
    assert resident(model.params["w"]) < model.params["w"].nbytes // 2


def resident(array: np.ndarray) -> int:
    """Bytes of the mapped file around the array that are in memory, as Linux counts them."""
    address, inside = array.ctypes.data, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        bounds = line.split(" ")[0].split("-")
        if len(bounds) == 2:
            inside = int(bounds[0], 16) <= address < int(bounds[1], 16)
        elif inside and line.startswith("Rss:"):
            return int(line.split()[1]) << 10
    raise AssertionError("the array lies in no mapping")


# -------------------------------------------------------------------------------------------------------- large models


def chain_of_products(folder: Path, count: int) -> Path:
    """x [N, 4096] -> y, through `count` MatMul nodes; the weights, drawn from seeds, go to a second file one by one."""
    path, tensors = folder / "large.onnx", []
    with (folder / "large.bin").open("wb") as data:
        for index in range(count):
            weight = weight_of(index)
            tensor = TensorProto(name=f"w{index}", data_type=1, dims=weight.shape, data_location=TensorProto.EXTERNAL)
            for key, value in (("location", "large.bin"), ("offset", data.tell()), ("length", weight.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            data.write(weight.tobytes())
            tensors.append(tensor)
    path.write_bytes(chain(tensors).SerializeToString())
    return path


def weight_of(index: int) -> np.ndarray:
    return np.random.default_rng(index).standard_normal((SIDE, SIDE), np.float32) / np.float32(np.sqrt(SIDE))


def chain(tensors: list[TensorProto]) -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", [f"t{i}", f"w{i}"], [f"t{i + 1}"], f"m{i}") for i in range(len(tensors))]
    first, last = (helper.make_tensor_value_info(f"t{i}", 1, ["N", SIDE]) for i in (0, len(tensors)))
    graph = helper.make_graph(nodes, "chain", [first], [last], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def ones() -> dict[str, np.ndarray]:
    return {"t0": np.ones((1, SIDE), np.float32)}


def measured(path: str) -> None:
    """Loads, runs and writes the model, and prints the highest memory after each step, in bytes."""
    peak = []

    def note() -> None:
        peak.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)

    load(chain([]).SerializeToString())  # what jaxq and its packages take is no part of the model
    note()
    model = load(path)
    note()
    (output,) = model(ones()).values()
    note()
    save(model, f"{path}.copy.onnx")
    note()
    print(json.dumps([*peak, float(np.abs(output).sum())]))  # noqa: T201


@pytest.mark.slow
@pytest.mark.large
def test_a_model_of_3_gb_needs_no_more_than_one_and_a_half_times_its_size(tmp_path):
    if shutil.disk_usage(tmp_path).free < 10 << 30:
        pytest.skip("needs 7 GB of disk")
    path = chain_of_products(tmp_path, 48)
    size = (tmp_path / "large.bin").stat().st_size
    assert size > 3 * 10**9
    here = str(Path(__file__).parents[1])
    command = (
        f"import sys; sys.path.insert(0, {here!r}); import engine.test_mapped as tests; tests.measured({str(path)!r})"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    before, loaded, ran, saved, total = json.loads(done.stdout)
    print(f"{size=} {loaded - before=} {ran - before=} {saved - before=}")  # noqa: T201
    assert loaded - before < 0.05 * size
    assert ran - before < 1.5 * size
    assert saved - before < 1.5 * size
    copy = Path(f"{path}.copy.onnx")
    assert copy.stat().st_size < 1 << 20
    (data,) = data_files(copy)
    assert data.stat().st_size == size
    value = ones()["t0"]
    for index in range(48):
        value = value @ load(copy).params[f"w{index}"]
    np.testing.assert_allclose(np.abs(value).sum(), total, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.large
def test_a_model_over_2_gib_in_memory_is_read_and_written_with_external_data(tmp_path):
    """Protobuf cannot serialize such a model, but hold it."""
    weight = weight_of(0)
    tensors = [TensorProto(name=f"w{i}", data_type=1, dims=weight.shape, raw_data=weight.tobytes()) for i in range(33)]
    proto = chain(tensors)
    del tensors
    model = load(proto)
    del proto
    assert sum(value.nbytes for value in model.params.values()) > 1 << 31
    _, data = save(model, tmp_path / "large.onnx")
    assert data.stat().st_size > 1 << 31
    again = load(tmp_path / "large.onnx")
    assert all(is_mapped(value) for value in again.params.values())
    np.testing.assert_array_equal(again.params["w32"], weight)
