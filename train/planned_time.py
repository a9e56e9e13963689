"""What a recipe would take, estimated without training it: a few seconds of timing on this machine, and operations.

A small member takes real training steps. Of a large one, a single Transformer layer of its sizes does, and of an encoder, one
runs forward: seconds per operation there, times the operations of the whole network. Layers differ little in that, but what
is around them (reading frames, optimizer steps between epochs, selection) is not in it.

Shapes: B = batch, T = steps, D = width of a member or encoder.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, PreTrainedConfig

from model.audio import SAMPLE_RATE_HZ, WHISPER_HOP, bucket_length
from model.network.enc import TransformerLayer
from model.network.member import build_member
from model.network.published import PUBLISHED, published_config
from model.spec import EncoderSpec, MemberSpec
from train.config import Recipe
from train.errors import DeviceError
from train.execution import CPU, device_of
from train.planned_shapes import frames_of, shapes

LARGEST_TIMED: Final = 20_000_000
"""Parameters above which no step of a member is tried: it would take minutes and gigabytes."""
_TIMED_OPERATIONS: Final = 10e9
"""Forward operations of what is timed on a CPU, at most (one row aside): seconds and some hundred MB."""
_TIMED: Final = 3
_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class PlannedTime:
    """Hours of one process.

    Attributes:
        hours: an estimate.
        basis: what was timed for it.
        device: where.
    """

    hours: float
    basis: str
    device: str


def training_time(recipe: Recipe, operations: Mapping[str, int], steps: int, length_s: float) -> PlannedTime:
    """Stages 1 and 2 of members that are trained in epochs, all folds, one after the other.

    On a CPU, of a process with one thread, as a worker is.

    Args:
        recipe: gives device, precision, sizes.
        operations: of a batch's forward pass, by member.
        steps: batches of both stages.
        length_s: seconds of an utterance.

    Raises:
        RecipeError: if the recipe's device is not here.
        DeviceError: if it refuses what would be timed.
    """
    device = device_of(recipe.compute.device)
    specs = {spec.name: spec for spec in recipe.member_specs()}
    smallest = specs[min(operations, key=lambda name: operations[name])]
    with torch.device("meta"):
        size = sum(p.numel() for p in build_member(smallest, recipe.encoder_specs()).parameters())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _timing(device):
            if size <= LARGEST_TIMED:
                per_operation = _member_step_s(recipe, smallest, operations[smallest.name], length_s, device)
                basis = "a training step of the smallest member"
            else:
                per_operation = _layer_step_s(recipe, smallest, length_s, device)
                basis = f"a training step of one Transformer layer of width {smallest.dim}"
    finally:
        torch.set_num_threads(threads)
    fits = recipe.meta.folds  # one on all speakers, and `folds` of them without one part of `folds`
    hours = sum(operations.values()) * per_operation * steps * fits / 3600
    where = f"{told(device)}, one thread" if device == CPU else told(device)
    return PlannedTime(hours, f"{basis} in {recipe.stage1.precision}", where)


@contextmanager
def _timing(device: torch.device) -> Iterator[None]:
    """Turns what torch raises where a device refuses into our error: cuBLAS without memory is a plain RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        said, _, _ = str(error).partition("\n")
        raise DeviceError(f"nothing could be timed on {device}: {said}") from error


def told(device: torch.device) -> str:
    """A device in words."""
    return "this CPU" if device == CPU else torch.cuda.get_device_name(device)


def passes_s(recipe: Recipe, counted: Mapping[str, float]) -> tuple[dict[str, float], str]:
    """Seconds of one utterance's pass through each encoder, and the device; on a CPU, with all its cores.

    Args:
        recipe: gives the device and the encoders' arithmetic.
        counted: operations of the pass, by encoder (`encoder_operations`).

    Raises:
        RecipeError: if the recipe's device is not here.
        DeviceError: if it refuses what would be timed.
    """
    device, rates = device_of(recipe.compute.device), {}
    seconds = {}
    for name, operations in counted.items():
        wanted = _DTYPES.get(recipe.encoders[name].compute_type, torch.float32)
        dtype = (
            torch.float32 if device == CPU and wanted == torch.float16 else wanted
        )  # CTranslate2 does likewise there
        if dtype not in rates:
            with _timing(device):
                rates[dtype] = _forward_rate(device, dtype)
        seconds[name] = operations / rates[dtype]
    return seconds, told(device)


