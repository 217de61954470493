"""What a run is of, from its resolved recipe alone: family, name, data set, numbers of a latent."""

from typing import Any, NamedTuple

from trainer.recipe.yaml12 import to_yaml_line

HYBRID, CONTRASTIVE, AUTOENCODER = "hybrid", "contrastive", "autoencoder"
LATENT_DIFFUSION, PIXEL_DIFFUSION = "latent diffusion", "pixel diffusion"
FAMILIES = (HYBRID, CONTRASTIVE, AUTOENCODER, LATENT_DIFFUSION, PIXEL_DIFFUSION)  # in the order of rows

BOUNDS = {"jsd": "JSD", "infonce": "InfoNCE", "dv": "DV", "nwj": "NWJ"}
NAMES = {"moco": "MoCo-v2", "simclr": "SimCLR"}
DATA_SETS = {
    "digits": "digits",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "stl10": "STL-10",
}
DIM_TERMS = {"gamma": "prior", "coordinates": "coordinates", "occlusion": "occlusion"}


class Latent(NamedTuple):
    """Numbers an image of y and of w; w is None for an encoder that has none."""

    y: int
    w: int | None

    @property
    def size(self) -> int:
        """D = |y| + |w|: all that a decoder reads."""
        return self.y + (self.w or 0)


def family(recipe: dict[str, Any]) -> str:
    """One of FAMILIES: that of a recipe that trains. An objective without a row here is a contrastive one."""
    kind = recipe["objective"]["kind"]
    if kind == "diffusion":
        return LATENT_DIFFUSION if recipe.get("from") else PIXEL_DIFFUSION
    return kind if kind in (HYBRID, AUTOENCODER) else CONTRASTIVE


def contrastive_name(objective: dict[str, Any]) -> str:
    """The published name of a contrastive objective, such as `DIM(L) InfoNCE, prior`."""
    if objective["kind"] != "dim":
        return NAMES.get(objective["kind"], objective["kind"])
    terms = "+".join(letter for letter, weight in (("L", "beta"), ("G", "alpha")) if objective.get(weight, 0))
    bound = BOUNDS.get(objective.get("bound", ""), "")
    extra = [name for key, name in DIM_TERMS.items() if objective.get(key)]
    extra += ["supervised"] if objective.get("supervised") else []
    return ", ".join([f"DIM({terms}) {bound}".strip(), *extra])


def omega(objective: dict[str, Any]) -> float | None:
    """The weight of the squared error in a hybrid's loss; None where its recipe does not say it."""
    if objective.get("omega") is not None:
        return objective["omega"]
    alpha, sigma = objective.get("alpha"), objective.get("sigma") or 1.0
    return None if alpha is None else alpha / (1 - alpha) / (2 * sigma**2)


def name(recipe: dict[str, Any]) -> str:
    """What a row of this run is called, apart from the encoder's run that a diffusion is trained on."""
    objective = recipe["objective"]
    encoder = encoder_name(recipe.get("encoder") or {})
    match family(recipe):
        case "hybrid":
            weight = omega(objective)
            parts = ["hybrid", contrastive_name(objective["contrast"])]
            parts += [f"ω {weight:g}"] if weight is not None else []
            parts += ["y detached"] if objective.get("detach_y") else []
            return f"{', '.join(parts)} ({encoder})"
        case "autoencoder":
            return f"autoencoder ({encoder})"
        case "latent diffusion":
            return f"diffusion on latents, {process(objective)}"
        case "pixel diffusion":
            return f"diffusion on pixels, {process(objective)}"
        case _:
            return f"{contrastive_name(objective)} ({encoder})"


def process(objective: dict[str, Any]) -> str:
    """The process of a diffusion with what its network predicts, such as `ddim (eps)`."""
    predict = objective.get("predict")
    return f"{objective.get('process', '?')}{f' ({predict})' if predict else ''}"


def encoder_name(encoder: dict[str, Any]) -> str:
    """Such as `resnet18`, or `nvae pooled`."""
    depth = encoder.get("depth", "") if encoder.get("kind", "").endswith("resnet") else ""
    return " ".join(
        part for part in (f"{encoder.get('kind', '?')}{depth}", encoder.get("layout", "")) if part
    )


def data_name(recipe: dict[str, Any], dataset: str = "") -> str:
    """The data set and the side of its images; '' for a recipe that names none.

    dataset: its name in the journal, for sources that hold any data set.
    """
    data = recipe.get("data") or {}
    if not data.get("source"):
        return ""
    known = DATA_SETS.get(data["source"])
    return f"{known or dataset or data.get('root', data['source'])}, {data.get('size', 32)} px"


def latent(recipe: dict[str, Any]) -> Latent | None:
    """The numbers of an encoder's latent, by its options; None for an encoder without a rule here.

    A test compares with every recipe's network.
    """
    if family(recipe) == PIXEL_DIFFUSION:
        return Latent(3 * recipe["data"]["size"] ** 2, None) if recipe.get("data") else None
    encoder, data = recipe.get("encoder") or {}, recipe.get("data") or {}
    kind, y, w, size = encoder.get("kind"), encoder.get("y"), encoder.get("w"), data.get("size", 32)
    if kind == "nvae":
        half = encoder["latent"] // 2 * (size // encoder["patch"] // 2 ** encoder["halvings"]) ** 2
        return Latent(y if y and encoder["layout"] == "pooled" else half, half)
    if kind == "resnet":
        y = y or 8 * encoder["width"] * (1 if encoder["depth"] < 50 else 4)
        square = (1 if encoder["stem"] == "cifar" else 4) * 2 ** w["halvings"] if w else size
        return Latent(y, w["channels"] * (size // square) ** 2 if w else None)
    return None if y is None else Latent(y, None)


def shown_difference(key: str, value: Any) -> str:
    """A key by its last two words with its value, to tell two rows from each other."""
    return f"{'.'.join(key.split('.')[-2:])}={to_yaml_line(value)}"
