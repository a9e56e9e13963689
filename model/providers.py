"""Where graphs run: a wish becomes ONNX Runtime's execution providers and their options, here and nowhere else.

    wish        providers                  what has to be there
    "cpu"       CPU                        nothing
    "cuda"      CUDA, CPU                  onnxruntime-gpu, CUDA 13 and cuDNN 9 libraries, a driver
    "tensorrt"  TensorRT, CUDA, CPU        those, and TensorRT 10
    "auto"      "cuda" where this onnxruntime has it and there is a GPU, else "cpu"

What is asked for and missing is an error with its remedy, never another provider.

Source: ONNX Runtime's "CUDA Execution Provider" and "TensorRT Execution Provider" documentation.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, Self, get_args

import onnxruntime

from model.device_shapes import ROWS, Profile, rows_for
from model.onnx_session import CPU, CUDA, TENSORRT, Provider, ProviderError, remedy

Device = Literal["cpu", "cuda", "tensorrt"]
DEVICES: Final[tuple[Device, ...]] = get_args(Device)
AUTO: Final = "auto"
ConvSearch = Literal["DEFAULT", "HEURISTIC", "EXHAUSTIVE"]

_NAMES: Final[dict[Device, tuple[str, ...]]] = {
    "cpu": (CPU,),
    "cuda": (CUDA, CPU),
    "tensorrt": (TENSORRT, CUDA, CPU),
}
_BYTES_PER_MB: Final = 1 << 20
_LONGEST_S: Final = 20
_USUAL_BATCH: Final = 16


@dataclass(frozen=True, slots=True)
class FixedShape:
    """A shape whose work on a GPU is recorded once and replayed (CUDA graphs): so many utterances of so many seconds."""

    rows: int
    seconds: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads "8x4": 8 utterances of 4 s.

        Raises:
            ValueError: if it is no such shape.
        """
        rows, times, seconds = text.partition("x")
        if not (times and rows.isdecimal() and seconds.isdecimal()):
            raise ValueError(f"a fixed shape is UTTERANCESxSECONDS, like 8x4, got {text!r}")
        if int(rows) not in ROWS or not 1 <= int(seconds) <= _LONGEST_S:
            known = ", ".join(map(str, ROWS))
            raise ValueError(f"a fixed shape has {known} utterances of 1 to {_LONGEST_S} s, got {text!r}")
        return cls(int(rows), int(seconds))

    def __str__(self) -> str:
        return f"{self.rows}x{self.seconds}"


@dataclass(frozen=True, slots=True)
class GpuSettings:
    """How graphs run on a GPU; nothing of it matters on a CPU, where shapes to record are refused (`Execution`).

    Attributes:
        memory_mb: most memory that the arena of one graph takes, MiB; 0 has no limit.
        conv_search: how cuDNN chooses a convolution. "EXHAUSTIVE" times all of them for every new shape.
        engine_cache: folder where TensorRT keeps its engines, which take minutes to build.
        cuda_graphs: shapes whose encoder passes are recorded and replayed; none by default.
    """

    memory_mb: int = 0
    conv_search: ConvSearch = "HEURISTIC"
    engine_cache: Path = Path(".medusa/engines")
    cuda_graphs: tuple[FixedShape, ...] = ()


@dataclass(frozen=True, slots=True)
class Execution:
    """Where a bundle's graphs run, and how.

    Attributes:
        device: of the encoders.
        ensemble: of members and meta-classifier.
        gpu: what a GPU is told.
        max_batch: utterances that share a pass at most: TensorRT's engines are built for as many.
        bound: tensors are bound where they are, and shapes rounded up to few (`model.device_shapes`), None for what suits
            the device: not on a CPU, where rows that nobody asked for take their time.

    Raises:
        ProviderError: if shapes are to be recorded, and encoders run where nothing is.
    """

    device: Device = "cpu"
    ensemble: Device = "cpu"
    gpu: GpuSettings = field(default_factory=GpuSettings)
    max_batch: int = _USUAL_BATCH
    bound: bool | None = None

    def __post_init__(self) -> None:
        # TensorRT has a way of its own to record, which is not used; on a CPU only who measures binds tensors.
        if self.gpu.cuda_graphs and (self.device == "tensorrt" or not self.encoders_bound):
            shapes = ", ".join(map(str, self.gpu.cuda_graphs))
            came = ', which "auto" takes where no GPU is seen or this onnxruntime has no CUDA' * (self.device == "cpu")
            raise ProviderError(
                f'cuda_graphs names shapes to record ({shapes}), which only "cuda" can, and encoders run on '
                f'"{self.device}"{came}: set the device of the encoders to "cuda", or leave cuda_graphs empty'
            )
        most = rows_for(self.max_batch)
        if wide := [str(shape) for shape in self.gpu.cuda_graphs if shape.rows > most]:
            raise ProviderError(
                f"cuda_graphs names shapes to record ({', '.join(wide)}) that no batch has: of max_batch_size = "
                f"{self.max_batch} the largest has {most} rows; raise it, or leave them out"
            )

    def with_kernels(self, kernels: Mapping[str, str]) -> "Execution":
        """The same for a bundle: TensorRT does not have the operator of fused attention, and CUDA, which is beside it, does.

        Args:
            kernels: of the bundle's manifest.
        """
        fused = kernels.get("ensemble") == "fused"
        return replace(self, ensemble="cuda") if fused and self.ensemble == "tensorrt" else self

    @property
    def encoders_bound(self) -> bool:
        """Whether encoders run in few shapes, with bound tensors."""
        return self.device != "cpu" if self.bound is None else self.bound

    @property
    def ensemble_bound(self) -> bool:
        """The same of the ensemble."""
        return self.ensemble != "cpu" if self.bound is None else self.bound

    @property
    def recorded(self) -> tuple[FixedShape, ...]:
        """Shapes whose encoder passes are recorded."""
        return self.gpu.cuda_graphs

    @property
    def shared(self) -> bool:
        """Whether the ensemble can read frames where encoders left them."""
        return self.encoders_bound and self.ensemble_bound and memory_of(self.device) == memory_of(self.ensemble)


