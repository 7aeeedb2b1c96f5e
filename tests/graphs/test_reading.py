from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from dyndeploy.errors import InputError
from dyndeploy.graphs.reading import read_graph
from dyndeploy.prediction import predict
from tests.graphs.lookalikes import exported


def test_sizes_are_read_from_beside_the_graph_and_weights_only_if_asked_for(tmp_path: Path) -> None:
    model = exported("text reader")
    path = tmp_path / "reader.onnx"
    whole = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    read = read_graph(path, weights=True)
    for item in read.graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(item), whole[item.name])
    slim = read_graph(path, weights=False)
    missing = {item.name for item in slim.graph.initializer if item.data_location == onnx.TensorProto.EXTERNAL}
    assert missing == {name for name, value in whole.items() if value.size > 1024}
    inside = predict(exported("text reader"), "nano", input_size=(48, 320))
    assert predict(path, "nano", input_size=(48, 320)).latency_ms == inside.latency_ms
    (tmp_path / "weights.bin").unlink()
    read_graph(path, weights=False)
    with pytest.raises(InputError, match=r"reader\.onnx"):
        read_graph(path, weights=True)


@pytest.mark.parametrize(("name", "wanted"), [("main_graph", "my_net"), ("Model from X.", "my_net"), ("own", "own")])
def test_a_graph_without_a_name_of_its_own_is_named_after_the_file(name: str, wanted: str, tmp_path: Path) -> None:
    model = exported("text detector")
    model.graph.name = name
    onnx.save(model, path := tmp_path / "my_net.onnx")
    assert read_graph(path, weights=False).graph.name == wanted


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"not a graph at all", b"\x08\x08"):
        (tmp_path / "a.onnx").write_bytes(content)
        with pytest.raises(InputError, match=r"Cannot read .*a\.onnx as an ONNX graph"):
            read_graph(tmp_path / "a.onnx", weights=False)
    with pytest.raises(InputError, match=r"none\.onnx"):
        read_graph(tmp_path / "none.onnx", weights=True)
