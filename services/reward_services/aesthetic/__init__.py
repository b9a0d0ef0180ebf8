"""LAION's aesthetic predictor: how pleasing is an image, whatever it shows?"""
