"""HPSv2.1: human preference for an image, given its prompt."""
