"""The paper: pure functions on tensors. No recipe, no file, no clock. Symbols are the paper's:
sigma the noise level, v the velocity, eps the noise, x_0 the clean sample, A the advantage."""
