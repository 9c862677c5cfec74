"""Fuzzing of every file that maskmill reads: documents of :mod:`.targets`, changed by :mod:`.mutation`.

The default suite runs a few inputs per target, always the same ones; ``make fuzz MINUTES=10`` runs more, and
``python -m tests.fuzz --inputs 5000 NAME`` prints what was tried. :mod:`.test_schemas` holds that the documents have
every field of every schema. What C libraries open is seen by ``strace -f -e trace=%file,%network,execve``.
"""
