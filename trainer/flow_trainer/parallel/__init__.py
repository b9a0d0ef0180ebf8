"""Several processes: who does what, and how the transformer is divided among them."""
