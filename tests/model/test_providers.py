"""A wish becomes providers and their options; what is not there is an error that says what to install.

No GPU is needed: options are looked at, and sessions are made where the CPU provider is what a wish comes down to.
"""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from model.device_shapes import Profile
from model.onnx_session import CPU, CUDA, TENSORRT, ProviderError, make_session
from model.providers import Device, Execution, FixedShape, GpuSettings, most_rows, providers_of, settled
from tests.model.tiny import tiny_bundle

PROFILE: Profile = {
    "audio": ((1, 400), (8, 64_000), (16, 320_000)),
    "audio_mask": ((1, 400), (8, 64_000), (16, 320_000)),
}
EVERYTHING = [TENSORRT, CUDA, CPU]


def options(device: Device, gpu: GpuSettings | None = None, precision: str = "fp32") -> dict[str, dict[str, str]]:
    found = providers_of(device, gpu or GpuSettings(), "bundle-1/wavlm", PROFILE, precision, graphs=True)
    return {name: dict(chosen) for name, chosen in found}


def test_a_wish_is_what_was_wished_or_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled("cpu", gpus=0) == settled("auto", gpus=0) == settled("auto", gpus=1) == "cpu"
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: EVERYTHING)
    assert [settled(wish, gpus=1) for wish in ("auto", "cpu", "cuda", "tensorrt")] == [
        "cuda",
        "cpu",
        "cuda",
        "tensorrt",
    ]
    assert settled("auto", gpus=0) == "cpu"
    with pytest.raises(ProviderError, match='"tensorrt" needs a GPU, and none is seen: check nvidia-smi'):
        settled("tensorrt", gpus=0)
    with pytest.raises(ProviderError, match="a device is auto, cpu, cuda, tensorrt, got 'gpu'"):
        settled("gpu", gpus=1)


def test_a_missing_provider_is_an_error_with_its_remedy() -> None:
    version = onnxruntime.__version__
    with pytest.raises(
        ProviderError, match=rf'"cuda" needs CUDA.*has .*CPU.*: install "medusa-rt\[gpu\]".*=={version};'
    ):
        settled("cuda", gpus=1)
    with pytest.raises(ProviderError, match=r'"tensorrt" needs Tensorrt.*: .*"tensorrt-cu13-libs>=10'):
        settled("tensorrt", gpus=1)
    with pytest.raises(ProviderError, match=r"has no CUDAExecutionProvider.*uninstall --yes onnxruntime &&"):
        make_session(tiny_bundle().bundle / "meta.onnx", 1, [(CUDA, {}), CPU])


def test_providers_come_with_the_cpu_behind_them() -> None:
    assert list(options("cpu")) == [CPU]
    assert list(options("cuda")) == [CUDA, CPU]
    assert list(options("tensorrt")) == [TENSORRT, CUDA, CPU]


def test_cuda_computes_what_was_measured_and_keeps_no_more_than_it_needs() -> None:
    chosen = options("cuda")[CUDA]
    assert chosen["use_tf32"] == "0"
    assert chosen["arena_extend_strategy"] == "kSameAsRequested"
    assert chosen["cudnn_conv_algo_search"] == "HEURISTIC"
    assert "gpu_mem_limit" not in chosen
    limited = options("cuda", GpuSettings(memory_mb=2, conv_search="DEFAULT"))[CUDA]
    assert limited["gpu_mem_limit"] == str(2 * 1024 * 1024)
    assert limited["cudnn_conv_algo_search"] == "DEFAULT"


def test_work_is_recorded_on_cuda_alone() -> None:
    assert options("cuda")[CUDA]["enable_cuda_graph"] == "1"
    assert "enable_cuda_graph" not in options("tensorrt")[CUDA]
    plain = dict(providers_of("cuda", GpuSettings(), "a/b", PROFILE, "fp32"))[CUDA]
    assert "enable_cuda_graph" not in plain


@pytest.mark.parametrize("precision", ["fp32", "fp16-weights", "int8", "fp16", "bf16"])
def test_tensorrt_computes_in_16_bits_only_what_was_exported_so(precision: str) -> None:
    chosen = options("tensorrt", precision=precision)[TENSORRT]
    assert chosen.get("trt_fp16_enable") == ("1" if precision == "fp16" else None)
    assert chosen.get("trt_bf16_enable") == ("1" if precision == "bf16" else None)


