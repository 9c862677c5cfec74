"""The live page: a small web server that shows a whole label store, and takes corrections if it is asked to.

:mod:`.live_store` follows the store, :mod:`.reviewing` turns a corrected map into a review, :mod:`.access` decides who
may ask, :mod:`.app` answers.
"""
