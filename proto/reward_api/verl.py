"""The documented path of verl-omni's reward function, `pkg://reward_api.verl`."""

from reward_api.callers.verl import compute_score

__all__ = ["compute_score"]
