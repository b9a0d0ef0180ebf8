"""Makes the tiny SD3 checkpoint from nothing: `python -m flow_trainer.tiny_sd3 --out FOLDER`.

Signs with four-letter words are drawn by a program; a small VAE, tokenizer, two text encoders and a
transformer learn to draw them, in the folder layout and with the classes of SD3.5-M.
"""