def test_an_engine_has_its_shapes_and_its_own_folder() -> None:
    chosen = options("tensorrt", GpuSettings(engine_cache=Path("/cache")))[TENSORRT]
    assert chosen["trt_profile_min_shapes"] == "audio:1x400,audio_mask:1x400"
    assert chosen["trt_profile_opt_shapes"] == "audio:8x64000,audio_mask:8x64000"
    assert chosen["trt_profile_max_shapes"] == "audio:16x320000,audio_mask:16x320000"
    assert chosen["trt_engine_cache_path"] == chosen["trt_timing_cache_path"] == "/cache/bundle-1/wavlm"
    assert chosen["trt_engine_cache_enable"] == chosen["trt_timing_cache_enable"] == "1"


def test_options_reach_the_session() -> None:
    session = make_session(tiny_bundle().bundle / "meta.onnx", 1, providers_of("cpu", GpuSettings(), "a/b", {}, "fp32"))
    assert session.get_providers() == [CPU]
    inputs = {
        node.name: np.zeros([size if isinstance(size, int) else 1 for size in node.shape], np.float32)
        for node in session.get_inputs()
    }
    assert session.run(None, inputs)


def test_shapes_are_recorded_where_they_can_be() -> None:
    gpu = GpuSettings(cuda_graphs=(FixedShape(1, 4),))
    assert Execution("cuda", gpu=gpu).recorded == gpu.cuda_graphs
    assert Execution("cuda", "cpu", gpu).recorded == gpu.cuda_graphs, "the encoders' device counts"
    assert Execution("tensorrt").recorded == Execution("cpu").recorded == ()


@pytest.mark.parametrize("device", ["cpu", "tensorrt"])
def test_shapes_that_cannot_be_recorded_are_refused(device: Device) -> None:
    gpu = GpuSettings(cuda_graphs=(FixedShape(1, 4), FixedShape(8, 4)))
    with pytest.raises(
        ProviderError, match=rf'\(1x4, 8x4\), which only "cuda" can, .* "{device}".*leave .* empty'
    ) as found:
        Execution(device, "cuda", gpu)
    assert ('"auto" takes' in str(found.value)) is (device == "cpu")
    with pytest.raises(ProviderError, match='only "cuda" can'):
        Execution("cuda", gpu=gpu, bound=False)


def test_fused_attention_runs_on_cuda_where_tensorrt_is_asked_for() -> None:
    asked = Execution("tensorrt", "tensorrt")
    assert asked.with_kernels({"ensemble": "fused"}) == Execution("tensorrt", "cuda")
    assert asked.with_kernels({"ensemble": "composed", "member a": "fused"}) == asked
    assert asked.with_kernels({}) == asked, "bundles from before say nothing and are composed"
    assert Execution("cuda", "cpu").with_kernels({"ensemble": "fused"}) == Execution("cuda", "cpu")


def test_shapes_that_no_batch_has_are_refused() -> None:
    gpu = GpuSettings(cuda_graphs=(FixedShape(1, 4), FixedShape(8, 4)))
    assert Execution("cuda", gpu=gpu, max_batch=5).recorded == gpu.cuda_graphs, "a batch of five has eight rows"
    with pytest.raises(ProviderError, match=r"\(8x4\) that no batch has: of max_batch_size = 4 the largest has 4 rows"):
        Execution("cuda", gpu=gpu, max_batch=4)


def test_a_cpu_rounds_nothing_up_and_a_device_does() -> None:
    assert not Execution().encoders_bound
    assert not Execution().ensemble_bound
    assert Execution("cuda", "cuda").shared
    assert Execution("tensorrt", "cuda").shared, "both have tensors in CUDA's memory"
    mixed = Execution("cuda", "cpu")
    assert (mixed.encoders_bound, mixed.ensemble_bound, mixed.shared) == (True, False, False)
    assert Execution(bound=True).shared
    assert not Execution("cuda", "cpu", bound=True).shared, "frames would lie where the ensemble cannot read them"
    assert most_rows(Execution(max_batch=9)) == 16


@pytest.mark.parametrize("text", ["", "4", "x", "3x4", "1x0", "1x21", "-1x4", "1x4.5", "1x4x2", "64x4"])
def test_a_shape_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a fixed shape"):
        FixedShape.parse(text)


def test_a_shape_is_utterances_and_seconds() -> None:
    assert FixedShape.parse("8x4") == FixedShape(rows=8, seconds=4)
