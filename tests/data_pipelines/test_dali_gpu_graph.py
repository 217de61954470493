"""The graphs for a GPU, as far as DALI goes without one: its checks of operators, and its serialised form."""

import pytest
from nvidia.dali import pipeline

from data_pipelines.dali_graph import decode_graph, view_graph
from trainer.recipe.loading import RECIPES, load

OPTIONS = {
    "batch_size": 4,
    "num_threads": 1,
    "device_id": 0,
    "prefetch_queue_depth": 1,
    "exec_async": False,
    "exec_pipelined": False,
}


DECODER = (  # protobuf's fields: a name, a type and a value
    b"hw_decoder_load\x12\x05float\x1d\x00\x00\x00\x00",
    b"jpeg_fancy_upsampling\x12\x04bool0\x01",
    b"affine\x12\x04bool0\x00",
)


@pytest.fixture
def no_device(monkeypatch):
    """DALI's C++ refuses a pipeline of a GPU that is not there; its Python builds the graph for one."""
    original = pipeline.Pipeline._get_params

    def params(graph):
        device, graph._device_id = graph._device_id, None
        try:
            return original(graph)
        finally:
            graph._device_id = device

    monkeypatch.setattr(pipeline.Pipeline, "_get_params", params)


def of_images():
    """One recipe for each set of views of the published ones."""
    recipes = {}
    for path in sorted(RECIPES.glob("*.yaml")):
        recipe = load([f"recipe={path.stem}"]).recipe
        if data := getattr(recipe, "data", None):
            recipes.setdefault(str(data.views), path.stem)
    return sorted(recipes.values())


def serialised(graph) -> bytes:
    """The form in which DALI's C++, which has taken the operators, writes a graph down."""
    graph._build_graph()
    graph._init_pipeline_backend()
    graph._pipe.SetOutputDescs(graph._generate_build_args())
    return graph._pipe.SerializeToProtobuf()


def check_decoder(graph) -> None:
    """One decoder, whose options leave no image to depend on its batch."""
    written = serialised(graph)
    for option in DECODER:
        assert written.count(option) == 1
    assert written.count(b"mixed") >= 1


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("name", of_images())
def test_dali_takes_the_graph_of_each_recipes_views(no_device, name, fast):
    data = load([f"recipe={name}"]).recipe.data
    sources = [0] * len(data.views)
    graph = view_graph(list(data.views), sources, data.size, data.normalize, "gpu", fast, **OPTIONS)
    check_decoder(graph)


def test_the_decoder_alone_has_the_same_options(no_device):
    check_decoder(decode_graph(**OPTIONS))
