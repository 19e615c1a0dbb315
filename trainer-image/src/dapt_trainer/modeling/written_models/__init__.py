"""Writes models that are made of others down as ordinary model folders, one tensor after the other.

Nothing here holds a whole model, and nothing here decides which model is made: `ModelReference` is the recipe.
"""