ON_CPU: Final = Execution()


def settled(wanted: str, gpus: int) -> Device:
    """The device of a wish.

    Args:
        wanted: "auto" or one of `DEVICES`.
        gpus: how many GPUs there are.

    Raises:
        ProviderError: if the wish is none, or what it needs is not there; the message says what to install.
    """
    if wanted == AUTO:
        return "cuda" if gpus > 0 and CUDA in onnxruntime.get_available_providers() else "cpu"
    for device in DEVICES:
        if wanted == device:
            _check_there(device, gpus)
            return device
    raise ProviderError(f"a device is {', '.join((AUTO, *DEVICES))}, got {wanted!r}")


def _check_there(device: Device, gpus: int) -> None:
    available = onnxruntime.get_available_providers()
    for name in _NAMES[device]:
        if name not in available:
            raise ProviderError(
                f'"{device}" needs {name}, and this onnxruntime has {", ".join(available)}: {remedy(name)}'
            )
    if device != "cpu" and gpus == 0:
        raise ProviderError(f'"{device}" needs a GPU, and none is seen: check nvidia-smi and CUDA_VISIBLE_DEVICES')


def memory_of(device: Device) -> str:
    """What ONNX Runtime calls the memory of a device's tensors."""
    return "cpu" if device == "cpu" else "cuda"


def providers_of(
    device: Device, gpu: GpuSettings, engines: str, profile: Profile, precision: str, *, graphs: bool = False
) -> tuple[Provider, ...]:
    """The providers of one graph, in order of preference.

    Args:
        device: where it runs.
        gpu: what a GPU is told.
        engines: folder of its engines inside `gpu.engine_cache`, its own.
        profile: the shapes of its inputs.
        precision: of the bundle's manifest: only what was exported in 16 bits, and compared so, is computed in 16 bits.
        graphs: whether shapes of it are replayed.
    """
    options: dict[str, dict[str, str]] = {
        CPU: {},
        CUDA: _cuda(gpu, graphs=graphs and device == "cuda"),
        TENSORRT: _tensorrt(gpu, gpu.engine_cache / engines, profile, precision),
    }
    return tuple((name, options[name]) for name in _NAMES[device])


def _cuda(gpu: GpuSettings, *, graphs: bool) -> dict[str, str]:
    options = {
        "arena_extend_strategy": "kSameAsRequested",  # the other doubles what it holds
        "cudnn_conv_algo_search": gpu.conv_search,
        "use_tf32": "0",  # ten bits of a float32: not what the parity figures were measured with
    }
    if gpu.memory_mb:
        options["gpu_mem_limit"] = str(gpu.memory_mb * _BYTES_PER_MB)
    if graphs:
        options["enable_cuda_graph"] = "1"
    return options


def _tensorrt(gpu: GpuSettings, folder: Path, profile: Profile, precision: str) -> dict[str, str]:
    options = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
        **{f"trt_profile_{at}_shapes": _listed(profile, place) for place, at in enumerate(("min", "opt", "max"))},
    }
    if precision in ("fp16", "bf16"):
        options[f"trt_{precision}_enable"] = "1"
    if precision == "fp16":
        options["trt_layer_norm_fp32_fallback"] = "1"
    if gpu.memory_mb:
        options["trt_max_workspace_size"] = str(gpu.memory_mb * _BYTES_PER_MB)
    return options


def _listed(profile: Profile, place: int) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, shapes[place]))}" for name, shapes in profile.items())


def most_rows(execution: Execution) -> int:
    """Rows of the largest batch, those included that round it up."""
    return rows_for(execution.max_batch)
