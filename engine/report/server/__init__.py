"""The live page: a small web server that shows a whole label store and, if enabled, accepts corrections.

:mod:`.live_store` follows the store, :mod:`.reviewing` turns a corrected map into a review, :mod:`.access` restricts
access, :mod:`.app` serves the requests.
"""
