"""Recorded plans: a network's operations written down once and replayed in one native call.

The network is run once over operations that compute nothing: each notes what it would do and hands
out a name for its result. A step then costs one call, which lets go of the interpreter's lock once
(the CPU's twin of a CUDA graph). One plan serves steps of any size, since nothing in it depends on
the number of rows. What is recorded gives the same bits as the operations called one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fourbee.kernels import _native
from fourbee.kernels.native_attention import PagedAttention
from fourbee.kernels.operations import (
    Array,
    Attention,
    FloatArray,
    IntArray,
    Linear,
    LowRank,
    Network,
    Operations,
    Rotary,
    StepInterrupted,
)


@dataclass(eq=False)
class Slot:
    """The name of a result: `width` numbers for each row, or for each of the rows kept."""

    width: int
    kept: bool = False

    def reshape(self, *_: int) -> Slot:
        """Heads are a matter of reading: the numbers lie as they lay."""
        return self


@dataclass(frozen=True)
class Instruction:
    """A method of `_native.Plan` and its arguments, slots among them."""

    method: str
    arguments: tuple[Any, ...]

    def slots(self) -> Iterator[Slot]:
        for argument in self.arguments:
            for one in argument if isinstance(argument, list) else (argument,):
                if isinstance(one, Slot):
                    yield one


class Recorder:
    """Operations that write themselves down; of `Operations` only what a network calls.

    Adapters are refused: which rows take one changes from step to step, so that a network with
    adapters runs operation by operation.
    """

    def __init__(self) -> None:
        self.instructions: list[Instruction] = []
        self.frequencies: tuple[FloatArray, float] | None = None

    def embed(self, table: Any, token_ids: Array) -> Slot:
        return self._note("embed", Slot(table.shape[1]), table.weights)

    def rotary(self, inverse_frequencies: FloatArray, positions: IntArray, scale: float) -> Rotary:
        assert len(positions) == 1 and self.frequencies is None, "one query variant a plan"
        self.frequencies = (inverse_frequencies, scale)
        return Rotary(None, None)

    def norm(self, x_TD: Slot, weight_D: FloatArray, eps: float) -> Slot:
        return self._note("norm", Slot(x_TD.width, x_TD.kept), x_TD, weight_D, eps)

    def norm_linear(
        self, x_TD: Slot, norm_D: FloatArray, eps: float, linears: Sequence[Linear],
        deltas: Sequence[Sequence[LowRank]] | None = None,
    ) -> tuple[Slot, ...]:  # fmt: skip
        _refuse_adapters(deltas)
        outs = [Slot(one.weight.shape[0], x_TD.kept) for one in linears]
        weights = [one.weight.weights for one in linears]
        self.instructions.append(Instruction("norm_linear", (x_TD, norm_D, eps, weights, outs)))
        return tuple(outs)

    def qk_norm_rotary(
        self, query: Slot, key: Slot, query_norm: FloatArray, key_norm: FloatArray, eps: float,
        rotary: Rotary,
    ) -> tuple[Slot, Slot]:  # fmt: skip
        return (
            self._note("rotate", Slot(query.width), query, query_norm, eps),
            self._note("rotate", Slot(key.width), key, key_norm, eps),
        )

    def attention(self, layer: int, query: Slot, key: Slot, value: Slot) -> Slot:
        return self._note("attend", Slot(query.width), layer, query, key, value)

    def select_rows(self, x_TD: Slot, rows: Array) -> Slot:
        return self._note("select", Slot(x_TD.width, kept=True), x_TD)

    def linear_residual(
        self, x_TN: Slot, linear: Linear, residual_TD: Slot, delta: Sequence[LowRank] = ()
    ) -> Slot:
        _refuse_adapters([delta])
        out = Slot(residual_TD.width, x_TN.kept)
        return self._note("linear_residual", out, linear.weight.weights, x_TN, residual_TD)

    def gated_mlp(
        self, residual_TD: Slot, norm_D: FloatArray, eps: float, gate: Linear, up: Linear,
        down: Linear, deltas: Sequence[Sequence[LowRank]] | None = None,
    ) -> Slot:  # fmt: skip
        _refuse_adapters(deltas)
        three = (one.weight.weights for one in (gate, up, down))
        self.instructions.append(Instruction("gated_mlp", (residual_TD, norm_D, eps, *three)))
        return residual_TD

    def _note(self, method: str, out: Slot, *arguments: Any) -> Slot:
        self.instructions.append(Instruction(method, (*arguments, out)))
        return out


def _refuse_adapters(deltas: Sequence[Sequence[LowRank]] | None) -> None:
    assert not any(deltas or ()), "a recorded plan holds no adapters"


class Plan:
    """A recorded network; called as the network itself is."""

    def __init__(self, network: Network, ops: Operations) -> None:
        recorder = Recorder()
        one_row: Any = np.zeros(1, dtype=np.int64)
        result: Any = network(recorder, one_row, one_row, recorder.attention, one_row)
        assert recorder.frequencies is not None, "a network rotates its queries and keys"
        self._network, self._ops = network, ops
        self._frequencies = recorder.frequencies
        self._width = result.width
        # Native plans hold plain pointers: the weights and norms live as long as this does.
        self._instructions = tuple(recorder.instructions)
        self._native = _native.Plan()
        self._result = _compile(self._instructions, result, self._native)

    def __call__(
        self,
        ops: Operations,
        token_ids: IntArray,
        positions: Array,
        attention: Attention,
        rows: IntArray,
    ) -> FloatArray:
        """The result `[R, D]`; StepInterrupted when it was told to end.

        Plans hold plain causal attention: steps with patterns or slopes run operation by operation.
        """
        assert isinstance(attention, PagedAttention) and ops is self._ops
        if not attention.plain:
            out: FloatArray = self._network(ops, token_ids, positions, attention, rows)
            return out
        frequencies, scale = self._frequencies
        rotary = ops.rotary(frequencies, np.atleast_2d(positions)[:1], scale)
        out = np.empty((len(rows), self._width), dtype=np.float32)
        if not self._native.run(
            attention.pool, token_ids, rows, rotary.cos[0], rotary.sin[0], *attention.sequences,
            self._result, out,
        ):  # fmt: skip
            raise StepInterrupted
        attention.advance()
        return out


def _compile(instructions: Sequence[Instruction], result: Slot, native: _native.Plan) -> int:
    """Writes the instructions into a native plan; the number of the result's buffer.

    A buffer whose slot is not read again serves the next slot of its width and rows, so that a
    plan needs the memory of one layer.
    """
    last_use = {slot: index for index, one in enumerate(instructions) for slot in one.slots()}
    last_use[result] = len(instructions)
    numbers: dict[Slot, int] = {}
    free: dict[tuple[int, bool], list[int]] = {}
    for index, instruction in enumerate(instructions):
        for slot in instruction.slots():
            if slot not in numbers:
                unused = free.get((slot.width, slot.kept))
                numbers[slot] = unused.pop() if unused else native.buffer(slot.width, slot.kept)
        arguments = [_numbered(argument, numbers) for argument in instruction.arguments]
        getattr(native, instruction.method)(*arguments)
        for slot in set(instruction.slots()):
            if last_use[slot] == index:
                free.setdefault((slot.width, slot.kept), []).append(numbers[slot])
    return numbers[result]


def _numbered(argument: Any, numbers: dict[Slot, int]) -> Any:
    """An argument with buffers' numbers in the place of slots."""
    if isinstance(argument, list):
        return [_numbered(one, numbers) for one in argument]
    return numbers[argument] if isinstance(argument, Slot) else argument
