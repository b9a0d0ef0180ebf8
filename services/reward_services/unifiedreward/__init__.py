"""A vision-language model as a judge: how well does the image show the prompt, and how good is it?"""
