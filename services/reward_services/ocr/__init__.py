"""Text rendering: does the image show the words that the prompt puts in quotes?"""
