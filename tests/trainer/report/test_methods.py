"""What a run is of, by its recipe: numbers of its latent as the networks have them, and names."""

import pytest

from trainer.networks.build import build_encoder
from trainer.recipe.loading import listing, load
from trainer.report import methods

RESNET = {"kind": "resnet", "depth": 18, "stem": "cifar", "width": 16, "y": None}
RESNET50 = {"kind": "resnet", "depth": 50, "stem": "imagenet", "width": 64, "y": None}
TRAINED = [recipe.name for recipe in listing() if recipe.task == "pretrain"]


@pytest.mark.parametrize("name", TRAINED)
def test_the_numbers_of_a_latent_are_the_networks(name):
    recipe = load([f"recipe={name}"])
    widths = build_encoder(recipe.recipe.encoder_options()).widths
    assert methods.latent(recipe.resolved()) == (widths["y"], widths.get("w"))


@pytest.mark.parametrize(
    ("encoder", "size", "latent"),
    [
        (
            {"kind": "nvae", "patch": 2, "halvings": 0, "latent": 6, "layout": "pooled", "y": 256},
            32,
            (256, 768),
        ),
        ({"kind": "nvae", "patch": 2, "halvings": 0, "latent": 6, "layout": "map", "y": 256}, 32, (768, 768)),
        (RESNET, 32, (128, None)),
        (RESNET | {"w": {"channels": 3, "halvings": 1}}, 32, (128, 768)),
        (RESNET50 | {"w": {"channels": 4, "halvings": 2}}, 224, (2048, 4 * 14**2)),
        ({"kind": "of tomorrow"}, 32, None),
    ],
    ids=range(6),
)
def test_the_numbers_of_other_latents(encoder, size, latent):
    recipe = {"objective": {"kind": "hybrid"}, "encoder": encoder, "data": {"size": size}}
    assert methods.latent(recipe) == latent


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["recipe=dim_local_small"], "DIM(L) JSD (dim)"),
        (["recipe=dim_global_small", "objective.gamma=0"], "DIM(G) JSD (dim)"),
        (["recipe=dim_complete_small"], "DIM(L+G) JSD, prior (dim)"),
        (
            ["recipe=dim_local_small", "objective.bound=infonce", "objective.occlusion=0.3"],
            "DIM(L) InfoNCE, occlusion (dim)",
        ),
        (["recipe=moco_imagenet"], "MoCo-v2 (resnet50)"),
        (["recipe=simclr_cifar10"], "SimCLR (resnet18)"),
        (["recipe=hybrid_cifar10"], "hybrid, MoCo-v2, ω 0.01 (nvae map)"),
        (
            [
                "recipe=hybrid_cifar10_pooled_small",
                "objective.omega=null",
                "objective.alpha=0.5",
                "objective.sigma=0.5",
            ],
            "hybrid, MoCo-v2, ω 2 (nvae pooled)",
        ),
        (
            ["recipe=hybrid_cifar10_pooled_small", "objective={kind: autoencoder}"],
            "autoencoder (nvae pooled)",
        ),
    ],
)
def test_names_of_methods(words, name):
    assert methods.name(load(words).resolved()) == name


def test_an_objective_of_tomorrow_is_a_contrastive_one_of_its_name():
    recipe = {"objective": {"kind": "vicreg"}, "encoder": {"kind": "resnet", "depth": 18}}
    assert methods.family(recipe) == methods.CONTRASTIVE
    assert methods.name(recipe) == "vicreg (resnet18)"


@pytest.mark.parametrize(
    ("data", "dataset", "name"),
    [
        ({"source": "cifar10", "size": 32}, "x", "CIFAR-10, 32 px"),
        ({"source": "folder", "size": 64, "root": "photos"}, "cats", "cats, 64 px"),
        ({"source": "wds", "size": 224, "root": "https://a/b"}, "", "https://a/b, 224 px"),
        (None, "", ""),
    ],
)
def test_names_of_data_sets(data, dataset, name):
    assert methods.data_name({"data": data}, dataset) == name
