"""What an Actor begins with: chance, GLM-4-Voice (the paper, 3.1), or an Actor that was trained before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from manifests.errors import UsageError
from models.actor import Actor
from training.checkpoint_meta import Identity
from training.recipe import CHECKPOINT, GLM, RANDOM, Recipe


def first_weights(recipe: Recipe, identity: Identity) -> Callable[[Actor], None]:
    """What fills a whole Actor in CPU memory as the recipe's `init` says. identity: of the run. Raises UsageError where
    it names nothing; the filling raises ModelError for weights that are missing, of another Actor, codec or Thinker."""
    if recipe.init == CHECKPOINT:
        raise UsageError(
            f"recipe {recipe.name!r} goes on from a pretrained Actor; name its run or its export as init (--set init=PATH)"
        )
    return lambda actor: _fill(actor, recipe, identity)


def _fill(actor: Actor, recipe: Recipe, identity: Identity) -> None:
    if recipe.init in (RANDOM, GLM):
        actor.init_weights(recipe.seed)
    if recipe.init == GLM:
        from models.actor_weights import init_from_glm
        from models.weights import weights_folder

        init_from_glm(actor, weights_folder(GLM))
    elif recipe.init != RANDOM:
        from training.export import fill_from

        fill_from(actor, Path(recipe.init), identity)
