"""GenEval: are the objects of the prompt in the image, in number, color and place?"""
