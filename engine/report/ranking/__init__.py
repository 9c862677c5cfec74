"""Rankings of images: images to label next, doubtful labels, and near-duplicates.

:mod:`.queue` orders images, :mod:`.label_errors` scores true labels, :mod:`.near_duplicates` compares photos, and
:mod:`.rank` reads what they need from a store.
"""
