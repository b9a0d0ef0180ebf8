"""What every reward is served by: both protocols, batching, limits, health, metrics."""
