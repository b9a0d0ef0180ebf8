"""What the trainer raises on purpose.

::

    TrainerError
    ├── ConfigError       the recipe, the prompts or the run folder cannot be used as they stand
    ├── OutageError       a reward stayed unreachable for longer than scoring.outage_wait_s
    ├── ScoringError      no sample of an epoch has a score, for reasons that waiting cannot cure
    ├── RatioError        the replayed ratio of an unchanged policy is not 1
    ├── StorageError      a checkpoint could not be written; those before it stand
    ├── NonFiniteError    NaN or Inf in sampling or training; names tensor, step and sample
    └── Interrupted       SIGINT or SIGTERM arrived; the run was saved before it left
"""

from __future__ import annotations


class TrainerError(Exception):
    """Base class; the message is for the user and says what to do."""


class ConfigError(TrainerError, ValueError):
    pass


class OutageError(TrainerError):
    pass


class ScoringError(TrainerError):
    pass


class RatioError(TrainerError):
    pass


class StorageError(TrainerError):
    pass


class NonFiniteError(TrainerError, ArithmeticError):
    pass


class Interrupted(TrainerError):
    pass
