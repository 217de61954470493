"""Every recipe of diffusion trains two steps at its full size, on samples of the shape of its encoder's."""

from trainer.recipe.diffusion import Diffuse
from trainer.recipe.loading import RECIPES, load

DIFFUSIONS = sorted(
    path.stem for path in RECIPES.glob("*.yaml") if isinstance(load([f"recipe={path.stem}"]).recipe, Diffuse)
)
PARAMETERS = {"ddim_cifar10": 35_746_307, "diffuse_cifar10_map": 34_746_246}
