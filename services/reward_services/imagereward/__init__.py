"""ImageReward: how well does the image please people, given its prompt?"""
