"""Rankings of images: what to label next, which labels to doubt, and which images are nearly the same.

:mod:`.queue` orders images, :mod:`.label_errors` scores true labels, :mod:`.near_duplicates` compares photos, and
:mod:`.rank` reads what they need from a store.
"""
