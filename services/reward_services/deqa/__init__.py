"""DeQA-Score: how good is the image's quality, from bad to excellent?"""
