"""PickScore: human preference for an image, given its prompt."""
