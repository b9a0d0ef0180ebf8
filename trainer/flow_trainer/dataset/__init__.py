"""Image-text pairs on disk and on the hub, and an image as a model of one size takes it."""
