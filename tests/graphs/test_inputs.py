from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from dyndeploy.errors import BundleError, UsageError
from dyndeploy.graphs.inputs import open_sizes, real_inputs, with_sizes
from dyndeploy.graphs.inspect import shape_of
from dyndeploy.prediction import read_nodes

Dims = tuple[int | str, ...]


def graph(**inputs: Dims) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in inputs.items()]
    nodes = [helper.make_node("Identity", [next(iter(inputs))], ["y"])]
    first = helper.make_tensor_value_info("y", TensorProto.FLOAT, next(iter(inputs.values())))
    return helper.make_model(helper.make_graph(nodes, "g", values, [first]))


def shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {value.name: shape_of(value) for value in real_inputs(model.graph)}


IMAGE: Dims = ("batch", 3, "height", "width")


def test_a_name_closes_every_axis_that_bears_it() -> None:
    model = graph(x=IMAGE, mask=("batch", "height", "width"), scale=("batch", 2, "?"), other=("n",))
    closed = with_sizes(model, input_size=(32, 48), dims={"scale:2": 7})
    assert shapes(closed) == {"x": (1, 3, 32, 48), "mask": (1, 32, 48), "scale": (1, 2, 7), "other": (1,)}
    closed = with_sizes(model, batch=4, dims={"height": 5, "width": 6, "scale:2": 1, "n": 9})
    assert shapes(closed) == {"x": (4, 3, 5, 6), "mask": (4, 5, 6), "scale": (4, 2, 1), "other": (9,)}
    assert shapes(model)["x"] == (-1, 3, -1, -1)


def test_the_image_need_not_come_first_nor_have_its_channels_first() -> None:
    model = graph(im_shape=("batch", 2), image=("batch", 3, "h", "w"), scale=("batch", 2))
    closed = with_sizes(model, input_size=(32, 48), batch=2)
    assert shapes(closed) == {"im_shape": (2, 2), "image": (2, 3, 32, 48), "scale": (2, 2)}
    with pytest.raises(BundleError, match=r"'image' has the open shape \(1, 3, h, w\). Give --input-size HxW"):
        with_sizes(model)
    last = graph(x=(None, "h", "w", 3))  # type: ignore[arg-type]
    assert shapes(with_sizes(last, input_size=(32, 48))) == {"x": (1, 32, 48, 3)}
    assert read_nodes(last, input_size=(32, 48)).input_size == (32, 48)
    assert shapes(with_sizes(graph(x=(1, 3, "h", 3)), input_size=(32, 3))) == {"x": (1, 3, 32, 3)}


def test_axes_without_a_meaningful_name_go_by_input_and_axis() -> None:
    model = graph(x=(-1, 3, "?", "?"), tokens=("b", 0))
    assert open_sizes(model) == ["x:0", "x:2", "x:3", "b", "tokens:1"]
    closed = with_sizes(model, dims={"x:2": 48, "x:3": 320, "tokens:1": 5})
    assert shapes(closed) == {"x": (1, 3, 48, 320), "tokens": (1, 5)}


def test_a_closed_graph_is_left_as_it_is() -> None:
    model = graph(x=(2, 3, 8, 8))
    assert with_sizes(model) is model
    assert shapes(with_sizes(model, batch=1, input_size=(4, 6))) == {"x": (1, 3, 4, 6)}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": IMAGE}, r"\(1, 3, height, width\). Give --input-size HxW, or --dim height=N --dim width=N."),
        (
            {"x": (1, 3, 8, 8), "t": (1, "seq", "?")},
            r"'t' has the open shape \(1, seq, \?\). Give --dim seq=N --dim t:2",
        ),
        ({"x": (1, "frames", 80)}, r"Give --dim frames=N\.$"),
    ],
)
def test_what_stays_open_is_named_with_its_option(inputs: dict[str, Dims], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        with_sizes(graph(**inputs))


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match=r"Unknown open size 'heigth'.*height"):
        with_sizes(graph(x=IMAGE), dims={"heigth": 3})
    with pytest.raises(UsageError, match="are fixed: leave --dim n=2 out"):
        with_sizes(graph(x=(1, 3, 8, 8)), dims={"n": 2})
    with pytest.raises(UsageError, match="at least 1"):
        with_sizes(graph(x=IMAGE), dims={"height": 0})
    with pytest.raises(UsageError, match="no image"):
        with_sizes(graph(x=("n", 80)), input_size=(8, 8))
    with pytest.raises(BundleError, match="no input"):
        with_sizes(helper.make_model(helper.make_graph([], "g", [], [])))
    with pytest.raises(BundleError, match="no tensor with a known number of axes"):
        model = graph(x=IMAGE)
        model.graph.input[0].type.tensor_type.ClearField("shape")
        with_sizes(model)
