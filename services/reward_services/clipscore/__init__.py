"""CLIPScore: how well an image fits its prompt, by CLIP ViT-L/14."""
