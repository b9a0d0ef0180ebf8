"""What a run is told: the recipe, its sections and checks, and the prompts."""

from flow_trainer.recipe.load import load_recipe, parse_recipe, save_resolved
from flow_trainer.recipe.model import Model
from flow_trainer.recipe.recipe import Recipe
from flow_trainer.recipe.rewards import Reward, Scoring
from flow_trainer.recipe.running import Logging
from flow_trainer.recipe.update import Update

__all__ = [
    "Logging",
    "Model",
    "Recipe",
    "Reward",
    "Scoring",
    "Update",
    "load_recipe",
    "parse_recipe",
    "save_resolved",
]
