"""The Qwen3 graph in OpenVINO's operations: random 4-bit weights, keys and values as states.

The graph has the form that optimum-intel exports and openvino-genai runs, so that the CPU plugin's
fusions (decompressed products, RMSNorm, attention over states) find what they look for: u4 weights
in groups of 64 with zero points, embedding and head u8 a row, states gathered by `beam_idx`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov  # type: ignore[import-not-found,unused-ignore]
import openvino.opset13 as op  # type: ignore[import-not-found,unused-ignore]
from openvino.op.util import (  # type: ignore[import-not-found,unused-ignore]
    Variable,
    VariableInfo,
)

GROUP = 64
_DEVIATION = 0.02
_DRAWN = 1 << 22  # bytes that are drawn; they are repeated


class Builder:
    """Makes the model of a configuration, as in config.json."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.rng = np.random.default_rng(0)
        self.drawn = self.rng.integers(0, 256, _DRAWN, dtype=np.uint8)
        self.sinks: list[Any] = []
        # Constants of 4 bits lie where their arrays do: these must live as long as the model.
        self.arrays: list[Any] = []
        self.bits = self.weights = 0

    def build(self) -> Any:
        config = self.config
        ids = _input("input_ids", [-1, -1])
        positions = _input("position_ids", [-1, -1])
        self.beams = _input("beam_idx", [-1], ov.Type.i32)
        self.batch = op.gather(op.shape_of(ids, "i64"), _int([0]), _int(0))
        vocabulary, hidden_size = config["vocab_size"], config["hidden_size"]
        table = self._bytes(vocabulary, hidden_size)
        hidden = op.gather(table, op.convert(ids, "i32"), _int(0))
        self.cos, self.sin = self._rotary(positions)
        for layer in range(config["num_hidden_layers"]):
            hidden = self._layer(layer, hidden)
        # The last position alone reaches the head, as openvino-genai makes it.
        end = _int([np.iinfo(np.int64).max])
        last = op.slice(hidden, _int([-1]), end, _int([1]), _int([1]))
        final = self._norm(last, hidden_size)
        head = table if config["tie_word_embeddings"] else self._bytes(vocabulary, hidden_size)
        logits = op.matmul(final, head, False, True)
        return ov.Model([op.result(logits)], self.sinks, [ids, positions, self.beams])

    def _layer(self, layer: int, hidden: Any) -> Any:
        config = self.config
        width, heads = config["head_dim"], config["num_attention_heads"]
        kv_heads, size = config["num_key_value_heads"], config["hidden_size"]
        inner = config["intermediate_size"]
        x = self._norm(hidden, size)
        query = self._heads(op.matmul(x, self._halves(heads * width, size), False, True), heads)
        key = self._heads(op.matmul(x, self._halves(kv_heads * width, size), False, True), kv_heads)
        value = self._heads(
            op.matmul(x, self._halves(kv_heads * width, size), False, True), kv_heads, normed=False
        )
        query, key = self._rotated(query), self._rotated(key)
        keys = self._repeated(self._state(f"past_key_values.{layer}.key", key), heads)
        values = self._repeated(self._state(f"past_key_values.{layer}.value", value), heads)
        context = op.scaled_dot_product_attention(query, keys, values, causal=True)
        flat = op.reshape(
            op.transpose(context, _int([0, 2, 1, 3])), _int([0, 0, heads * width]), True
        )
        hidden = op.add(hidden, op.matmul(flat, self._halves(size, heads * width), False, True))
        x = self._norm(hidden, size)
        gate = op.swish(op.matmul(x, self._halves(inner, size), False, True))
        up = op.matmul(x, self._halves(inner, size), False, True)
        down = op.matmul(op.multiply(gate, up), self._halves(size, inner), False, True)
        return op.add(hidden, down)

    def _heads(self, x: Any, heads: int, normed: bool = True) -> Any:
        """`[B, T, H*K]` to `[B, H, T, K]`, with the norm a head where it is a query or a key."""
        width = self.config["head_dim"]
        x = op.reshape(x, _int([0, 0, heads, width]), True)
        return op.transpose(self._norm(x, width) if normed else x, _int([0, 2, 1, 3]))

    def _norm(self, x: Any, size: int) -> Any:
        squares = op.reduce_mean(op.power(x, _float(2.0)), _int([-1]), True)
        root = op.sqrt(op.add(squares, _float(self.config["rms_norm_eps"])))
        weight = op.constant(np.ones(size, dtype=np.float32))
        return op.multiply(weight, op.multiply(x, op.divide(_float(1.0), root)))

    def _rotary(self, positions: Any) -> tuple[Any, Any]:
        width = self.config["head_dim"]
        powers = self.config["rope_theta"] ** (np.arange(0, width, 2) / width)
        inverse = op.constant((1.0 / powers).astype(np.float32).reshape(1, 1, -1))
        angles = op.multiply(op.unsqueeze(op.convert(positions, "f32"), _int([2])), inverse)
        both = op.unsqueeze(op.concat([angles, angles], 2), _int([1]))
        return op.cos(both), op.sin(both)

    def _rotated(self, x: Any) -> Any:
        half = self.config["head_dim"] // 2
        first, second = op.variadic_split(x, _int(3), _int([half, half])).outputs()
        turned = op.concat([op.multiply(second, _float(-1.0)), first], -1)
        return op.add(op.multiply(x, self.cos), op.multiply(turned, self.sin))

    def _state(self, name: str, new: Any) -> Any:
        """The keys or values of all positions: those kept and the new ones, which are kept too."""
        config, info = self.config, VariableInfo()
        kv_heads, width = config["num_key_value_heads"], config["head_dim"]
        info.data_shape = ov.PartialShape([-1, kv_heads, -1, width])
        info.data_type, info.variable_id = ov.Type.f32, name
        variable = Variable(info)
        empty = op.broadcast(
            _float(0.0), op.concat([self.batch, _int([kv_heads]), _int([0]), _int([width])], 0)
        )
        kept = ov.opset6.read_value(empty, variable)
        whole = op.concat([op.gather(kept, self.beams, _int(0)), new], 2)
        self.sinks.append(ov.opset6.assign(whole, variable))
        return whole

    def _repeated(self, x: Any, heads: int) -> Any:
        """Each key-value head once a query head, in the form that the attention fusion undoes."""
        kv_heads, width = self.config["num_key_value_heads"], self.config["head_dim"]
        wide = op.unsqueeze(x, _int([2]))
        length = op.gather(op.shape_of(x, "i64"), _int([2]), _int(0))
        repeats, each = _int([heads // kv_heads]), _int([kv_heads])
        target = op.concat([self.batch, each, repeats, length, _int([width])], 0)
        wide = op.broadcast(wide, target, broadcast_spec="BIDIRECTIONAL")
        return op.reshape(wide, _int([0, heads, -1, width]), True)

    def _halves(self, rows: int, columns: int) -> Any:
        """A 4-bit matrix: u4 in groups, with a zero point and a float16 scale each."""
        groups = columns // GROUP
        halves = np.resize(self.drawn, rows * columns // 2)
        numbers = self._constant(halves, [rows, groups, GROUP])
        zeros = self._constant(np.full(-(-rows * groups // 2), 0x88, np.uint8), [rows, groups, 1])
        scales = op.constant(np.full((rows, groups, 1), _DEVIATION / 4.6, dtype=np.float16))
        centred = op.subtract(op.convert(numbers, "f16"), op.convert(zeros, "f16"))
        dense = op.reshape(op.multiply(centred, scales), _int([rows, columns]), False)
        self.bits += rows * columns * 4 + rows * groups * 20
        self.weights += rows * columns
        return op.convert(dense, "f32")

    def _bytes(self, rows: int, columns: int) -> Any:
        """An 8-bit matrix: u8 with a zero point and a float16 scale a row."""
        numbers = op.constant(np.resize(self.drawn, (rows, columns)))
        zeros = op.constant(np.full((rows, 1), 128, dtype=np.uint8))
        scales = op.constant(np.full((rows, 1), _DEVIATION / 73.9, dtype=np.float16))
        centred = op.subtract(op.convert(numbers, "f16"), op.convert(zeros, "f16"))
        self.bits += rows * columns * 8 + rows * 24
        self.weights += rows * columns
        return op.convert(op.multiply(centred, scales), "f32")

    def _constant(self, halves: Any, shape: list[int]) -> Any:
        self.arrays.append(halves)
        return op.constant(ov.Tensor(halves, ov.Shape(shape), ov.Type.u4))


def _input(name: str, shape: list[int], kind: Any = ov.Type.i64) -> Any:
    node = op.parameter(shape, kind, name)
    node.output(0).set_names({name})
    return node


def _int(value: Any) -> Any:
    return op.constant(np.array(value, dtype=np.int64))


def _float(value: float) -> Any:
    return op.constant(np.array(value, dtype=np.float32))
