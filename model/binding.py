"""Graphs whose tensors are bound where they are: what one graph leaves on a device, the next one reads there.

It works on a CPU in the same way, where nothing is copied either.

Shapes: B = utterances, R = rows of the batch (`model.device_shapes.rows_for`), F = frames, d = width of a frame.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime

from model.features import Frames

Array = npt.NDArray[Any]
Shape = tuple[tuple[int, ...], ...]
"""Of every input, in the order of the feed."""

_HOST: Final = "cpu"
_GRAPH: Final = "gpu_graph_id"
"""The run option that says which recorded work is replayed."""
_NOT_RECORDED: Final = "-1"


@dataclass(frozen=True, slots=True)
class BoundFrames:
    """One encoder's frames of a batch, where the encoder left them.

    Attributes:
        frames: `float32 [R, F, d]`; what a mask leaves out holds anything finite.
        mask: `bool [R, F]`.
        count: B: how many rows are utterances; the rest are copies of the last.
    """

    frames: onnxruntime.OrtValue
    mask: onnxruntime.OrtValue
    count: int

    def host(self) -> list[Frames]:
        """The frames of each utterance, `float32 [F, d]`, copied to the host."""
        rows, mask = self.frames.numpy()[: self.count], self.mask.numpy()[: self.count]
        return [np.ascontiguousarray(row[keep], np.float32) for row, keep in zip(rows, mask, strict=True)]


class BoundGraph:
    """A session that is run with bound tensors.

    Args:
        session: of the graph.
        memory: where outputs stay, "cpu" or "cuda".
        recorded: input shapes whose work is recorded and replayed (CUDA graphs). Tensors of such a shape live at fixed
            addresses: the next run of the shape overwrites its outputs, so whoever reads them keeps others out until then.
            Only one thread ever runs such a session, as ONNX Runtime demands.

    Attributes:
        memory: as given.
    """

    def __init__(self, session: onnxruntime.InferenceSession, memory: str, recorded: Iterable[Shape] = ()) -> None:
        self._session, self.memory = session, memory
        self._records = {shape: _Record(str(number)) for number, shape in enumerate(recorded)}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="recorded") if self._records else None

    def run(
        self, feed: Mapping[str, Array | onnxruntime.OrtValue], outputs: Sequence[str], *, to_host: bool = False
    ) -> list[onnxruntime.OrtValue]:
        """The named outputs.

        Args:
            feed: input -> an array of the host's, or a tensor that lies where an earlier graph left it.
            outputs: what is wanted; nothing else is kept.
            to_host: copy them to the host's memory.
        """
        if self._thread is None:
            return self._run(feed, outputs, to_host)
        return self._thread.submit(self._run_one, feed, outputs, to_host).result()

    def _run_one(
        self, feed: Mapping[str, Array | onnxruntime.OrtValue], outputs: Sequence[str], to_host: bool
    ) -> list[onnxruntime.OrtValue]:
        record = self._records.get(tuple(tuple(_shape(value)) for value in feed.values()))
        if record is None:
            return self._run(feed, outputs, to_host, _options(_NOT_RECORDED))
        if record.binding is None:
            self._fix(record, feed, outputs)
        for name, value in feed.items():
            array = value if isinstance(value, np.ndarray) else value.numpy()
            record.inputs[name].update_inplace(np.ascontiguousarray(array))
        self._session.run_with_iobinding(record.binding, _options(record.number))
        if not to_host:
            return list(record.outputs)
        return [_copied(value) for value in record.outputs]

    def _fix(self, record: "_Record", feed: Mapping[str, Array | onnxruntime.OrtValue], outputs: Sequence[str]) -> None:
        """Gives a shape its tensors; an unrecorded run says how large its outputs are, and warms the arena."""
        record.outputs = self._run(feed, outputs, to_host=False, options=_options(_NOT_RECORDED))
        binding = self._session.io_binding()
        for name, value in feed.items():
            array = value if isinstance(value, np.ndarray) else value.numpy()
            # On a CPU the tensor would be the caller's array itself.
            record.inputs[name] = onnxruntime.OrtValue.ortvalue_from_numpy(array.copy(), self.memory, 0)
            binding.bind_ortvalue_input(name, record.inputs[name])
        for name, tensor in zip(outputs, record.outputs, strict=True):
            binding.bind_ortvalue_output(name, tensor)
        record.binding = binding

    def _run(
        self,
        feed: Mapping[str, Array | onnxruntime.OrtValue],
        outputs: Sequence[str],
        to_host: bool,
        options: onnxruntime.RunOptions | None = None,
    ) -> list[onnxruntime.OrtValue]:
        binding = self._session.io_binding()
        held = []  # an array that is bound is read where it is, and nothing else keeps it until then
        for name, value in feed.items():
            if isinstance(value, np.ndarray):
                held.append(np.ascontiguousarray(value))
                binding.bind_cpu_input(name, held[-1])
            else:
                binding.bind_ortvalue_input(name, value)
        for name in outputs:
            binding.bind_output(name, _HOST if to_host else self.memory, 0)
        self._session.run_with_iobinding(binding, options)
        del held
        return list(binding.get_outputs())


@dataclass(slots=True)
class _Record:
    """The tensors of one recorded shape; none before its first run."""

    number: str
    binding: onnxruntime.IOBinding | None = None
    inputs: dict[str, onnxruntime.OrtValue] = field(default_factory=dict)
    outputs: list[onnxruntime.OrtValue] = field(default_factory=list)


class Turn:
    """Keeps a second batch out while tensors at fixed addresses are read; lets all in where none are fixed."""

    def __init__(self, *, needed: bool) -> None:
        self._lock = threading.Lock() if needed else None

    def __enter__(self) -> None:
        if self._lock is not None:
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()


def _shape(value: Array | onnxruntime.OrtValue) -> Sequence[int]:
    return value.shape if isinstance(value, np.ndarray) else value.shape()


def _copied(value: onnxruntime.OrtValue) -> onnxruntime.OrtValue:
    """On the host, in memory of its own: a tensor made from an array would be that array's, and end with it."""
    array = value.numpy()
    copy = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(array.shape), array.dtype, _HOST, 0)
    copy.update_inplace(array)
    return copy


def _options(graph: str) -> onnxruntime.RunOptions:
    options = onnxruntime.RunOptions()
    options.add_run_config_entry(_GRAPH, graph)
    return options