def encoder_operations(encoder: EncoderSpec, length_s: float) -> float | None:
    """Operations of the pass of an utterance through an encoder of published sizes; None of others."""
    hub = [source.removeprefix("hub:").partition("@")[0] for source in encoder.sources if source.startswith("hub:")]
    names = [name for name in hub if name in PUBLISHED]
    if not names:
        return None
    config, samples = published_config(names[0]), round(length_s * SAMPLE_RATE_HZ)
    if encoder.kind == "speech-transformer":
        counter = FlopCounterMode(display=False)
        with torch.device("meta"), torch.no_grad(), counter:
            network = AutoModel.from_config(config).eval()  # type: ignore[no-untyped-call]
            network(torch.zeros(1, samples))
        return float(counter.get_total_flops())
    if encoder.kind == "text-transformer":
        return _transformer_operations(config, max(1.0, frames_of(encoder, length_s)))
    return _transformer_operations(config, bucket_length(samples) / WHISPER_HOP)


def _transformer_operations(config: PreTrainedConfig, steps: float) -> float:
    """Of an encoder's layers on `steps` steps: two per weight and step, and attention's two products."""
    with torch.device("meta"):
        network = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    encoder = network.get_encoder() if config.is_encoder_decoder else network
    looked_up = {id(p) for m in encoder.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    weights = sum(p.numel() for p in encoder.parameters() if id(p) not in looked_up)
    attention = 4.0 * config.num_hidden_layers * config.hidden_size * steps**2
    return float(2.0 * weights * steps + attention)


def _member_step_s(recipe: Recipe, spec: MemberSpec, operations: int, length_s: float, device: torch.device) -> float:
    """Seconds that a training step takes for each operation of its forward pass, of a member whose batch has `operations`."""
    encoders, batch = (
        {modality: recipe.encoder_specs()[modality] for modality in spec.modalities},
        recipe.stage1.batch_size,
    )
    member = build_member(spec, encoders).train().to(device)
    rows = _rows(operations / batch, batch, device)
    sizes = shapes(encoders, rows, length_s)
    frames = {name: torch.randn(shape, device=device) for name, shape in sizes.items()}
    masks = {name: torch.ones(shape[:2], dtype=torch.bool, device=device) for name, shape in sizes.items()}

    def loss() -> Tensor:
        logits, attributes = member(frames, masks)
        total: Tensor = logits.float().square().mean() + attributes.float().square().mean()
        return total

    return _step_s(member, loss, recipe.stage1.precision, device) / (operations * rows / batch)


def _layer_step_s(recipe: Recipe, spec: MemberSpec, length_s: float, device: torch.device) -> float:
    """Seconds that a training step takes for each operation of its forward pass, in a layer of a member's sizes."""
    encoders = {modality: recipe.encoder_specs()[modality] for modality in spec.modalities}
    sizes = shapes(encoders, recipe.stage1.batch_size, length_s)
    steps = sum(frames // encoders[name].stack for name, (_, frames, _) in sizes.items())
    layer = TransformerLayer(spec.dim, spec.heads, spec.feed_forward, spec.dropout).train().to(device)
    rows = _rows(_layer_operations(layer, 1, steps, spec.dim), recipe.stage1.batch_size, device)
    x, mask = (
        torch.randn(rows, steps, spec.dim, device=device),
        torch.ones(rows, steps, dtype=torch.bool, device=device),
    )
    seconds = _step_s(layer, lambda: layer(x, mask).float().square().mean(), recipe.stage1.precision, device)
    return seconds / _layer_operations(layer, rows, steps, spec.dim)


def _forward_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a layer of "large" encoders, forward."""
    dim, steps = 1024, 256
    layer = TransformerLayer(dim, 16, 4 * dim, 0.0).eval().to(device, dtype)
    rows = _rows(_layer_operations(layer, 1, steps, dim), 16, device)
    x = torch.randn(rows, steps, dim, device=device, dtype=dtype)
    mask = torch.ones(rows, steps, dtype=torch.bool, device=device)
    with torch.no_grad():
        return _layer_operations(layer, rows, steps, dim) / _median_s(lambda: layer(x, mask), device)


def _layer_operations(layer: nn.Module, rows: int, steps: int, dim: int) -> float:
    """Of a forward pass on `[B, T, D]`, counted as those of members are."""
    weights = sum(p.numel() for p in layer.parameters() if p.ndim == 2)
    return rows * (2.0 * weights * steps + 4.0 * dim * steps**2)


def _rows(of_one: float, wanted: int, device: torch.device) -> int:
    """A whole batch on a GPU, which fewer rows would not fill."""
    return wanted if device != CPU else min(wanted, max(1, int(_TIMED_OPERATIONS / of_one)))


def _step_s(network: nn.Module, loss: Callable[[], Tensor], precision: str, device: torch.device) -> float:
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            value = loss()
        value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()

    return _median_s(step, device)


def _median_s(step: Callable[[], object], device: torch.device) -> float:
    """Median seconds of several calls behind one that allocates."""
    seconds = []
    for _ in range(1 + _TIMED):
        start = time.perf_counter()
        step()
        if device != CPU:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])
