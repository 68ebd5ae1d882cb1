"""Make the tiny bundle the tests use: a real graph of a kilobyte (average pooling to 4 × 4 cells, unit length).

python tests/data/make_tiny_bundle.py        (needs onnx)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

from lookalike.bundle import write_bundle


def main() -> None:
    nodes = [
        helper.make_node("AveragePool", ["pixels"], ["cells"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Flatten", ["cells"], ["flat"], axis=1),
        helper.make_node("Add", ["flat", "bias"], ["lifted"]),
        helper.make_node("LpNormalization", ["lifted"], ["vectors"], axis=1, p=2),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["n", 48])],
        # A small constant keeps a picture of the mean colour from having no direction.
        [numpy_helper.from_array(np.full(48, 1e-3, np.float32), "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(model, full_check=True)
    manifest = {
        "name": "tiny",
        "version": "1",
        "dim": 48,
        "image": {
            "graph": "image.onnx",
            "size": [32, 32],
            "fit": "squash",
            "crop_ratio": 1.0,
            "interpolation": "bilinear",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.2, 0.3],
        },
        "thresholds": {"duplicate": 0.995},
        "licence": "Apache-2.0",
    }
    card = b"# tiny\n\nAverage colours of 4 x 4 cells. For tests.\n"
    write_bundle(Path(__file__).parent / "tiny", manifest, {"image.onnx": model.SerializeToString(), "README.md": card})


if __name__ == "__main__":
    main()
