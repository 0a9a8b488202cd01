"""Write ONNX detectors that return fixed boxes."""

import numpy as np
import pytest

BOXES = np.array([[0, 0, 8, 9], [1, 1, 5, 5], [2, 2, 6, 8], [-4, -4, 300, 300]], np.float32)
LABELS, SCORES = np.array([1, 18, 1, 1]), np.array([0.9, 0.8, 0.3, 0.95], np.float32)


def onnx_file(path, outputs, input_shape, *, kind=None, metadata=()):
    """Write a graph with one input and the fixed outputs {name: array}; return its path."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    kind = kind or TensorProto.FLOAT
    nodes, values, constants = [], [], []
    for name, array in outputs.items():
        constants.append(numpy_helper.from_array(array, f"{name}_value"))
        nodes.append(helper.make_node("Identity", [f"{name}_value"], [name]))
        values.append(
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
        )
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("image", kind, input_shape)],
        values,
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)
    return str(path)
