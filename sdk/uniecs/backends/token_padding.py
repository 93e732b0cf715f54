"""A single photo in bf16 or int8 on OpenVINO: spare tokens, so that its matrix products split evenly.

oneDNN cuts the rows of a product into blocks that divide their number. A ViT-B/16 has 197 tokens, a prime: a product
of 197 rows takes up to a quarter longer than one of 200.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from uniecs.backends.openvino_int8 import constant_node

MULTIPLE = 8
MOST_SPARE = 0.03
"""Share of the tokens; of few tokens more would cost what it wins."""
EACH_ALIKE = {
    *("Add", "Convert", "Divide", "Erf", "Gelu", "Multiply", "MVN", "Power", "Sigmoid", "Subtract", "Swish", "Tanh"),
    *("MatMul", "Softmax", "Result"),
}
"""Operations that do the same to each token and to each row of scores, unless a constant of theirs tells them apart."""


def pad_tokens(model: Any) -> int:
    """Have an image encoder, an OpenVINO model (batch 1), compute with spare tokens, in place; returns their number.

    No token attends to them (keys and values are cut to the others) and the output has none, so that no number
    changes but by the order of sums. Larger batches get none: their products have rows enough. Returns 0 and leaves the
    model as it is where that would win nothing, or where it is not a Transformer as `uniecs.export` writes it.
    """
    shape = model.output(0).get_partial_shape()
    if shape.rank.is_dynamic or len(shape) != 3 or shape[1].is_dynamic:
        return 0
    tokens: int = shape[1].get_length()
    spare = -tokens % MULTIPLE
    start = _tokens_made(model, tokens)
    if not 0 < spare <= MOST_SPARE * tokens or start is None:
        return 0
    behind = _behind(start)
    attended = _keys_and_values(behind)
    if attended is None or not all(_indifferent(node, tokens) for node in behind):
        return 0
    _append_spare(model, start, spare)
    for node in attended:
        node.input(0).replace_source_output(_cut(node.input_value(0), tokens))
    for node in behind:
        if node.get_type_name() == "Reshape":
            _keep_length(node)
    result = model.get_results()[0].input(0)
    names = result.get_source_output().get_names()
    cut = _cut(result.get_source_output(), tokens)
    result.get_source_output().set_names(set())
    cut.set_names(names)
    result.replace_source_output(cut)
    model.validate_nodes_and_infer_types()
    return spare


def _tokens_made(model: Any, tokens: int) -> Any | None:
    """The Add of the positions to the class token and the patches, (batch, tokens, width); None if there is none."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Add" and node.input_value(0).get_node().get_type_name() == "Concat":
            shape = node.get_output_partial_shape(0)
            if len(shape) == 3 and shape[1].is_static and shape[1].get_length() == tokens:
                return node
    return None


def _takers(node: Any) -> list[Any]:
    return [each.get_node() for output in node.outputs() for each in output.get_target_inputs()]


def _behind(start: Any) -> list[Any]:
    """All that is computed from `start`."""
    found, left = dict[str, Any](), _takers(start)
    while left:
        node = left.pop()
        if node.get_name() not in found:
            found[node.get_name()] = node
            left += _takers(node)
    return list(found.values())


def _constant(node: Any, port: int) -> Any | None:
    return constant_node(node.input_value(port).get_node())


def _indifferent(node: Any, tokens: int) -> bool:
    """Whether a node computes with any number of tokens, once a Reshape takes that from its input."""
    kind = node.get_type_name()
    constants = [each for port in range(node.get_input_size()) if (each := _constant(node, port)) is not None]
    if kind == "Reshape":
        pattern = constants[0].data.ravel().tolist() if constants else []
        return len(pattern) in (3, 4) and pattern[0] in (0, -1) and pattern[1] in (0, tokens) and min(pattern[2:]) > 0
    if kind == "Transpose":  # of heads, not of tokens and components
        return len(node.get_output_partial_shape(0)) == 4
    return kind in EACH_ALIKE and all(tokens not in each.shape for each in constants)


def _keys_and_values(behind: Sequence[Any]) -> list[Any] | None:
    """The Reshapes into heads of all keys and values; None where attention is another than softmax(q k') v."""
    products = [node for node in behind if node.get_type_name() == "MatMul" and _constant(node, 1) is None]
    softmaxes = [node for node in behind if node.get_type_name() == "Softmax"]
    expected = []
    for node in softmaxes:
        expected += [node.input_value(0).get_node(), *_takers(node)]
    if not softmaxes or {each.get_name() for each in expected} != {each.get_name() for each in products}:
        return None
    found = []
    for product in products:
        source = product.input_value(1).get_node()
        while source.get_type_name() == "Transpose":
            source = source.input_value(0).get_node()
        found.append(source)
    return found if all(each.get_type_name() == "Reshape" for each in found) else None


def _append_spare(model: Any, start: Any, spare: int) -> None:
    """Zeros behind the tokens of a photo that comes alone."""
    from openvino import opset8

    def integers(*values: int) -> Any:
        return opset8.constant(np.array(values, np.int64))

    takers = list(start.output(0).get_target_inputs())
    batch = opset8.gather(opset8.shape_of(model.inputs[0].get_node()), integers(0), integers(0))
    count = opset8.select(opset8.equal(batch, integers(1)), integers(spare), integers(0))
    width = start.get_output_partial_shape(0)[2].get_length()
    shape = opset8.concat([batch, count, integers(width)], 0)
    zeros = opset8.broadcast(opset8.constant(np.zeros((), np.float32)), shape)
    padded = opset8.concat([start, zeros], 1).output(0)
    for each in takers:
        each.replace_source_output(padded)


def _cut(output: Any, tokens: int) -> Any:
    """The first `tokens` of (batch, at least so many, ...)."""
    from openvino import opset8

    start, end, one = (opset8.constant(np.array([each], np.int64)) for each in (0, tokens, 1))
    return opset8.slice(output, start, end, one, one).output(0)


def _keep_length(reshape: Any) -> None:
    """Let a Reshape take batch and length from its input."""
    from openvino import opset8

    pattern: Any = _constant(reshape, 1)
    kept = np.array([0, 0, *pattern.data.ravel()[2:]], np.int64)
    made = opset8.reshape(reshape.input_value(0), opset8.constant(kept), True)
    made.set_friendly_name(reshape.get_friendly_name())
    reshape.output(0).replace(made.output(0))
