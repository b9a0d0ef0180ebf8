"""Sample, score, update: `train.py` is the algorithm, the rest its parts."""
