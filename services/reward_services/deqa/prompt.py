"""DeQA's one question, in tokens of LLaMA-2, and the words that may answer it.

"USER: How would you rate the quality of this image?\\n<|image|>\\nASSISTANT: The quality of the image is"

The question never changes, so no tokenizer is loaded. The text on each side of the image is tokenized
by itself: hence the lone blank (29871) that opens the second part.
"""

from __future__ import annotations

# fmt: off
BEFORE_IMAGE = (1, 3148, 1001, 29901, 1128, 723, 366, 6554, 278, 11029, 310, 445, 1967, 29973, 13)
AFTER_IMAGE = (29871, 13, 22933, 9047, 13566, 29901, 450, 11029, 310, 278, 1967, 338)
# fmt: on
LEVELS = {"excellent": 15129, "good": 1781, "fair": 6534, "poor": 6460, "bad": 4319}
VOCABULARY = 32000
